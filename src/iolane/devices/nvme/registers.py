"""Registers of an NVMe controller over PCI Express (Base 3.1.3; PCIe Transport 3.1.2)."""

from __future__ import annotations

from iolane.devices.nvme.spec import CommandSetSelected, ShutdownNotification, ShutdownStatus
from iolane.model.registers import (
    Field,
    Register32,
    Register64,
    RegisterMap,
    register,
    register_array,
)

BAR_SIZE = 0x2000
MAX_QUEUE_ENTRIES = 1024
"""Entries of an I/O queue; CAP.MQES is one less."""
MAX_PAGE_SHIFT = 4
"""CAP.MPSMAX: memory pages up to 4 KiB << 4."""
READY_TIMEOUT = 20
"""CAP.TO and CRTO, in units of 500 ms: a reset waits for commands that are at the back end."""


class Capabilities(Register64):
    """Controller Capabilities."""

    MQES = Field(15, 0, reset=MAX_QUEUE_ENTRIES - 1, doc="maximum queue entries supported, 0's based")
    CQR = Field(16, reset=1, doc="contiguous queues required")
    AMS = Field(18, 17, doc="arbitration mechanisms besides round robin")
    TO = Field(31, 24, reset=READY_TIMEOUT, doc="timeout of enable and reset, 500 ms")
    DSTRD = Field(35, 32, doc="doorbell stride: 4 bytes << DSTRD")
    NSSRS = Field(36, doc="subsystem reset supported")
    CSS = Field(44, 37, reset=0x41, doc="command sets: bit 0 NVM, bit 6 one or more I/O command sets")
    BPS = Field(45, doc="boot partitions")
    CPS = Field(47, 46, doc="controller power scope")
    MPSMIN = Field(51, 48, doc="smallest memory page, 4 KiB << MPSMIN")
    MPSMAX = Field(55, 52, reset=MAX_PAGE_SHIFT, doc="largest memory page, 4 KiB << MPSMAX")
    PMRS = Field(56, doc="persistent memory region")
    CMBS = Field(57, doc="controller memory buffer")
    NSSS = Field(58, doc="subsystem shutdown")
    CRMS = Field(60, 59, reset=1, doc="controller ready modes: bit 0 with media")


class Configuration(Register32):
    """Controller Configuration."""

    EN = Field(0, doc="enable")
    CSS = Field(6, 4, values=CommandSetSelected, doc="I/O command set selected")
    MPS = Field(10, 7, doc="memory page size, 4 KiB << MPS")
    AMS = Field(13, 11, doc="arbitration mechanism")
    SHN = Field(15, 14, values=ShutdownNotification, doc="shutdown notification")
    IOSQES = Field(19, 16, doc="I/O submission queue entry size, 2^n")
    IOCQES = Field(23, 20, doc="I/O completion queue entry size, 2^n")


class ControllerStatus(Register32):
    """Controller Status."""

    RDY = Field(0, doc="ready")
    CFS = Field(1, doc="controller fatal status")
    SHST = Field(3, 2, values=ShutdownStatus, doc="shutdown status")
    NSSRO = Field(4, access="w1c", doc="subsystem reset occurred")
    PP = Field(5, doc="processing paused")


class AdminQueueAttributes(Register32):
    """Admin Queue Attributes."""

    ASQS = Field(11, 0, doc="admin submission queue entries, 0's based")
    ACQS = Field(27, 16, doc="admin completion queue entries, 0's based")


class QueueBase(Register64):
    """Base address of an admin queue."""

    BASE = Field(63, 12)


class ReadyTimeouts(Register32):
    """Controller Ready Timeouts."""

    CRWMT = Field(15, 0, reset=READY_TIMEOUT, doc="ready with media, 500 ms")
    CRIMT = Field(31, 16, doc="ready independent of media, 500 ms")


class NvmeRegisters(RegisterMap):
    """BAR 0. Doorbells fill it, so that a write to one of no queue can be reported."""

    CAP = register(0x00, Capabilities, access="ro", doc="controller capabilities")
    VS = register(0x08, Register32, access="ro", reset=0x00020000, doc="version 2.0")
    INTMS = register(0x0C, Register32, doc="interrupt mask set: writing 1 masks, reads the mask")
    INTMC = register(0x10, Register32, doc="interrupt mask clear: writing 1 unmasks, reads the mask")
    CC = register(0x14, Configuration, doc="controller configuration")
    CSTS = register(0x1C, ControllerStatus, access="ro", doc="controller status")
    AQA = register(0x24, AdminQueueAttributes, doc="admin queue attributes")
    ASQ = register(0x28, QueueBase, doc="admin submission queue base address")
    ACQ = register(0x30, QueueBase, doc="admin completion queue base address")
    CMBSZ = register(0x3C, Register32, access="ro", doc="controller memory buffer size: there is none")
    CRTO = register(0x68, ReadyTimeouts, access="ro", doc="controller ready timeouts")
    DOORBELL = register_array(
        0x1000, Register32, (BAR_SIZE - 0x1000) // 4, access="wo", doc="SQ y tail at 2y, CQ y head at 2y + 1"
    )


def page_size(configuration: Configuration) -> int:
    """Bytes of a memory page (CC.MPS)."""
    return 4096 << configuration.MPS
