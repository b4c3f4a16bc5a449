"""A host whose files react to writes as Linux's do: drivers bind, virtual functions come and go."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable

from iolane.host.sysfs import WRITE_DEADLINE, Host, HostError
from tests.unit.host.machine import Machine


class Kernel(Host):
    """The machine's kernel. `observe` is called with each path written, before and after its effect."""

    def __init__(self, machine: Machine) -> None:
        super().__init__(machine.root)
        self.machine = machine
        self.matches: dict[str, str] = {}
        """Function -> the driver whose table has it."""
        self.refuse_probe: set[tuple[str, str]] = set()
        """Driver and function whose probe fails."""
        self.log: list[tuple[str, str]] = []
        self.observe: Callable[[str], None] = lambda path: None

    def write(self, path: str, text: str, *, deadline: float = WRITE_DEADLINE) -> None:
        self.observe(path)
        if not self.exists(path):
            raise HostError(f"{path}: no such file", number=errno.ENOENT)
        self.log.append((path, text))
        self._react(path, text.strip())
        self.observe(path)

    def _react(self, path: str, text: str) -> None:
        folder, name = path.rsplit("/", 1)
        if name == "driver_override":
            self.machine.file(path, f"{text or '(null)'}\n")
        elif name == "unbind":
            self._unbind(text)
        elif name == "drivers_probe":
            self._probe(text)
        elif name == "sriov_numvfs":
            self._make(folder.rsplit("/", 1)[1], int(text))
        elif name == "sriov_drivers_autoprobe":
            self.machine.file(path, f"{text}\n")
        else:
            raise AssertionError(f"nobody should write {path}")

    def _unbind(self, address: str) -> None:
        driver = self.link(f"/sys/bus/pci/devices/{address}/driver")
        if driver is None:
            raise HostError(f"{address} is not bound", number=errno.ENODEV)
        self.path(f"/sys/bus/pci/devices/{address}/driver").unlink()
        self.path(f"/sys/bus/pci/drivers/{driver}/{address}").unlink()

    def _probe(self, address: str) -> None:
        """drivers_probe says nothing about failure: the function just stays unbound."""
        folder = f"/sys/bus/pci/devices/{address}"
        override = self.read(f"{folder}/driver_override")
        driver = self.matches.get(address) if override == "(null)" else override
        known = driver is not None and self.exists(f"/sys/bus/pci/drivers/{driver}")
        if self.link(f"{folder}/driver") is None and known and (driver, address) not in self.refuse_probe:
            assert driver is not None
            self.machine.bind(address, driver)

    def _make(self, parent: str, count: int) -> None:
        folder = f"sys/bus/pci/devices/{parent}"
        present = int(self.read(f"{folder}/sriov_numvfs") or "0")
        if present and count:
            raise HostError("virtual functions are there already", number=errno.EBUSY)
        for number in range(present):
            self._remove(f"0000:01:{0x10 + number // 8:02x}.{number % 8}")
            self.path(f"{folder}/virtfn{number}").unlink()
        for number in range(count):
            address = f"0000:01:{0x10 + number // 8:02x}.{number % 8}"
            made = self.machine.function(address, ids="8086:10ca", group=40 + number)
            real = str(self.path(folder).resolve().relative_to(self.root.resolve()))
            self.machine.link(f"{made}/physfn", real)
            self.machine.link(f"{real}/virtfn{number}", made)
            self.matches[address] = "igbvf"
            if self.read(f"{folder}/sriov_drivers_autoprobe") != "0":
                self._probe(address)
        self.machine.file(f"{folder}/sriov_numvfs", f"{count}\n")

    def _remove(self, address: str) -> None:
        if self.link(f"/sys/bus/pci/devices/{address}/driver") is not None:
            self._unbind(address)
        group = self.link(f"/sys/bus/pci/devices/{address}/iommu_group")
        self.path(f"/sys/kernel/iommu_groups/{group}/devices/{address}").unlink()
        folder = self.path(f"/sys/bus/pci/devices/{address}")
        for path in sorted(folder.resolve().rglob("*"), reverse=True):
            path.unlink() if path.is_symlink() or path.is_file() else path.rmdir()
        folder.resolve().rmdir()
        folder.unlink()

    def state(self) -> dict[str, tuple[str | None, ...]]:
        """Driver, override, number of virtual functions and their autoprobe of each function."""
        return {
            address: (
                self.link(f"/sys/bus/pci/devices/{address}/driver"),
                *(
                    self.read(f"/sys/bus/pci/devices/{address}/{name}")
                    for name in ("driver_override", "sriov_numvfs", "sriov_drivers_autoprobe")
                ),
            )
            for address in self.names("/sys/bus/pci/devices")
        }


def die_at(step: int) -> Callable[[str], None]:
    """An observer that kills this process by SIGKILL at a step, counted from 0."""
    steps = iter(range(10_000))

    def observe(path: str) -> None:
        if next(steps) == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return observe
