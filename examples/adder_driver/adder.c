// SPDX-License-Identifier: GPL-2.0
/*
 * Linux driver of the device in examples/adder.py.
 *
 *	cd /sys/bus/pci/drivers/adder/0000:*
 *	echo 2 3 > sum; cat sum		# 5
 *	cat interrupts			# 1: each addition is completed by an interrupt
 */
#include <linux/completion.h>
#include <linux/interrupt.h>
#include <linux/io.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>

#define ADDER_A		0x00
#define ADDER_B		0x04
#define ADDER_SUM	0x08
#define ADDER_CONTROL	0x0c
#define CONTROL_START	BIT(0)

struct adder {
	void __iomem *registers;
	struct mutex lock;		/* one addition at a time */
	struct completion added;
	unsigned long interrupts;
};

static irqreturn_t adder_interrupt(int irq, void *data)
{
	struct adder *adder = data;

	adder->interrupts++;
	complete(&adder->added);
	return IRQ_HANDLED;
}

static ssize_t sum_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct adder *adder = dev_get_drvdata(dev);
	ssize_t result = length;
	u32 a, b;

	if (sscanf(text, "%i %i", &a, &b) != 2)
		return -EINVAL;
	mutex_lock(&adder->lock);
	reinit_completion(&adder->added);
	writel(a, adder->registers + ADDER_A);
	writel(b, adder->registers + ADDER_B);
	writel(CONTROL_START, adder->registers + ADDER_CONTROL);
	if (!wait_for_completion_timeout(&adder->added, 10 * HZ))
		result = -ETIMEDOUT;
	mutex_unlock(&adder->lock);
	return result;
}

static ssize_t sum_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct adder *adder = dev_get_drvdata(dev);

	return sysfs_emit(text, "%u\n", readl(adder->registers + ADDER_SUM));
}
static DEVICE_ATTR_RW(sum);

static ssize_t interrupts_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct adder *adder = dev_get_drvdata(dev);

	return sysfs_emit(text, "%lu\n", adder->interrupts);
}
static DEVICE_ATTR_RO(interrupts);

static struct attribute *adder_attrs[] = { &dev_attr_sum.attr, &dev_attr_interrupts.attr, NULL };
ATTRIBUTE_GROUPS(adder);

static int adder_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct adder *adder = devm_kzalloc(&pdev->dev, sizeof(*adder), GFP_KERNEL);
	int err;

	if (!adder)
		return -ENOMEM;
	mutex_init(&adder->lock);
	init_completion(&adder->added);
	pci_set_drvdata(pdev, adder);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	adder->registers = pcim_iomap(pdev, 0, 0);
	if (!adder->registers)
		return -ENOMEM;
	pci_set_master(pdev);		/* MSI and MSI-X are writes to memory */
	err = pci_alloc_irq_vectors(pdev, 1, 1, PCI_IRQ_MSIX | PCI_IRQ_MSI);
	if (err < 0)
		return err;
	return devm_request_irq(&pdev->dev, pci_irq_vector(pdev, 0), adder_interrupt, 0, "adder", adder);
}

static void adder_remove(struct pci_dev *pdev)
{
	devm_free_irq(&pdev->dev, pci_irq_vector(pdev, 0), pci_get_drvdata(pdev));
	pci_free_irq_vectors(pdev);
}

static const struct pci_device_id adder_ids[] = { { PCI_DEVICE(0x1234, 0x11ad) }, { } };
MODULE_DEVICE_TABLE(pci, adder_ids);

static struct pci_driver adder_driver = {
	.name = "adder",
	.id_table = adder_ids,
	.probe = adder_probe,
	.remove = adder_remove,
	.dev_groups = adder_groups,
};
module_pci_driver(adder_driver);

MODULE_DESCRIPTION("iolane's adder");
MODULE_LICENSE("GPL");
