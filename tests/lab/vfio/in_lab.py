"""Runs in the lab: drives devices over the VFIO carrier and says what happened, one JSON object a line.

`python -m tests.lab.vfio.in_lab WHAT ADDRESS...`
"""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import astuple
from pathlib import Path
from typing import Any

from iolane.carriers.vfio import DmaMemory, VfioError, VfioFunction, open_function
from iolane.carriers.vfio.mediator import Mediator
from iolane.carriers.vfio_user import VfioUserClient
from iolane.devices.nvme.recorded_memory import NvmeMemory
from iolane.devices.nvme.registers import NvmeRegisters
from iolane.host.inventory import find_function
from iolane.host.nvme_admin import DriverAdmin
from iolane.host.nvme_secondary import SECONDARIES, parse_secondaries
from iolane.host.sriov import make_virtual_functions
from iolane.host.sysfs import Host
from iolane.host.taking import Taking
from iolane.host.taking import release as give_back
from iolane.host.verdict import Survey
from iolane.model.dma import Permission
from iolane.model.pci import PcieId
from iolane.model.trace import TraceLevel
from iolane.model.trace.recording import Recorder
from iolane.uapi.vfio import PciRegion
from tests.lab.vfio.binding import DEVICES, bind, release, virtual_functions
from tests.lab.vfio.edu import Edu, Line
from tests.lab.vfio.igbvf import Igbvf
from tests.lab.vfio.mediated import ClientFunction
from tests.lab.vfio.nvme import Nvme

HERE, READ_ONLY, GONE, NOWHERE, OTHERS = 0x10_0000, 0x20_0000, 0x30_0000, 0x200_0000, 0x500_0000
SIZE = 0x4000
MACS = (bytes.fromhex("020000000001"), bytes.fromhex("020000000002"))
SECRET = b"a secret of 16 b"


def say(what: str, **values: Any) -> None:
    print(json.dumps({"what": what, **values}), flush=True)


@contextlib.contextmanager
def held(address: PcieId) -> Iterator[VfioFunction]:
    bind(address)
    try:
        with open_function(address) as function:
            yield function
    finally:
        release(address)


def edu(address: PcieId) -> None:
    with held(address) as function:
        device = Edu(function)
        registers = device.registers
        registers.LIVENESS = 0x1234_5678
        say("edu", identification=int(registers.IDENTIFICATION), liveness=int(registers.LIVENESS))
        say("edu interrupts", came=[device.raise_interrupt(1 << bit) for bit in range(8)])
        with DmaMemory(function.space, HERE, SIZE) as memory:
            memory.view[:16] = SECRET
            done = device.to_device(HERE, 16), device.to_memory(HERE + 0x1000, 16)
            say("edu dma", done=done, equal=memory.view[0x1000:0x1010] == SECRET)
        device.msi.close()
        say("edu reset", possible=function.can_reset)
        if function.can_reset:
            function.reset()
            say("edu after reset", identification=int(registers.IDENTIFICATION))


def intx(address: PcieId) -> None:
    """A level: it is told again while it stands, and each time that it is raised; never otherwise."""
    rounds = 100
    with held(address) as function:
        line = Line(function)
        registers = line.registers

        def take_back(cause: int) -> bool:
            registers.ACKNOWLEDGE = cause
            line.end()
            return line.quiet()

        registers.RAISE = 1
        say("intx raised", came=line.came(), quiet=line.quiet(), host=line.of_the_host())
        line.end()  # of an interrupt that the guest did not handle
        say("intx still asserted", came=line.came(), quiet=line.quiet())
        say("intx taken back", quiet=take_back(1))
        registers.RAISE = 2
        say("intx raised again", came=line.came(), quiet=take_back(2))
        line.end()
        say("intx ended without one", quiet=line.quiet())
        line.group.mask(0)
        registers.RAISE = 4
        masked = line.quiet()
        line.group.unmask(0)
        say("intx masked", quiet=masked, came=line.came(), taken_back=take_back(4))
        before, came = line.of_the_host(), 0
        for _ in range(rounds):
            registers.RAISE = 1
            came += line.came()
            registers.ACKNOWLEDGE = 1
            line.end()
        quiet = line.quiet()
        say("intx rounds", rounds=rounds, came=came, host=line.of_the_host() - before, quiet=quiet)
        line.close()


