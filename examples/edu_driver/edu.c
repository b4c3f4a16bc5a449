// SPDX-License-Identifier: GPL-2.0
/*
 * Linux driver of the edu device (QEMU's docs/specs/edu.rst), exercising all of it. insmod edu.ko [intx=1]
 *
 *	cd /sys/bus/pci/drivers/edu/0000:*
 *	cat identification		# 0x010000ed
 *	echo 5 > liveness; cat liveness	# 0xfffffffa
 *	echo 6 > factorial; cat factorial	# 720, completed by an interrupt
 *	echo 0x42 > interrupt		# raised by the device, acknowledged by the handler
 *	echo 4096 > transfer; cat transfer	# there and back by DMA: the checksums of both ways
 *	cat interrupts			# "msi 3"
 */
#include <linux/completion.h>
#include <linux/dma-mapping.h>
#include <linux/interrupt.h>
#include <linux/io-64-nonatomic-lo-hi.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/pci.h>
#include <linux/random.h>

#ifndef PCI_IRQ_INTX
#define PCI_IRQ_INTX PCI_IRQ_LEGACY	/* its name before Linux 6.8 */
#endif

#define EDU_IDENTIFICATION	0x00
#define EDU_LIVENESS		0x04
#define EDU_FACTORIAL		0x08
#define EDU_STATUS		0x20
#define STATUS_COMPUTING	BIT(0)
#define STATUS_INTERRUPT	BIT(7)
#define EDU_INTERRUPT_STATUS	0x24
#define EDU_RAISE		0x60
#define EDU_ACKNOWLEDGE		0x64
#define EDU_DMA_SOURCE		0x80
#define EDU_DMA_DESTINATION	0x88
#define EDU_DMA_COUNT		0x90
#define EDU_DMA_COMMAND		0x98
#define DMA_START		BIT(0)
#define DMA_TO_MEMORY		BIT(1)
#define DMA_INTERRUPT		BIT(2)

#define INTERRUPT_FACTORIAL	0x001
#define INTERRUPT_DMA		0x100
#define EDU_BUFFER		0x40000
#define EDU_BUFFER_SIZE		4096

static bool intx;
module_param(intx, bool, 0444);
MODULE_PARM_DESC(intx, "use the INTx line, not MSI");

struct edu {
	struct pci_dev *pdev;
	void __iomem *registers;
	struct mutex lock;		/* one operation at a time */
	struct completion interrupt;
	u32 raised;			/* what the last interrupt was about */
	unsigned long interrupts;
	u8 *memory;			/* out of the first half, back into the second */
	dma_addr_t address;
	u32 count, sent, received;
};

static irqreturn_t edu_interrupt(int irq, void *data)
{
	struct edu *edu = data;
	u32 status = readl(edu->registers + EDU_INTERRUPT_STATUS);

	if (!status)
		return IRQ_NONE;	/* a shared line: not ours */
	edu->raised = status;
	edu->interrupts++;
	writel(status, edu->registers + EDU_ACKNOWLEDGE);
	complete(&edu->interrupt);
	return IRQ_HANDLED;
}

/* Waits for an interrupt that is about all of "wanted". */
static int edu_wait(struct edu *edu, u32 wanted)
{
	if (!wait_for_completion_timeout(&edu->interrupt, 10 * HZ)) {
		pci_err(edu->pdev, "no interrupt %#x within 10 s\n", wanted);
		return -ETIMEDOUT;
	}
	return edu->raised == wanted ? 0 : -EIO;
}

static ssize_t identification_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "0x%08x\n", readl(edu->registers + EDU_IDENTIFICATION));
}
static DEVICE_ATTR_RO(identification);

static ssize_t liveness_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "0x%08x\n", readl(edu->registers + EDU_LIVENESS));
}

static ssize_t liveness_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct edu *edu = dev_get_drvdata(dev);
	u32 value;
	int err = kstrtou32(text, 0, &value);

	if (err)
		return err;
	writel(value, edu->registers + EDU_LIVENESS);
	return length;
}
static DEVICE_ATTR_RW(liveness);

static ssize_t factorial_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "%u\n", readl(edu->registers + EDU_FACTORIAL));
}

static ssize_t factorial_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct edu *edu = dev_get_drvdata(dev);
	u32 value;
	int err = kstrtou32(text, 0, &value);

	if (err)
		return err;
	mutex_lock(&edu->lock);
	reinit_completion(&edu->interrupt);
	writel(STATUS_INTERRUPT, edu->registers + EDU_STATUS);
	writel(value, edu->registers + EDU_FACTORIAL);
	err = edu_wait(edu, INTERRUPT_FACTORIAL);
	if (!err && (readl(edu->registers + EDU_STATUS) & STATUS_COMPUTING))
		err = -EIO;	/* interrupted before it was done */
	mutex_unlock(&edu->lock);
	return err ? err : length;
}
static DEVICE_ATTR_RW(factorial);

static ssize_t interrupt_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct edu *edu = dev_get_drvdata(dev);
	u32 value;
	int err = kstrtou32(text, 0, &value);

	if (err)
		return err;
	mutex_lock(&edu->lock);
	reinit_completion(&edu->interrupt);
	writel(value, edu->registers + EDU_RAISE);
	err = edu_wait(edu, value);
	mutex_unlock(&edu->lock);
	return err ? err : length;
}
static DEVICE_ATTR_WO(interrupt);

