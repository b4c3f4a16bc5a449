"""Elements, aliases, slots; what a domain must be; what is put into a domain's XML and taken out again."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from iolane.engines.libvirt.devices import _empty_bridges, with_arguments, without_arguments
from iolane.engines.libvirt.elements import (
    commandline_arguments,
    device_element,
    is_known_to_libvirt,
    reconnects,
)
from iolane.engines.libvirt.emulator import emulator_script, version_numbers
from iolane.engines.libvirt.metadata import Attached, attached_element, attached_text, read_attached
from iolane.engines.libvirt.requirements import (
    free_disk_name,
    free_ports,
    has_alias,
    require_qemu,
    require_shared_memory,
    taken_root_slots,
)
from iolane.engines.qemu.command_line import VfioUserDevice
from iolane.engines.qemu.provision import Qemu
from iolane.engines.qemu.vhost_user import VhostUserDevice
from iolane.errors import IolaneError
from iolane.uapi.virtio import DeviceType

DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>web</name>
  <memoryBacking><access mode='shared'/></memoryBacking>
  <devices>
    <controller type='pci' index='0' model='pcie-root'/>
    <controller type='pci' index='1' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x0'/>
    </controller>
    <controller type='pci' index='2' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x01' function='0x1'/>
    </controller>
    <controller type='pci' index='3' model='pcie-root-port'>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x02' function='0x0'/>
    </controller>
    <disk type='file' device='disk'><target dev='vda' bus='virtio'/><alias name='ua-root'/>
      <address type='pci' domain='0x0000' bus='0x01' slot='0x00' function='0x0'/></disk>
    <video><model type='vga'/>
      <address type='pci' domain='0x0000' bus='0x00' slot='0x10' function='0x0'/></video>
  </devices>
</domain>"""
NVME = VfioUserDevice("nvme0", Path("/run/nvme0.sock"))


def test_what_libvirt_has_an_element_for() -> None:
    socket = Path("/run/x.sock")
    assert is_known_to_libvirt(VhostUserDevice("a", socket, DeviceType.BLOCK))
    assert is_known_to_libvirt(VhostUserDevice("a", socket, DeviceType.NET))
    rng = VhostUserDevice("a", socket, DeviceType.RNG)
    assert not is_known_to_libvirt(rng)
    with pytest.raises(IolaneError, match=r"no element for a .*carrier=vfio-user"):
        device_element(rng)


@pytest.mark.parametrize(
    ("libvirt", "qemu", "wanted"),
    [
        (9_000_000, (7, 2, 0), True),
        (9_000_000, (11, 1, 3), False),
        (11_003_000, (11, 1, 3), True),
        (10_000_000, (10,), False),
        (10_000_000, (9, 2), True),
    ],
)
def test_when_qemu_connects_again(libvirt: int, qemu: tuple[int, ...], wanted: bool) -> None:
    assert reconnects(libvirt, qemu) is wanted


def test_a_device_for_qemu_alone_is_behind_a_port_of_its_own_where_the_root_bus_is_free() -> None:
    assert taken_root_slots(DOMAIN) == [0x01, 0x02, 0x10]
    port = commandline_arguments([NVME], taken_root_slots(DOMAIN))[1]
    assert '"addr":"0x11"' in port
    with pytest.raises(IolaneError, match="8 slots"):
        commandline_arguments([NVME] * 9)


def test_arguments_go_in_and_come_out_again() -> None:
    one = with_arguments(DOMAIN, NVME)
    two = with_arguments(one, VfioUserDevice("edu0", Path("/run/edu0.sock")))
    values = [each.get("value", "") for each in ET.fromstring(two).iter() if each.tag.endswith("}arg")]
    assert [value for value in values if "pcie-root-port" in value and '"addr":"0x11"' in value]
    assert [value for value in values if "pcie-root-port" in value and '"addr":"0x12"' in value]
    assert "edu0" not in without_arguments(two, "edu0")
    assert "nvme0" in without_arguments(two, "edu0")
    assert "commandline" not in without_arguments(without_arguments(two, "edu0"), "nvme0")