def refused(function: VfioFunction, memory: DmaMemory) -> list[str]:
    """What the carrier refuses in the lab as against the fake."""
    told = []
    attempts: list[tuple[int, int]] = [(0xFEE0_0000, 0x1000), (HERE, 0x1000), (1 << 60, 0x1000)]
    for iova, size in attempts:
        try:
            function.space.map(iova, memory.address, size, Permission.READ)
            told.append("mapped")
        except VfioError as error:
            told.append(error.message)
    return told


def blocked(edu_address: PcieId, nvme_address: PcieId) -> None:
    """Everything that must not work. Each attempt says what memory holds afterwards."""
    with held(edu_address) as function, held(nvme_address) as other:
        device = Edu(function)
        memory = DmaMemory(function.space, HERE, SIZE)
        readable = DmaMemory(function.space, READ_ONLY, SIZE, Permission.READ)
        gone = DmaMemory(function.space, GONE, SIZE)
        others = DmaMemory(other.space, OTHERS, SIZE)
        for each in (readable, gone, others):
            each.view[:16] = SECRET
        say(
            "ranges", ranges=[str(item) for item in function.space.ranges], available=function.space.available
        )
        say("refused", words=refused(function, memory))
        memory.view[:16] = b"what edu writes!"
        say("loaded", done=device.to_device(HERE, 16))

        say("unmapped write", said=device.to_memory(NOWHERE, 16))
        say("read-only write", said=device.to_memory(READ_ONLY, 16), kept=readable.view[:16] == SECRET)
        gone.unmap()
        say("write after unmap", said=device.to_memory(GONE, 16), kept=gone.view[:16] == SECRET)
        say("other machine write", said=device.to_memory(OTHERS, 16), kept=others.view[:16] == SECRET)

        def leaked(iova: int) -> bool:
            device.to_device(HERE + 0x1000, 16)  # sixteen zeros
            device.to_device(iova, 16)
            device.to_memory(HERE + 0x2000, 16)
            return bool(memory.view[0x2000:0x2010] == SECRET)

        say("unmapped read", leaked=leaked(NOWHERE))
        say("read after unmap", leaked=leaked(GONE))
        say("other machine read", leaked=leaked(OTHERS))
        say("allowed read", leaked=leaked(READ_ONLY))  # the same way round, where it may

        # A message in the remappable format that names an entry that nobody made (VT-d 5.1.2.2).
        memory.view[:16] = bytes(16)
        device.to_device(HERE, 16)
        say("forged interrupt", said=device.to_memory(0xFEE0_0010 | 0x1FF0 << 5, 4))
        memory.view[:16] = SECRET
        say("after all that", works=device.to_device(HERE, 16) and device.to_memory(HERE + 0x3000, 16))
        say("content", equal=memory.view[0x3000:0x3010] == SECRET)
        device.msi.close()
        for each in (memory, readable, gone, others):
            each.close()


def nvme(address: PcieId) -> None:
    with held(address) as function:
        say("nvme before", reset=function.can_reset, vectors=function.irqs[2].count)
        device = Nvme(function)
        say("nvme", version=int(device.registers.VS), serial=device.identify()[4:24].decode().strip())
        block = device.read(0)
        pattern = bytes(range(256)) * 2
        device.write(4000, pattern)
        say("nvme dma", first=block.hex(), equal=device.read(4000) == pattern)
        times = []
        for _ in range(50):
            start = time.perf_counter()
            device.read(0)
            times.append(time.perf_counter() - start)
        say("nvme read, interrupt", median_us=sorted(times)[25] * 1e6)
        enabled = device.registers.CC.EN, device.registers.CSTS.RDY
        function.reset()
        say("nvme FLR", before=enabled, after=(int(device.registers.CC), device.registers.CSTS.RDY))
        device.close()


def nvme_vf(address: PcieId) -> None:
    """A virtual function, made and brought online by the host package: a controller with a disk."""
    (first, second) = make_virtual_functions(address, 2)
    try:
        function = find_function(Host(), address)
        with DriverAdmin(Host(), function) as admin:
            listed = parse_secondaries(admin.identify(SECONDARIES))
        say("nvme secondaries", listed=[astuple(each) for each in listed])
        with Taking([first]), open_function(first) as held_function:
            device = Nvme(held_function)
            data = device.identify()
            pattern = bytes(range(256)) * 2
            device.write(4000, pattern)
            say(
                "nvme vf",
                address=str(first),
                serial=data[4:24].decode().strip(),
                controller=int.from_bytes(data[78:80], "little"),
                first=device.read(0).hex(),
                equal=device.read(4000) == pattern,
            )
            device.close()
        verdict = Survey(Host()).verdict(second)
        say("nvme other vf", reasons=[each.text for each in verdict.reasons])
    finally:
        give_back([address])
    with DriverAdmin(Host(), function) as admin:
        say("nvme vfs gone", online=[each.online for each in parse_secondaries(admin.identify(SECONDARIES))])


