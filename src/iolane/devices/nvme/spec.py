"""Numbers of the NVM Express specifications: Base 2.0c and the NVM Command Set 1.0c."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from iolane.errors import IolaneError

ALL_NAMESPACES = 0xFFFFFFFF
"""The broadcast NSID (Base 3.2.1)."""
SUBMISSION_ENTRY_SIZE = 64
COMPLETION_ENTRY_SIZE = 16
IDENTIFY_SIZE = 4096
FUSE, PSDT = 0b11, 0b11 << 6
"""Bits of byte 1 of a command (Base, Figure 87): fused operation; whether its data is by PRPs or an SGL."""
PSDT_SGL = 0b01 << 6
"""An SGL, and metadata in one buffer. With 10b metadata had an SGL of its own (SGLS bit 19)."""
ARBITRATION_BURST = 5
"""RAB, and the default of the Arbitration feature: 1 << 5 commands."""
EVENT_REQUEST_LIMIT = 4
"""Asynchronous Event Requests at once; AERL is one less."""
ERROR_LOG_ENTRIES = 64
"""Entries of the Error Information log; ELPE is one less."""


class AdminOpcode(IntEnum):
    """Admin commands (Base 5, Figure 138) that this controller executes."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    DOORBELL_BUFFER_CONFIG = 0x7C


class IoOpcode(IntEnum):
    """Commands of the NVM Command Set (3.2, Figure 17) that this controller executes."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Status(IntEnum):
    """Status Code Type in bits 10:8, Status Code in bits 7:0 (Base 3.3.3.2.1)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    COMMAND_ID_CONFLICT = 0x003
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    ABORTED_SQ_DELETION = 0x008
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT = 0x00D
    INVALID_SGL_COUNT = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    SGL_TYPE_INVALID = 0x011
    INVALID_PRP_OFFSET = 0x013
    NAMESPACE_WRITE_PROTECTED = 0x020
    INVALID_COMMAND_SET = 0x02C
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    INVALID_CQ = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    ASYNC_EVENT_LIMIT = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_NAMESPACE_SPECIFIC = 0x10F
    COMMAND_SET_COMBINATION_REJECTED = 0x12B
    CONFLICTING_ATTRIBUTES = 0x180
    WRITE_FAULT = 0x280
    UNRECOVERED_READ = 0x281
    COMPARE_FAILURE = 0x285


MORE = 1 << 13
"""More: the Error Information log has an entry on this command."""
DO_NOT_RETRY = 1 << 14
RETRYABLE = frozenset(
    {
        Status.COMMAND_ID_CONFLICT,
        Status.INTERNAL_ERROR,
        Status.ABORT_REQUESTED,
        Status.ABORTED_SQ_DELETION,
        Status.ASYNC_EVENT_LIMIT,
        Status.DATA_TRANSFER_ERROR,
        Status.WRITE_FAULT,
        Status.UNRECOVERED_READ,
    }
)
"""The same command may succeed later. All others are completed with Do Not Retry."""


class CommandError(IolaneError):
    """A command that ends with an error.

    Attributes:
        status: what its completion says.
        location: byte of the command that is wrong, for the Error Information log; None where there is none.
        lba: the first logical block that failed.
    """

    def __init__(
        self, status: Status, message: str = "", *, location: int | None = None, lba: int | None = None
    ) -> None:
        super().__init__(message or status.name.replace("_", " ").lower())
        self.status = status
        self.location = location
        self.lba = lba


def invalid_field(location: int, message: str = "") -> CommandError:
    """Invalid Field in Command, pointing at the byte of the submission queue entry."""
    return CommandError(Status.INVALID_FIELD, message, location=location)


class Cns(IntEnum):
    """Controller or Namespace Structure of Identify (Base 5.17.1, Figure 273)."""

    NAMESPACE = 0x00
    CONTROLLER = 0x01
    ACTIVE_NAMESPACES = 0x02
    NAMESPACE_DESCRIPTORS = 0x03
    COMMAND_SET_NAMESPACE = 0x05
    COMMAND_SET_CONTROLLER = 0x06
    COMMAND_SET_ACTIVE_NAMESPACES = 0x07
    INDEPENDENT_NAMESPACE = 0x08
    COMMAND_SETS = 0x1C


class CommandSet(IntEnum):
    """Command Set Identifier (Base, Figure 274)."""

    NVM = 0


class FeatureId(IntEnum):
    """Feature Identifiers (Base 5.27.1, Figure 317) that this controller has."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIGURATION = 0x0B
    TIMESTAMP = 0x0E
    COMMAND_SET_PROFILE = 0x19
    HOST_IDENTIFIER = 0x81


class Select(IntEnum):
    """What Get Features returns (Base 5.15, Figure 192)."""

    CURRENT = 0
    DEFAULT = 1
    SAVED = 2
    CAPABILITIES = 3


class LogId(IntEnum):
    """Log pages (Base 5.16.1, Figure 202) that this controller has."""

    SUPPORTED_LOG_PAGES = 0x00
    ERROR_INFORMATION = 0x01
    SMART = 0x02
    FIRMWARE_SLOT = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMANDS_AND_EFFECTS = 0x05
    FEATURES_AND_EFFECTS = 0x12
    MI_COMMANDS_AND_EFFECTS = 0x13


class EventType(IntEnum):
    """Asynchronous Event Type (Base 5.2.1, Figure 145)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2


class ErrorEvent(IntEnum):
    """Asynchronous Event Information of error events (Base, Figure 146)."""

    INVALID_DOORBELL_REGISTER = 0
    INVALID_DOORBELL_VALUE = 1


class SmartEvent(IntEnum):
    """Asynchronous Event Information of SMART events (Base, Figure 147)."""

    RELIABILITY = 0
    TEMPERATURE = 1
    SPARE = 2


class NoticeEvent(IntEnum):
    """Asynchronous Event Information of notices (Base, Figure 148)."""

    NAMESPACE_ATTRIBUTE_CHANGED = 0


class CriticalWarning(IntFlag):
    """Byte 0 of the SMART log page (Base 5.16.1.3), also the mask in Asynchronous Event Configuration."""

    SPARE = 1 << 0
    TEMPERATURE = 1 << 1
    RELIABILITY = 1 << 2
    READ_ONLY = 1 << 3


class ShutdownNotification(IntEnum):
    """CC.SHN (Base 3.1.3.5)."""

    NONE = 0
    NORMAL = 1
    ABRUPT = 2


class ShutdownStatus(IntEnum):
    """CSTS.SHST (Base 3.1.3.6)."""

    NORMAL_OPERATION = 0
    OCCURRING = 1
    COMPLETE = 2


class CommandSetSelected(IntEnum):
    """CC.CSS (Base 3.1.3.5)."""

    NVM = 0
    ALL = 6
