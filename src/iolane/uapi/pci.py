"""PCI's constants (include/uapi/linux/pci_regs.h); those of PCI Express and its extended capabilities are in
`pcie`. Members bear the header's names, less the prefix that the class stands for: `Command.MASTER` is
PCI_COMMAND_MASTER. A test compares them with the header.
"""

from enum import IntEnum, IntFlag

CFG_SPACE_SIZE = 0x100
CFG_SPACE_EXP_SIZE = 0x1000
STD_HEADER_SIZEOF = 0x40
STD_NUM_BARS = 0x6
CAP_LIST_ID = 0x0
CAP_LIST_NEXT = 0x1
CAP_FLAGS = 0x2
CAP_SIZEOF = 0x4
CAP_MSIX_SIZEOF = 0xC
MSIX_TABLE_BIR = 0x7
MSIX_TABLE_OFFSET = 0xFFFFFFF8
MSIX_PBA_BIR = 0x7
MSIX_PBA_OFFSET = 0xFFFFFFF8


class Header(IntEnum):
    """PCI_*: offsets in the type 0 configuration header."""

    VENDOR_ID = 0x00
    DEVICE_ID = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    CLASS_REVISION = 0x08
    REVISION_ID = 0x08
    CLASS_PROG = 0x09
    CLASS_DEVICE = 0x0A
    CACHE_LINE_SIZE = 0x0C
    LATENCY_TIMER = 0x0D
    HEADER_TYPE = 0x0E
    BIST = 0x0F
    BASE_ADDRESS_0 = 0x10
    BASE_ADDRESS_1 = 0x14
    BASE_ADDRESS_2 = 0x18
    BASE_ADDRESS_3 = 0x1C
    BASE_ADDRESS_4 = 0x20
    BASE_ADDRESS_5 = 0x24
    CARDBUS_CIS = 0x28
    SUBSYSTEM_VENDOR_ID = 0x2C
    SUBSYSTEM_ID = 0x2E
    ROM_ADDRESS = 0x30
    CAPABILITY_LIST = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D
    MIN_GNT = 0x3E
    MAX_LAT = 0x3F


class BridgeHeader(IntEnum):
    """PCI_*: offsets in the type 1 header (bridges and ports)."""

    PRIMARY_BUS = 0x18
    SECONDARY_BUS = 0x19
    SUBORDINATE_BUS = 0x1A
    SEC_LATENCY_TIMER = 0x1B
    IO_BASE = 0x1C
    IO_LIMIT = 0x1D
    SEC_STATUS = 0x1E
    MEMORY_BASE = 0x20
    MEMORY_LIMIT = 0x22
    PREF_MEMORY_BASE = 0x24
    PREF_MEMORY_LIMIT = 0x26
    PREF_BASE_UPPER32 = 0x28
    PREF_LIMIT_UPPER32 = 0x2C
    IO_BASE_UPPER16 = 0x30
    IO_LIMIT_UPPER16 = 0x32
    ROM_ADDRESS1 = 0x38
    BRIDGE_CONTROL = 0x3E


class Command(IntFlag):
    """PCI_COMMAND_*: the command register."""

    IO = 0x0001
    MEMORY = 0x0002
    MASTER = 0x0004
    SPECIAL = 0x0008
    INVALIDATE = 0x0010
    VGA_PALETTE = 0x0020
    PARITY = 0x0040
    WAIT = 0x0080
    SERR = 0x0100
    FAST_BACK = 0x0200
    INTX_DISABLE = 0x0400


class Status(IntFlag):
    """PCI_STATUS_*: the status register."""

    IMM_READY = 0x0001
    INTERRUPT = 0x0008
    CAP_LIST = 0x0010
    _66MHZ = 0x0020
    UDF = 0x0040
    FAST_BACK = 0x0080
    PARITY = 0x0100
    DEVSEL_MASK = 0x0600
    DEVSEL_MEDIUM = 0x0200
    DEVSEL_SLOW = 0x0400
    SIG_TARGET_ABORT = 0x0800
    REC_TARGET_ABORT = 0x1000
    REC_MASTER_ABORT = 0x2000
    SIG_SYSTEM_ERROR = 0x4000
    DETECTED_PARITY = 0x8000


