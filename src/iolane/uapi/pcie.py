"""PCI Express's constants (include/uapi/linux/pci_regs.h): its capability and the extended ones. Members
bear the header's names, less the prefix that the class stands for. A test compares them with the header.
"""

from enum import IntEnum, IntFlag

CAP_EXP_ENDPOINT_SIZEOF_V1 = 0x14
CAP_EXP_ENDPOINT_SIZEOF_V2 = 0x32
EXT_CAP_DSN_SIZEOF = 0xC
EXT_CAP_SRIOV_SIZEOF = 0x40
SRIOV_NUM_BARS = 6


class ExtendedCapability(IntEnum):
    """PCI_EXT_CAP_ID_*: extended capability ids."""

    ERR = 0x0001
    VC = 0x0002
    DSN = 0x0003
    PWR = 0x0004
    RCLD = 0x0005
    RCILC = 0x0006
    RCEC = 0x0007
    MFVC = 0x0008
    VC9 = 0x0009
    RCRB = 0x000A
    VNDR = 0x000B
    CAC = 0x000C
    ACS = 0x000D
    ARI = 0x000E
    ATS = 0x000F
    SRIOV = 0x0010
    MRIOV = 0x0011
    MCAST = 0x0012
    PRI = 0x0013
    AMD_XXX = 0x0014
    REBAR = 0x0015
    DPA = 0x0016
    TPH = 0x0017
    LTR = 0x0018
    SECPCI = 0x0019
    PMUX = 0x001A
    PASID = 0x001B
    DPC = 0x001D
    L1SS = 0x001E
    PTM = 0x001F
    DVSEC = 0x0023
    DLF = 0x0025
    PL_16GT = 0x0026
    DOE = 0x002E


class Express(IntEnum):
    """PCI_EXP_*: offsets in the PCI Express capability."""

    FLAGS = 0x02
    DEVCAP = 0x04
    DEVCTL = 0x08
    DEVSTA = 0x0A
    LNKCAP = 0x0C
    LNKCTL = 0x10
    LNKSTA = 0x12
    SLTCAP = 0x14
    SLTCTL = 0x18
    SLTSTA = 0x1A
    RTCTL = 0x1C
    RTCAP = 0x1E
    RTSTA = 0x20
    DEVCAP2 = 0x24
    DEVCTL2 = 0x28
    DEVSTA2 = 0x2A
    LNKCAP2 = 0x2C
    LNKCTL2 = 0x30
    LNKSTA2 = 0x32
    SLTCAP2 = 0x34
    SLTCTL2 = 0x38
    SLTSTA2 = 0x3A


class ExpressType(IntEnum):
    """PCI_EXP_TYPE_*: the device/port type in PCI_EXP_FLAGS."""

    ENDPOINT = 0x0
    LEG_END = 0x1
    ROOT_PORT = 0x4
    UPSTREAM = 0x5
    DOWNSTREAM = 0x6
    PCI_BRIDGE = 0x7
    PCIE_BRIDGE = 0x8
    RC_END = 0x9
    RC_EC = 0xA


class DevCap(IntFlag):
    """PCI_EXP_DEVCAP_*: device capabilities."""

    PAYLOAD = 0x00000007
    PHANTOM = 0x00000018
    EXT_TAG = 0x00000020
    L0S = 0x000001C0
    L1 = 0x00000E00
    ATN_BUT = 0x00001000
    ATN_IND = 0x00002000
    PWR_IND = 0x00004000
    RBER = 0x00008000
    PWR_VAL = 0x03FC0000
    PWR_SCL = 0x0C000000
    FLR = 0x10000000


class DevCtl(IntFlag):
    """PCI_EXP_DEVCTL_*: device control."""

    CERE = 0x0001
    NFERE = 0x0002
    FERE = 0x0004
    URRE = 0x0008
    RELAX_EN = 0x0010
    PAYLOAD = 0x00E0
    EXT_TAG = 0x0100
    PHANTOM = 0x0200
    AUX_PME = 0x0400
    NOSNOOP_EN = 0x0800
    READRQ = 0x7000
    BCR_FLR = 0x8000


class DevSta(IntFlag):
    """PCI_EXP_DEVSTA_*: device status."""

    CED = 0x0001
    NFED = 0x0002
    FED = 0x0004
    URD = 0x0008
    AUXPD = 0x0010
    TRPND = 0x0020


class LnkCap(IntFlag):
    """PCI_EXP_LNKCAP_*: link capabilities; SLS and MLW are fields."""

    SLS = 0x0000000F
    MLW = 0x000003F0
    ASPMS = 0x00000C00
    ASPM_L0S = 0x00000400
    ASPM_L1 = 0x00000800
    L0SEL = 0x00007000
    L1EL = 0x00038000
    CLKPM = 0x00040000
    SDERC = 0x00080000
    DLLLARC = 0x00100000
    LBNC = 0x00200000
    PN = 0xFF000000


class LnkCtl(IntFlag):
    """PCI_EXP_LNKCTL_*: link control."""

    ASPMC = 0x0003
    ASPM_L0S = 0x0001
    ASPM_L1 = 0x0002
    RCB = 0x0008
    LD = 0x0010
    RL = 0x0020
    CCC = 0x0040
    ES = 0x0080
    CLKREQ_EN = 0x0100
    HAWD = 0x0200
    LBMIE = 0x0400
    LABIE = 0x0800


