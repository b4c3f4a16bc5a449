"""The lab's hardware: what the command line means, and what QEMU is told."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from iolane.engines.qemu.command_line import Accelerator, Hardware, command_line
from iolane.errors import IolaneError
from iolane.lab.hardware import (
    DEFAULT_DEVICES,
    Iommu,
    Kind,
    LabDevice,
    board,
    device_arguments,
    kernel_parameters,
    parse_device,
    parse_size,
    place,
)


def values(arguments: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == option]


def test_a_device_is_a_kind_with_options(tmp_path: Path) -> None:
    image = tmp_path / "a,b.raw"
    image.touch()
    assert parse_device("igb") == LabDevice(Kind.IGB)
    doubled = str(image).replace(",", ",,")
    assert parse_device(f"nvme,image={doubled},vfs=2,id=disk") == LabDevice(
        Kind.NVME, id="disk", image=image, vfs=2
    )
    assert parse_device("nvme,size=1G").size == 1 << 30
    assert parse_device("edu,dma_mask=0xffffffff").dma_mask == 0xFFFFFFFF
    assert parse_device("e1000e,net=unix:/run/a.sock,mac=52:54:00:00:00:09").net == "unix:/run/a.sock"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nvmee", "did you mean nvme"),
        ("", "there are igb, nvme, e1000e, edu"),
        ("igb,image=x", r"'image=x' means nothing to igb.*it has id=, net=, mac="),
        ("nvme,size", "'size' means nothing"),
        ("nvme,size=", "'size=' means nothing"),
        ("nvme,size=12q", "'12q' is not a size"),
        ("nvme,size=100", "size 100 is not whole sectors"),
        ("nvme,vfs=many", "vfs=many is not a number"),
        ("nvme,vfs=-1", "vfs=-1 is not"),
        ("nvme,image=/nowhere/at/all", "no such image"),
        ("nvme,size=64M,size=65M", "size is given twice"),
        ("igb,net=other", "net=other is not known"),
        ("igb,mac=53:54:00:00:00:01", "not the address of one station"),
        ("igb,id=a b", "not an id"),
        ("edu,dma_mask=0", "not a mask"),
    ],
)
def test_a_wrong_device_is_refused_by_name(text: str, message: str) -> None:
    with pytest.raises(IolaneError, match=message) as caught:
        parse_device(text)
    assert f"device '{text}'" in str(caught.value)


def test_sizes() -> None:
    assert [parse_size(text) for text in ("512", "4K", "64m", "2G")] == [512, 4096, 64 << 20, 2 << 30]


def test_ids_and_addresses() -> None:
    """The n-th PCI Express device is behind the n-th root port, on bus n; edu is on bus 0."""
    placed = place(DEFAULT_DEVICES)
    assert [(each.id, str(each.address)) for each in placed] == [
        ("igb0", "0000:01:00.0"),
        ("nvme0", "0000:02:00.0"),
        ("e1000e0", "0000:03:00.0"),
        ("edu0", "0000:00:08.0"),
    ]
    two = place([LabDevice(Kind.NVME), LabDevice(Kind.NVME, id="second"), LabDevice(Kind.NVME)])
    assert [each.id for each in two] == ["nvme0", "second", "nvme2"]


def test_what_can_not_be_placed_is_refused() -> None:
    with pytest.raises(IolaneError, match="two devices are called a"):
        place([LabDevice(Kind.IGB, id="a"), LabDevice(Kind.NVME, id="a")])
    with pytest.raises(IolaneError, match="too many"):
        place([LabDevice(Kind.NVME)] * 16)
    with pytest.raises(IolaneError, match="too many"):
        place([LabDevice(Kind.EDU)] * 9)


def test_arguments_of_the_devices() -> None:
    placed = place([LabDevice(Kind.IGB, net="hub"), LabDevice(Kind.NVME, vfs=2), LabDevice(Kind.EDU)])
    arguments = device_arguments(placed, {"nvme0": Path("/tmp/a,b.raw")})
    devices = values(arguments, "-device")
    assert devices[:2] == [
        "pcie-root-port,id=rp1,bus=pcie.0,addr=0x10,chassis=1,slot=1",
        "pcie-root-port,id=rp2,bus=pcie.0,addr=0x11,chassis=2,slot=2",
    ]
    assert "igb,id=igb0,bus=rp1,mac=52:54:00:1a:b0:01,romfile=,netdev=igb0.net" in devices
    assert values(arguments, "-netdev") == ["hubport,id=igb0.net,hubid=0"]
    [controller] = [each for each in devices if each.startswith("nvme,")]
    assert "subsys=nvme0.subsys,sriov_max_vfs=2,sriov_vq_flexible=4,sriov_vi_flexible=4," in controller
    assert controller.endswith("max_ioqpairs=68,msix_qsize=69")  # 64 and 65 are its own
    assert "file=/tmp/a,,b.raw" in values(arguments, "-drive")[0]
    assert devices[-1] == "edu,id=edu0,addr=0x8,dma_mask=0xfffffff"


@pytest.mark.parametrize(
    ("net", "expected"),
    [
        ("user", ["user,id=igb0.net"]),
        ("none", []),
        ("unix:/run/peer", ["stream,id=igb0.net,server=off,addr.type=unix,addr.path=/run/peer"]),
    ],
)
def test_networks(net: str, expected: list[str]) -> None:
    arguments = device_arguments(place([LabDevice(Kind.IGB, net=net)]), {})
    assert values(arguments, "-netdev") == expected


@pytest.mark.parametrize(
    ("iommu", "device"),
    [(Iommu.VTD, "intel-iommu,intremap=on"), (Iommu.AMD, "amd-iommu,intremap=on,dma-remap=on")],
)
def test_the_iommu_comes_before_everything_it_is_to_translate(iommu: Iommu, device: str) -> None:
    arguments = command_line(
        Hardware(
            name="lab",
            accelerator=Accelerator.TCG,
            board=board(iommu),
            ports=0,
            extra=device_arguments(place([LabDevice(Kind.EDU)]), {}),
        )
    )
    pci = [each for each in values(arguments, "-device") if not each.startswith("isa-")]
    assert pci[0] == device
    [machine] = values(arguments, "-machine")
    assert "kernel-irqchip=split" in machine
    assert "sata" not in machine  # the chipset's functions share a group
    assert "smbus" not in machine


def test_a_lab_without_iommu() -> None:
    assert board(Iommu.NONE).first == ()
    assert kernel_parameters(Iommu.NONE) == []
    assert kernel_parameters(Iommu.VTD) == ["intel_iommu=on"]