class HeaderType(IntEnum):
    """PCI_HEADER_TYPE_*; bit 7 of the register says that the device has several functions."""

    NORMAL = 0x0
    BRIDGE = 0x1
    CARDBUS = 0x2


class BaseAddress(IntFlag):
    """PCI_BASE_ADDRESS_*: the low bits of a BAR."""

    SPACE_IO = 0x1
    MEM_TYPE_64 = 0x4
    MEM_PREFETCH = 0x8


class Capability(IntEnum):
    """PCI_CAP_ID_*: capability ids."""

    PM = 0x01
    AGP = 0x02
    VPD = 0x03
    SLOTID = 0x04
    MSI = 0x05
    CHSWP = 0x06
    PCIX = 0x07
    HT = 0x08
    VNDR = 0x09
    DBG = 0x0A
    CCRC = 0x0B
    SHPC = 0x0C
    SSVID = 0x0D
    AGP3 = 0x0E
    SECDEV = 0x0F
    EXP = 0x10
    MSIX = 0x11
    SATA = 0x12
    AF = 0x13
    EA = 0x14


class PowerManagement(IntEnum):
    """PCI_PM_*: offsets in the power management capability."""

    PMC = 0x2
    CTRL = 0x4
    PPB_EXTENSIONS = 0x6
    DATA_REGISTER = 0x7
    SIZEOF = 0x8


class PmCap(IntFlag):
    """PCI_PM_CAP_*: PMC, what the function can do."""

    VER_MASK = 0x0007
    PME_CLOCK = 0x0008
    RESERVED = 0x0010
    DSI = 0x0020
    AUX_POWER = 0x01C0
    D1 = 0x0200
    D2 = 0x0400
    PME = 0x0800
    PME_MASK = 0xF800
    PME_D1 = 0x1000
    PME_D2 = 0x2000
    PME_D3hot = 0x4000
    PME_D3cold = 0x8000


class PmControl(IntFlag):
    """PCI_PM_CTRL_*: PMCSR."""

    STATE_MASK = 0x0003
    NO_SOFT_RESET = 0x0008
    PME_ENABLE = 0x0100
    DATA_SEL_MASK = 0x1E00
    DATA_SCALE_MASK = 0x6000
    PME_STATUS = 0x8000


class Msi(IntEnum):
    """PCI_MSI_*: offsets in the MSI capability, with 32-bit and 64-bit message address."""

    FLAGS = 0x02
    ADDRESS_LO = 0x04
    ADDRESS_HI = 0x08
    DATA_32 = 0x08
    MASK_32 = 0x0C
    PENDING_32 = 0x10
    DATA_64 = 0x0C
    MASK_64 = 0x10
    PENDING_64 = 0x14


class MsiFlags(IntFlag):
    """PCI_MSI_FLAGS_*: MSI message control."""

    ENABLE = 0x0001
    QMASK = 0x000E
    QSIZE = 0x0070
    _64BIT = 0x0080
    MASKBIT = 0x0100


class Msix(IntEnum):
    """PCI_MSIX_*: offsets in the MSI-X capability."""

    FLAGS = 0x02
    TABLE = 0x04
    PBA = 0x08


class MsixFlags(IntFlag):
    """PCI_MSIX_FLAGS_*: MSI-X message control."""

    QSIZE = 0x07FF
    MASKALL = 0x4000
    ENABLE = 0x8000


class MsixEntry(IntEnum):
    """PCI_MSIX_ENTRY_*: offsets in an entry of the MSI-X table."""

    SIZE = 0x10
    LOWER_ADDR = 0x0
    UPPER_ADDR = 0x4
    DATA = 0x8
    VECTOR_CTRL = 0xC


MSIX_ENTRY_CTRL_MASKBIT = 0x1