def mediated(address: PcieId) -> None:
    """The controller behind a mediator: with all registers trapped, with everything mapped, and recorded."""
    maps = {0: NvmeRegisters}
    for name, trap in (("trapped", "*"), ("direct", None)):
        with held(address) as function, Mediator(function, "/run/mediator", maps=maps, trap=trap) as mediator:
            mediator.tracer.set(TraceLevel.REGISTERS)
            with VfioUserClient("/run/mediator") as client:
                client.negotiate()
                served = ClientFunction(client, address)
                mapped = [list(area) for area in served.region(0).mmap_areas]
                device = Nvme(served)
                pattern = bytes(range(255, -1, -1)) * 2
                device.write(4100, pattern)
                equal = device.read(4100) == pattern
                start = time.perf_counter()
                for _ in range(50):
                    device.read(0)
                microseconds = (time.perf_counter() - start) / 50 * 1e6
                device.close()
                served.close()
            counted = {item.name: item.reads + item.writes for item in mediator.tracer.counters("bar0.*")}
            say(f"mediated {name}", equal=equal, mapped=mapped, trapped=counted, read_us=microseconds)
    with Recorder("/lab/share/nvme.jsonl", memory=NvmeMemory()) as recorder, held(address) as function:
        with Mediator(function, "/run/mediator", maps=maps, recorder=recorder):
            with VfioUserClient("/run/mediator") as client:
                client.negotiate()
                served = ClientFunction(client, address)
                device = Nvme(served)
                cap, version = int(device.registers.CAP), int(device.registers.VS)
                device.identify()
                device.write(4200, bytes(512))
                device.read(4200)
                device.close()
                served.close()
    say("mediated recorded", events=recorder.events, cap=cap, version=version)


def igb(address: PcieId) -> None:
    """Two virtual functions: one sends to the other, through the NIC's own switch."""
    functions = virtual_functions(address, 2)
    name = next((sysfs(address) / "net").iterdir()).name
    subprocess.run(["/lab/bin/ip", "link", "set", name, "up"], check=True)
    with contextlib.ExitStack() as stack:
        held_functions = [stack.enter_context(held(each)) for each in functions]
        groups = [int((sysfs(each) / "iommu_group").resolve().name) for each in functions]
        say("igb", functions=[str(each) for each in functions], groups=groups)
        sender, receiver = [Igbvf(each, mac) for each, mac in zip(held_functions, MACS, strict=True)]
        say("igb vectors", came=[sender.interrupt(vector) for vector in range(3)])
        frame = receiver.mac + sender.mac + struct.pack(">H", 0x88B5) + bytes(range(200))
        sent = sender.send(frame)
        say("igb dma", sent=sent, equal=receiver.receive()[: len(frame)] == frame)
        status = held_functions[0].read(PciRegion.CONFIG, 0, 4).hex()
        say("igb identity", config=status)
        enabled = sender.registers.TXDCTL.ENABLE
        held_functions[0].reset()
        say("igb FLR", before=enabled, after=sender.registers.TXDCTL.ENABLE)
        sender.close()
        receiver.close()
    (sysfs(address) / "sriov_numvfs").write_text("0")


def last_act(address: PcieId) -> None:
    """One blocked write. AMD-Vi of Linux 6.1 may not survive the fault."""
    with held(address) as function:
        device = Edu(function)
        gone = DmaMemory(function.space, GONE, SIZE)
        gone.view[:16] = SECRET
        memory = DmaMemory(function.space, HERE, SIZE)
        memory.view[:16] = b"what edu writes!"
        say("loaded", done=device.to_device(HERE, 16))
        gone.unmap()
        say("about to write")
        device.to_memory(GONE, 16)
        say("blocked write", kept=gone.view[:16] == SECRET)


def sysfs(address: PcieId) -> Path:
    return DEVICES / str(address)


WHAT: dict[str, Callable[..., None]] = {
    "edu": edu,
    "blocked": blocked,
    "intx": intx,
    "nvme": nvme,
    "nvme_vf": nvme_vf,
    "mediated": mediated,
    "igb": igb,
    "last_act": last_act,
}

if __name__ == "__main__":
    WHAT[sys.argv[1]](*(PcieId.from_string(text) for text in sys.argv[2:]))