def test_arguments_of_others_stay() -> None:
    mine = "<qemu:commandline><qemu:arg value='-device'/><qemu:arg value='usb-tablet'/></qemu:commandline>"
    document = with_arguments(DOMAIN.replace("</domain>", f"{mine}</domain>"), NVME)
    assert "usb-tablet" in without_arguments(document, "nvme0")


def test_free_ports_the_last_first() -> None:
    assert free_ports(DOMAIN) == ["pci.3", "pci.2"]
    buses = [
        {
            "devices": [
                {"qdev_id": "pci.1", "pci_bridge": {"devices": [{"qdev_id": "ua-root"}]}},
                {"qdev_id": "pci.2", "pci_bridge": {"devices": []}},
                {"qdev_id": "pci.3", "pci_bridge": {}},
                {"qdev_id": "video0"},
            ]
        }
    ]
    assert _empty_bridges(buses) == {"pci.2", "pci.3"}


def test_names_of_disks_and_aliases() -> None:
    assert free_disk_name(DOMAIN) == "vdb"
    assert has_alias(DOMAIN, "ua-root")
    assert not has_alias(DOMAIN, "ua-other")


NUMA = "<cpu><numa><cell id='0' memory='1'{}/></numa></cpu></domain>"


@pytest.mark.parametrize(
    ("document", "shared"),
    [
        (DOMAIN, True),
        (DOMAIN.replace("shared", "private"), False),
        (DOMAIN.replace("<memoryBacking><access mode='shared'/></memoryBacking>", ""), False),
        (DOMAIN.replace("</domain>", NUMA.format(" memAccess='private'")), False),
        (DOMAIN.replace("shared", "private").replace("</domain>", NUMA.format(" memAccess='shared'")), True),
    ],
)
def test_memory_must_be_shared(document: str, shared: bool) -> None:
    if shared:
        require_shared_memory(document, "disk0")
        return
    with pytest.raises(IolaneError, match=r"disk0 can't reach .* the domain web .*memfd.*virsh edit web"):
        require_shared_memory(document, "disk0")


def test_only_qemu_has_them() -> None:
    require_qemu(DOMAIN)
    with pytest.raises(IolaneError, match="type lxc"):
        require_qemu(DOMAIN.replace("type='kvm'", "type='lxc'"))


def test_metadata_is_read_as_it_was_written() -> None:
    devices = [
        Attached(id="disk0", device="block,image=/a<b.raw", carrier="vhost-user", socket="/run/d.sock"),
        Attached(id="e", device="edu", carrier="vfio-user", socket="/run/e.sock", owner="64055:64055"),
    ]
    written = ET.tostring(attached_element(devices), encoding="unicode")
    assert read_attached(written) == devices
    assert read_attached(f"<domain><metadata>{written}</metadata></domain>") == devices
    assert attached_text(devices).startswith('<devices><device id="disk0"')  # libvirt adds the namespace
    assert read_attached(DOMAIN) == []


@pytest.mark.parametrize("document", ["<domain", "<d xmlns:i='urn:iolane:devices:1'><i:device id='a'/></d>"])
def test_metadata_that_can_not_be_read_is_refused(document: str) -> None:
    with pytest.raises(IolaneError, match="metadata in the domain can't be read"):
        read_attached(document)


def test_the_private_qemu_is_a_script() -> None:
    qemu = Qemu(
        ("/c/ld.so", "--library-path", "/c/l b", "/c/qemu"), "11.1.3", "x", {"QEMU_MODULE_DIR": "/c/m"}
    )
    assert emulator_script(qemu).splitlines() == [
        "#!/bin/sh",
        "export QEMU_MODULE_DIR=/c/m",
        'exec "${0%/*}/ld.so" --library-path \'/c/l b\' /c/qemu "$@"',
    ]
    assert version_numbers("QEMU emulator version 7.2.19 (Debian 1:7.2+dfsg-7)") == (7, 2, 19)
    assert version_numbers("?") == ()