class LnkSta(IntFlag):
    """PCI_EXP_LNKSTA_*: link status; CLS and NLW are fields."""

    CLS = 0x000F
    NLW = 0x03F0
    LT = 0x0800
    SLC = 0x1000
    DLLLA = 0x2000
    LBMS = 0x4000
    LABS = 0x8000


class DevCap2(IntFlag):
    """PCI_EXP_DEVCAP2_*: device capabilities 2."""

    COMP_TMOUT_DIS = 0x00000010
    ARI = 0x00000020
    ATOMIC_ROUTE = 0x00000040
    ATOMIC_COMP32 = 0x00000080
    ATOMIC_COMP64 = 0x00000100
    ATOMIC_COMP128 = 0x00000200
    LTR = 0x00000800
    OBFF_MASK = 0x000C0000
    OBFF_MSG = 0x00040000
    OBFF_WAKE = 0x00080000
    EE_PREFIX = 0x00200000


class DevCtl2(IntFlag):
    """PCI_EXP_DEVCTL2_*: device control 2."""

    COMP_TIMEOUT = 0x000F
    COMP_TMOUT_DIS = 0x0010
    ARI = 0x0020
    ATOMIC_REQ = 0x0040
    ATOMIC_EGRESS_BLOCK = 0x0080
    IDO_REQ_EN = 0x0100
    IDO_CMP_EN = 0x0200
    LTR_EN = 0x0400
    OBFF_MSGA_EN = 0x2000
    OBFF_MSGB_EN = 0x4000
    OBFF_WAKE_EN = 0x6000


class Aer(IntEnum):
    """PCI_ERR_*: offsets in the advanced error reporting capability."""

    UNCOR_STATUS = 0x04
    UNCOR_MASK = 0x08
    UNCOR_SEVER = 0x0C
    COR_STATUS = 0x10
    COR_MASK = 0x14
    CAP = 0x18
    HEADER_LOG = 0x1C
    ROOT_COMMAND = 0x2C
    ROOT_STATUS = 0x30
    ROOT_ERR_SRC = 0x34


class AerUncorrectable(IntFlag):
    """PCI_ERR_UNC_*: uncorrectable errors."""

    UND = 0x00000001
    DLP = 0x00000010
    SURPDN = 0x00000020
    POISON_TLP = 0x00001000
    FCP = 0x00002000
    COMP_TIME = 0x00004000
    COMP_ABORT = 0x00008000
    UNX_COMP = 0x00010000
    RX_OVER = 0x00020000
    MALF_TLP = 0x00040000
    ECRC = 0x00080000
    UNSUP = 0x00100000
    ACSV = 0x00200000
    INTN = 0x00400000
    MCBTLP = 0x00800000
    ATOMEG = 0x01000000
    TLPPRE = 0x02000000


class AerCorrectable(IntFlag):
    """PCI_ERR_COR_*: correctable errors."""

    RCVR = 0x00000001
    BAD_TLP = 0x00000040
    BAD_DLLP = 0x00000080
    REP_ROLL = 0x00000100
    REP_TIMER = 0x00001000
    ADV_NFAT = 0x00002000
    INTERNAL = 0x00004000
    LOG_OVER = 0x00008000


class AerCap(IntFlag):
    """PCI_ERR_CAP_*: advanced error capabilities and control; bits 4:0 point to the first error."""

    ECRC_GENC = 0x00000020
    ECRC_GENE = 0x00000040
    ECRC_CHKC = 0x00000080
    ECRC_CHKE = 0x00000100


class Ari(IntEnum):
    """PCI_ARI_*: offsets in the alternative routing-id interpretation capability."""

    CAP = 0x04
    CTRL = 0x06


class AriCap(IntFlag):
    """PCI_ARI_CAP_*: its capability register; bits 15:8 name the next function."""

    MFVC = 0x0001
    ACS = 0x0002


class Sriov(IntEnum):
    """PCI_SRIOV_*: offsets in the SR-IOV capability."""

    CAP = 0x04
    CTRL = 0x08
    STATUS = 0x0A
    INITIAL_VF = 0x0C
    TOTAL_VF = 0x0E
    NUM_VF = 0x10
    FUNC_LINK = 0x12
    VF_OFFSET = 0x14
    VF_STRIDE = 0x16
    VF_DID = 0x1A
    SUP_PGSIZE = 0x1C
    SYS_PGSIZE = 0x20
    BAR = 0x24
    VFM = 0x3C


class SriovCap(IntFlag):
    """PCI_SRIOV_CAP_*: SR-IOV capabilities."""

    VFM = 0x00000001


class SriovStatus(IntFlag):
    """PCI_SRIOV_STATUS_*: SR-IOV status."""

    VFM = 0x0001


class SriovCtrl(IntFlag):
    """PCI_SRIOV_CTRL_*: SR-IOV control."""

    VFE = 0x0001
    VFM = 0x0002
    INTR = 0x0004
    MSE = 0x0008
    ARI = 0x0010
