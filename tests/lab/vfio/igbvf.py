"""A virtual function of the 82576 (igb) from Python over VFIO: mailbox, one ring each way, MSI-X.

Registers are those of Intel's 82576 datasheet, section 8.26 (virtual function device registers).
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable

from iolane.carriers.vfio import DmaMemory, Vectors, VfioFunction
from iolane.model.registers import Field, Register32, RegisterMap, register, register_array
from iolane.uapi.vfio import PciIrq

BASE = 0x2_0000_0000
RING, ENTRIES = 8 * 16, 8
TX_RING, RX_RING, TX_DATA, RX_DATA = 0x0000, 0x1000, 0x2000, 0x3000
RESET, SET_MAC = 0x01, 0x02
ACK, NACK, CLEAR_TO_SEND = 1 << 31, 1 << 30, 1 << 29
WAIT_S, TRIES = 5.0, 6


class Mailbox(Register32):
    """V2PMAILBOX: towards the physical function's driver."""

    REQ = Field(0)
    ACK = Field(1)
    VFU = Field(2, doc="the virtual function owns the buffer")
    PFU = Field(3)
    PFSTS = Field(4, doc="a message of the physical function")
    PFACK = Field(5)
    RSTI = Field(6)
    RSTD = Field(7)


class QueueControl(Register32):
    ENABLE = Field(25)


class IgbvfRegisters(RegisterMap):
    """BAR 0."""

    CTRL = register(0x0000, Register32)
    STATUS = register(0x0008, Register32, access="ro")
    MBMEM = register_array(0x0800, Register32, 16)
    MAILBOX = register(0x0C40, Mailbox)
    EICS = register(0x1520, Register32, access="wo")
    EIMS = register(0x1524, Register32)
    EIAC = register(0x152C, Register32)
    IVAR = register(0x1700, Register32, doc="receive vector of queue 0 in bits 7:0, transmit in 15:8")
    RDBAL = register(0x2800, Register32)
    RDBAH = register(0x2804, Register32)
    RDLEN = register(0x2808, Register32)
    SRRCTL = register(0x280C, Register32)
    RDH = register(0x2810, Register32)
    RDT = register(0x2818, Register32)
    RXDCTL = register(0x2828, QueueControl)
    TDBAL = register(0x3800, Register32)
    TDBAH = register(0x3804, Register32)
    TDLEN = register(0x3808, Register32)
    TDH = register(0x3810, Register32)
    TDT = register(0x3818, Register32)
    TXDCTL = register(0x3828, QueueControl)


class Igbvf:
    """The virtual function, reset by mailbox, with rings."""

    def __init__(self, function: VfioFunction, mac: bytes, iova: int = BASE) -> None:
        function.reset()  # FLR
        function.set_command()
        self.base = iova
        self.memory = DmaMemory(function.space, iova, 1 << 14)
        self.vectors = Vectors(function, PciIrq.MSIX, 3)
        self.registers = function.registers(0, IgbvfRegisters)
        self._reset(mac)
        self._rings()

    def _comes_true(self, true: Callable[[], object]) -> bool:
        deadline = time.monotonic() + WAIT_S
        while not true():
            if time.monotonic() >= deadline:
                return False
        return True

    def _message(self, *words: int) -> list[int]:
        """Send a message to the physical function's driver, take its answer.

        A message of the driver's own (the link changed) may overwrite ours in the shared buffer: it is sent
        again then.
        """
        registers = self.registers
        for _ in range(TRIES):
            registers.MAILBOX = Mailbox.make(VFU=1)
            for place, word in enumerate(words):
                registers.MBMEM[place] = word
            registers.MAILBOX = Mailbox.make(REQ=1)
            if self._comes_true(lambda: int(registers.MBMEM[0]) & (ACK | NACK)):
                break
        else:
            raise AssertionError("no answer by mailbox")
        answer = [int(word) for word in list(registers.MBMEM)[:3]]
        registers.MAILBOX = Mailbox.make(ACK=1)
        return answer

    def _reset(self, mac: bytes) -> None:
        """Reset; the answer is a failure where nobody gave us an address, so we say ours."""
        assert self._message(RESET)[0] & 0xFFFF == RESET
        answer = self._message(SET_MAC, *struct.unpack("<II", mac.ljust(8, b"\0")))
        assert answer[0] & ~CLEAR_TO_SEND == SET_MAC | ACK, f"the address was answered {answer[0]:#x}"
        self.mac = mac

    def _rings(self) -> None:
        registers, base = self.registers, self.base
        registers.EIMS = registers.EIAC = 0x7
        registers.IVAR = 0x8180  # receive: vector 0, transmit: vector 1
        registers.TDBAL, registers.TDBAH = (base + TX_RING) & 0xFFFF_FFFF, base >> 32
        registers.TDLEN = RING
        registers.TXDCTL = QueueControl.make(ENABLE=1)
        registers.RDBAL, registers.RDBAH = (base + RX_RING) & 0xFFFF_FFFF, base >> 32
        registers.RDLEN = RING
        registers.SRRCTL = 2 | 1 << 25  # 2 KiB buffers, advanced descriptors of one buffer
        registers.RXDCTL = QueueControl.make(ENABLE=1)
        enabled = self._comes_true(lambda: registers.TXDCTL.ENABLE and registers.RXDCTL.ENABLE)
        assert enabled, "queues are not enabled"
        self.memory.view[RX_RING : RX_RING + 16] = struct.pack("<QQ", base + RX_DATA, 0)
        registers.RDT = 1

    def interrupt(self, vector: int) -> bool:
        self.registers.EICS = 1 << vector
        return self.vectors.wait(vector) > 0

    def send(self, frame: bytes) -> bool:
        """Send one frame; whether its descriptor says that it is done."""
        view = self.memory.view
        view[TX_DATA : TX_DATA + len(frame)] = frame
        # Advanced data descriptor: DEXT, RS, IFCS, EOP (7.2.2.3).
        command = len(frame) | 3 << 20 | 1 << 24 | 1 << 25 | 1 << 27 | 1 << 29
        slot = TX_RING + 16 * int(self.registers.TDT)
        view[slot : slot + 16] = struct.pack("<QII", self.base + TX_DATA, command, len(frame) << 14)
        self.registers.TDT = (self.registers.TDT + 1) % ENTRIES
        self.vectors.wait(1)
        return bool(view[slot + 12] & 1)

    def receive(self) -> bytes:
        """The first frame that came."""
        self.vectors.wait(0)
        _, status, length = struct.unpack_from("<QIH", self.memory.view, RX_RING)
        assert status & 1, "no frame came"
        return bytes(self.memory.view[RX_DATA : RX_DATA + length])

    def close(self) -> None:
        self.vectors.close()
        self.memory.close()
