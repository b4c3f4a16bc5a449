"""I/O virtualization in Python: a device is a class, its lane is what the guest sees of it.

What a device author needs is here: `from iolane import PciDevice, Bar, register`. The names are imported from
the model when they are first used, so that `import iolane` costs nothing. `Machine` runs guests with devices.
"""

from typing import TYPE_CHECKING

from iolane._lazy import lazy_exports
from iolane._version import __version__
from iolane.errors import IolaneError

if TYPE_CHECKING:
    from iolane.engines.outcome import UnplugOutcome
    from iolane.model.device import Device
    from iolane.model.dma import DmaFault
    from iolane.model.pci import (
        Aer,
        Bar,
        BarKind,
        Intx,
        MemoryPart,
        Msi,
        Msix,
        PciDevice,
        PcieEndpoint,
        PcieId,
        PowerManagement,
        Presentation,
        SerialNumber,
        VendorSpecific,
    )
    from iolane.model.registers import (
        Access,
        Field,
        Register,
        Register8,
        Register16,
        Register32,
        Register64,
        RegisterMap,
        register,
        register_array,
    )
    from iolane.model.reset import ResetKind
    from iolane.model.state import DeviceState
    from iolane.operations.machine import Machine, MachineDescription

__all__ = [
    "Access",
    "Aer",
    "Bar",
    "BarKind",
    "Device",
    "DeviceState",
    "DmaFault",
    "Field",
    "Intx",
    "IolaneError",
    "Machine",
    "MachineDescription",
    "MemoryPart",
    "Msi",
    "Msix",
    "PciDevice",
    "PcieEndpoint",
    "PcieId",
    "PowerManagement",
    "Presentation",
    "Register",
    "Register8",
    "Register16",
    "Register32",
    "Register64",
    "RegisterMap",
    "ResetKind",
    "SerialNumber",
    "UnplugOutcome",
    "VendorSpecific",
    "__version__",
    "register",
    "register_array",
]

_PCI = (
    "Aer Bar BarKind Intx MemoryPart Msi Msix PciDevice PcieEndpoint PcieId PowerManagement Presentation "
    "SerialNumber VendorSpecific"
)
_REGISTERS = (
    "Access Field Register Register8 Register16 Register32 Register64 RegisterMap register register_array"
)
__getattr__ = lazy_exports(
    __name__,
    {
        "Device": "iolane.model.device",
        "DeviceState": "iolane.model.state",
        "DmaFault": "iolane.model.dma",
        "Machine": "iolane.operations.machine",
        "MachineDescription": "iolane.operations.machine",
        "ResetKind": "iolane.model.reset",
        "UnplugOutcome": "iolane.engines.outcome",
        **dict.fromkeys(_PCI.split(), "iolane.model.pci"),
        **dict.fromkeys(_REGISTERS.split(), "iolane.model.registers"),
    },
)
