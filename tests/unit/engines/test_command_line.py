import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from iolane.engines.qemu.command_line import (
    Accelerator,
    Hardware,
    VfioUserDevice,
    command_line,
    kernel_parameters,
    place_devices,
)
from iolane.errors import IolaneError


def hardware(**changes: Any) -> Hardware:
    values: dict[str, Any] = {
        "name": "test",
        "accelerator": Accelerator.TCG,
        "qmp_fd": 7,
        "console_fd": 8,
        "agent_fd": 9,
        **changes,
    }
    return Hardware(**values)


def values(arguments: list[str], option: str) -> list[str]:
    return [after for before, after in itertools.pairwise(arguments) if before == option]


def test_memory_can_be_shared_with_device_servers() -> None:
    arguments = command_line(hardware(memory_mib=300))
    assert "memory-backend-memfd,id=ram,size=300M,share=on" in values(arguments, "-object")
    assert "memory-backend=ram" in values(arguments, "-machine")[0]
    assert values(arguments, "-m") == ["300M"]


def test_channels_are_inherited_descriptors() -> None:
    arguments = command_line(hardware())
    assert values(arguments, "-chardev") == [
        "socket,id=qmp,fd=7",
        "socket,id=console,fd=8",
        "socket,id=agent,fd=9",
    ]
    serial = [device for device in values(arguments, "-device") if device.startswith("isa-serial")]
    assert serial == ["isa-serial,chardev=console,index=0", "isa-serial,chardev=agent,index=1"]
    assert "agent" not in " ".join(command_line(hardware(agent_fd=None)))


def test_devices_sit_behind_root_ports() -> None:
    devices = [
        VfioUserDevice("a", Path("/run/a.sock"), bootindex=1),
        VfioUserDevice("b", Path("/run/b,c.sock"), port="port1", posted_writes=False),
    ]
    arguments = values(command_line(hardware(devices=devices, ports=2)), "-device")
    assert "pcie-root-port,id=port2,bus=pcie.0,chassis=2,slot=2" in arguments
    assert [json.loads(device) for device in arguments if device.startswith("{")] == [
        {
            "driver": "vfio-user-pci",
            "id": "a",
            "bus": "port2",
            "socket": {"type": "unix", "path": "/run/a.sock"},
            "bootindex": 1,
        },
        {
            "driver": "vfio-user-pci",
            "id": "b",
            "bus": "port1",
            "socket": {"type": "unix", "path": "/run/b,c.sock"},
            "x-no-posted-writes": True,
        },
    ]


def test_virtual_functions_sit_behind_their_physical_one() -> None:
    device = VfioUserDevice("a", Path("/run/a.sock"), virtual=[Path("/run/0.sock"), Path("/run/1.sock")])
    arguments = values(command_line(hardware(devices=[device], ports=1)), "-device")
    made = [json.loads(device) for device in arguments if device.startswith("{")]
    assert [(each["id"], each["bus"], each["addr"], each.get("multifunction")) for each in made] == [
        ("a", "port1", "0.0", True),
        ("a-vf0", "port1", "0.1", None),
        ("a-vf1", "port1", "0.2", None),
    ]
    assert [each["socket"]["path"] for each in made] == ["/run/a.sock", "/run/0.sock", "/run/1.sock"]


def test_devices_that_do_not_fit_are_refused() -> None:
    a, b = VfioUserDevice("a", Path("a")), VfioUserDevice("b", Path("b"))
    with pytest.raises(IolaneError, match="2 devices but only 1 root ports"):
        place_devices([a, b], 1)
    with pytest.raises(IolaneError, match="same id"):
        place_devices([a, a], 4)
    with pytest.raises(IolaneError, match="no root port port9"):
        place_devices([VfioUserDevice("a", Path("a"), port="port9")], 4)
    with pytest.raises(IolaneError, match="taken"):
        place_devices([VfioUserDevice(name, Path(name), port="port1") for name in "ab"], 4)


def test_iommu_comes_before_the_devices_and_the_kernel_uses_it() -> None:
    given = hardware(iommu=True, kernel=Path("/k"), devices=[VfioUserDevice("a", Path("/a"))])
    devices = values(command_line(given), "-device")
    iommu = devices.index("intel-iommu,caching-mode=on")
    assert all(iommu < i for i, device in enumerate(devices) if device.startswith(("{", "pcie")))
    assert "intel_iommu=on" in kernel_parameters(given)


def test_kernel_parameters_of_the_caller_win() -> None:
    given = hardware(kernel=Path("/k"), initrd=Path("/i"), append=["console=ttyS0", "loglevel=7"])
    assert kernel_parameters(given)[-2:] == ["console=ttyS0", "loglevel=7"]
    assert "quiet" in kernel_parameters(given)
    assert "quiet" not in kernel_parameters(hardware(quick=False))
    arguments = command_line(given)
    assert values(arguments, "-kernel") == ["/k"]
    assert values(arguments, "-initrd") == ["/i"]


def test_booting_from_a_device() -> None:
    arguments = command_line(hardware(devices=[VfioUserDevice("a", Path("/a"), bootindex=0)]))
    assert "-kernel" not in arguments
    assert "-append" not in arguments
    with pytest.raises(IolaneError, match="initrd without a kernel"):
        command_line(hardware(initrd=Path("/i")))


def test_accelerators() -> None:
    assert values(command_line(hardware()), "-accel") == ["tcg,thread=multi"]
    with_kvm = command_line(hardware(accelerator=Accelerator.KVM, iommu=True))
    assert values(with_kvm, "-accel") == ["kvm"]
    assert values(with_kvm, "-cpu") == ["host"]
    assert "kernel-irqchip=split" in values(with_kvm, "-machine")[0]
    assert values(command_line(hardware(cpu_model="Nehalem")), "-cpu") == ["Nehalem"]


def test_switches() -> None:
    assert "-S" in command_line(hardware(paused=True))
    assert "-S" not in command_line(hardware())
    assert values(command_line(hardware()), "-action") == ["reboot=shutdown"]
    assert values(command_line(hardware(reboot_stops=False)), "-action") == []
    assert command_line(hardware(extra=("-d", "guest_errors")))[-2:] == ["-d", "guest_errors"]
