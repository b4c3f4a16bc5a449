"""A domain's XML, compared with what it is to be word for word (libvirt's formatdomain)."""

from pathlib import Path

from iolane.engines.libvirt.description import DomainDescription, domain_xml
from iolane.engines.libvirt.metadata import Attached
from iolane.engines.qemu.command_line import Accelerator, VfioUserDevice
from iolane.engines.qemu.vfio import VfioPciDevice
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.model.pci import PcieId
from iolane.uapi.virtio import DeviceType

DISK = VhostUserDevice("disk0", Path("/run/d.sock"), DeviceType.BLOCK, queues=2, queue_size=256)
NET = VhostUserDevice("net0", Path("/run/n&t.sock"), DeviceType.NET, mac="02:00:00:00:00:01")
ADDER = VfioUserDevice("adder0", Path("/run/a.sock"))
FUNCTION = VfioPciDevice("pci-01-00.0", PcieId.from_string("0000:01:00.0"), rom=False)

GOLDEN = """\
<domain xmlns:iolane="urn:iolane:devices:1" \
xmlns:qemu="http://libvirt.org/schemas/domain/qemu/1.0" type="qemu">
  <name>web</name>
  <metadata>
    <iolane:devices>
      <iolane:device id="disk0" device="block,image=/d.raw" carrier="vhost-user" socket="/run/d.sock" />
    </iolane:devices>
  </metadata>
  <memory unit="MiB">512</memory>
  <vcpu>2</vcpu>
  <memoryBacking>
    <source type="memfd" />
    <access mode="shared" />
  </memoryBacking>
  <os>
    <type arch="x86_64" machine="q35">hvm</type>
    <kernel>/boot/vmlinuz</kernel>
    <initrd>/boot/initrd</initrd>
    <cmdline>console=ttyS0,115200 quiet panic=-1 nokaslr mitigations=off no_timer_check nowatchdog \
tsc=reliable cryptomgr.notests rcupdate.rcu_expedited=1 random.trust_cpu=on iolane.shell</cmdline>
  </os>
  <features>
    <acpi />
  </features>
  <cpu mode="maximum" />
  <on_poweroff>destroy</on_poweroff>
  <on_reboot>destroy</on_reboot>
  <on_crash>destroy</on_crash>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <controller type="usb" model="none" />
    <controller type="pci" index="0" model="pcie-root" />
    <controller type="pci" index="1" model="pcie-root-port" />
    <controller type="pci" index="2" model="pcie-root-port" />
    <serial type="pty">
      <target type="isa-serial" port="0" />
    </serial>
    <serial type="unix">
      <source mode="bind" path="/run/agent.sock" />
      <target type="isa-serial" port="1" />
    </serial>
    <memballoon model="none" />
    <disk type="vhostuser" device="disk">
      <driver name="qemu" type="raw" queues="2" queue_size="256" />
      <source type="unix" path="/run/d.sock">
        <reconnect enabled="yes" timeout="1" />
      </source>
      <target dev="vda" bus="virtio" />
      <alias name="ua-disk0" />
    </disk>
    <interface type="vhostuser">
      <mac address="02:00:00:00:00:01" />
      <source type="unix" path="/run/n&amp;t.sock" mode="client">
        <reconnect enabled="yes" timeout="1" />
      </source>
      <model type="virtio" />
      <alias name="ua-net0" />
    </interface>
    <hostdev mode="subsystem" type="pci" managed="no">
      <source>
        <address domain="0x0000" bus="0x01" slot="0x00" function="0x0" />
      </source>
      <rom bar="off" />
      <alias name="ua-pci-01-00.0" />
    </hostdev>
  </devices>
  <qemu:commandline>
    <qemu:arg value="-device" />
    <qemu:arg value="{&quot;driver&quot;:&quot;pcie-root-port&quot;,&quot;id&quot;:&quot;iolane-adder0&quot;,\
&quot;bus&quot;:&quot;pcie.0&quot;,&quot;addr&quot;:&quot;0x10&quot;,&quot;chassis&quot;:112}" />
    <qemu:arg value="-device" />
    <qemu:arg value="{&quot;driver&quot;: &quot;vfio-user-pci&quot;, &quot;id&quot;: &quot;adder0&quot;, \
&quot;bus&quot;: &quot;iolane-adder0&quot;, &quot;socket&quot;: {&quot;type&quot;: &quot;unix&quot;, \
&quot;path&quot;: &quot;/run/a.sock&quot;}}" />
  </qemu:commandline>
</domain>"""


def test_a_domain_with_every_kind_of_device() -> None:
    description = DomainDescription(
        name="web",
        accelerator=Accelerator.TCG,
        emulator=Path("/usr/bin/qemu-system-x86_64"),
        cpus=2,
        ports=2,
        devices=[DISK, NET, ADDER, FUNCTION],
        attached=[
            Attached(id="disk0", device="block,image=/d.raw", carrier="vhost-user", socket="/run/d.sock")
        ],
        kernel=Path("/boot/vmlinuz"),
        initrd=Path("/boot/initrd"),
        append=["iolane.shell"],
        agent_socket=Path("/run/agent.sock"),
    )
    assert domain_xml(description) == GOLDEN


def test_kvm_and_a_libvirt_that_can_not_have_qemu_reconnect() -> None:
    document = domain_xml(
        DomainDescription(name="a", accelerator=Accelerator.KVM, devices=[DISK], reconnect=False)
    )
    assert '<domain type="kvm">' in document
    assert '<cpu mode="host-passthrough" />' in document
    assert "reconnect" not in document
