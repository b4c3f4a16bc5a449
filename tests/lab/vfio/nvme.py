"""An NVMe controller from Python over VFIO: an admin queue, one I/O queue, MSI-X for both."""

from __future__ import annotations

import time

from iolane.carriers.vfio import DmaMemory, Vectors, VfioFunction
from iolane.devices.nvme.registers import AdminQueueAttributes, Configuration, NvmeRegisters
from iolane.devices.nvme.spec import AdminOpcode, IoOpcode
from iolane.devices.nvme.structures import COMPLETION, ENTRY, CompletionEntry, SubmissionEntry
from iolane.uapi.vfio import PciIrq
from tests.lab.vfio.mediated import ClientFunction, ClientMemory

BASE = 0x1_0000_0000
ENTRIES = 16
SQ, CQ, DATA = (0x0000, 0x2000), (0x1000, 0x3000), 0x8000
READY_S = 20.0


class Nvme:
    """The controller, enabled."""

    def __init__(self, function: VfioFunction | ClientFunction) -> None:
        function.reset()  # FLR
        function.set_command()
        self.memory: DmaMemory | ClientMemory
        if isinstance(function, ClientFunction):
            self.memory = function.memory(BASE, 1 << 16)
        else:
            self.memory = DmaMemory(function.space, BASE, 1 << 16)
        self.vectors = Vectors(function, PciIrq.MSIX, 2)
        self.registers = function.registers(0, NvmeRegisters)
        self.tails, self.heads, self.phases = [0, 0], [0, 0], [1, 1]
        self._enable()

    def _wait_ready(self, ready: int) -> None:
        deadline = time.monotonic() + READY_S
        while ready != self.registers.CSTS.RDY:
            assert time.monotonic() < deadline, "the controller does not get ready"

    def _enable(self) -> None:
        registers = self.registers
        registers.CC = Configuration.make()
        self._wait_ready(0)
        registers.AQA = AdminQueueAttributes.make(ASQS=ENTRIES - 1, ACQS=ENTRIES - 1)
        registers.ASQ = BASE + SQ[0]
        registers.ACQ = BASE + CQ[0]
        registers.CC = Configuration.make(EN=1, IOSQES=6, IOCQES=4)
        self._wait_ready(1)
        size = (ENTRIES - 1) << 16
        self.command(0, AdminOpcode.CREATE_CQ, prp1=BASE + CQ[1], cdw10=size | 1, cdw11=1 << 16 | 3)
        self.command(0, AdminOpcode.CREATE_SQ, prp1=BASE + SQ[1], cdw10=size | 1, cdw11=1 << 16 | 1)

    def command(self, queue: int, opcode: int, **fields: int) -> CompletionEntry:
        """Submit a command, wait for its interrupt, take its completion."""
        fields |= {"opcode": opcode, "cid": self.tails[queue]}
        entry = SubmissionEntry(*(fields.get(name, 0) for name in SubmissionEntry._fields))
        slot = SQ[queue] + 64 * self.tails[queue]
        self.memory.view[slot : slot + 64] = ENTRY.pack(*entry)
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES
        self.registers.DOORBELL[2 * queue] = self.tails[queue]
        assert self.vectors.wait(queue), f"no interrupt of queue {queue}"
        slot = CQ[queue] + 16 * self.heads[queue]
        completion = CompletionEntry._make(COMPLETION.unpack(self.memory.view[slot : slot + 16]))
        assert completion.phase == self.phases[queue]
        self.heads[queue] = (self.heads[queue] + 1) % ENTRIES
        self.phases[queue] ^= self.heads[queue] == 0
        self.registers.DOORBELL[2 * queue + 1] = self.heads[queue]
        return completion

    def identify(self) -> bytes:
        assert self.command(0, AdminOpcode.IDENTIFY, prp1=BASE + DATA, cdw10=1).status == 0
        return bytes(self.memory.view[DATA : DATA + 4096])

    def read(self, lba: int) -> bytes:
        """512 bytes of namespace 1."""
        assert self.command(1, IoOpcode.READ, nsid=1, prp1=BASE + DATA, cdw10=lba).status == 0
        return bytes(self.memory.view[DATA : DATA + 512])

    def write(self, lba: int, data: bytes) -> None:
        self.memory.view[DATA : DATA + 512] = data
        assert self.command(1, IoOpcode.WRITE, nsid=1, prp1=BASE + DATA, cdw10=lba).status == 0

    def read_to(self, iova: int) -> int:
        """Read a block to any address; the status."""
        return self.command(1, IoOpcode.READ, nsid=1, prp1=iova).status

    def close(self) -> None:
        self.vectors.close()
        self.memory.close()