/* FNV-1a: known to both sides without a library. */
static u32 edu_checksum(const u8 *data, u32 count)
{
	u32 sum = 0x811c9dc5;

	while (count--)
		sum = (sum ^ *data++) * 0x01000193;
	return sum;
}

static int edu_dma(struct edu *edu, u64 source, u64 destination, u32 count, u32 direction)
{
	reinit_completion(&edu->interrupt);
	writeq(source, edu->registers + EDU_DMA_SOURCE);
	writeq(destination, edu->registers + EDU_DMA_DESTINATION);
	writeq(count, edu->registers + EDU_DMA_COUNT);
	writeq(DMA_START | DMA_INTERRUPT | direction, edu->registers + EDU_DMA_COMMAND);
	return edu_wait(edu, INTERRUPT_DMA);
}

static ssize_t transfer_store(struct device *dev, struct device_attribute *attr, const char *text, size_t length)
{
	struct edu *edu = dev_get_drvdata(dev);
	u8 *back = edu->memory + EDU_BUFFER_SIZE;
	u32 count;
	int err = kstrtou32(text, 0, &count);

	if (err)
		return err;
	if (count > EDU_BUFFER_SIZE)
		return -EINVAL;
	mutex_lock(&edu->lock);
	get_random_bytes(edu->memory, count);
	memset(back, 0, EDU_BUFFER_SIZE);
	err = edu_dma(edu, edu->address, EDU_BUFFER, count, 0);
	if (!err)
		err = edu_dma(edu, EDU_BUFFER, edu->address + EDU_BUFFER_SIZE, count, DMA_TO_MEMORY);
	edu->count = count;
	edu->sent = edu_checksum(edu->memory, count);
	edu->received = edu_checksum(back, count);
	if (!err && memchr_inv(back + count, 0, EDU_BUFFER_SIZE - count))
		err = -EOVERFLOW;	/* more was written than asked for */
	mutex_unlock(&edu->lock);
	return err ? err : length;
}

static ssize_t transfer_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "%u bytes, sent %08x, received %08x\n", edu->count, edu->sent, edu->received);
}
static DEVICE_ATTR_RW(transfer);

static ssize_t interrupts_show(struct device *dev, struct device_attribute *attr, char *text)
{
	struct edu *edu = dev_get_drvdata(dev);

	return sysfs_emit(text, "%s %lu\n", edu->pdev->msi_enabled ? "msi" : "intx", edu->interrupts);
}
static DEVICE_ATTR_RO(interrupts);

static struct attribute *edu_attrs[] = {
	&dev_attr_identification.attr, &dev_attr_liveness.attr, &dev_attr_factorial.attr,
	&dev_attr_interrupt.attr, &dev_attr_transfer.attr, &dev_attr_interrupts.attr, NULL
};
ATTRIBUTE_GROUPS(edu);

static int edu_probe(struct pci_dev *pdev, const struct pci_device_id *id)
{
	struct edu *edu = devm_kzalloc(&pdev->dev, sizeof(*edu), GFP_KERNEL);
	int err;

	if (!edu)
		return -ENOMEM;
	edu->pdev = pdev;
	mutex_init(&edu->lock);
	init_completion(&edu->interrupt);
	pci_set_drvdata(pdev, edu);

	err = pcim_enable_device(pdev);
	if (err)
		return err;
	edu->registers = pcim_iomap(pdev, 0, 0);
	if (!edu->registers)
		return -ENOMEM;
	err = dma_set_mask_and_coherent(&pdev->dev, DMA_BIT_MASK(28));
	if (err)
		return err;
	edu->memory = dmam_alloc_coherent(&pdev->dev, 2 * EDU_BUFFER_SIZE, &edu->address, GFP_KERNEL);
	if (!edu->memory)
		return -ENOMEM;
	pci_set_master(pdev);
	err = pci_alloc_irq_vectors(pdev, 1, 1, intx ? PCI_IRQ_INTX : PCI_IRQ_MSI);
	if (err < 0)
		return err;
	writel(~0, edu->registers + EDU_ACKNOWLEDGE);
	err = devm_request_irq(&pdev->dev, pci_irq_vector(pdev, 0), edu_interrupt, IRQF_SHARED, "edu", edu);
	if (!err)
		pci_info(pdev, "edu %#x, %s, DMA buffer at %pad\n", readl(edu->registers + EDU_IDENTIFICATION),
			 intx ? "intx" : "msi", &edu->address);
	return err;
}

static void edu_remove(struct pci_dev *pdev)
{
	struct edu *edu = pci_get_drvdata(pdev);

	writel(0, edu->registers + EDU_STATUS);
	devm_free_irq(&pdev->dev, pci_irq_vector(pdev, 0), edu);
	pci_free_irq_vectors(pdev);
	pci_clear_master(pdev);
}

static const struct pci_device_id edu_ids[] = { { PCI_DEVICE(0x1234, 0x11e8) }, { } };
MODULE_DEVICE_TABLE(pci, edu_ids);

static struct pci_driver edu_driver = {
	.name = "edu",
	.id_table = edu_ids,
	.probe = edu_probe,
	.remove = edu_remove,
	.dev_groups = edu_groups,
};
module_pci_driver(edu_driver);

MODULE_DESCRIPTION("The edu device");
MODULE_LICENSE("GPL");
