"""A PCI function: config space, BARs, capabilities."""

from iolane.model.pci.bar import Bar, BarKind, MemoryPart
from iolane.model.pci.capability import (
    BoundCapability,
    Capability,
    CapabilityId,
    ExtendedCapabilityId,
)
from iolane.model.pci.caps.aer import Aer, AerCapability
from iolane.model.pci.caps.ari import Ari, AriCapability
from iolane.model.pci.caps.express import ExpressCapability, PcieEndpoint, PortType
from iolane.model.pci.caps.msi import Msi, MsiCapability
from iolane.model.pci.caps.msix import Msix, MsixCapability
from iolane.model.pci.caps.power_management import PowerManagement, PowerManagementCapability
from iolane.model.pci.caps.serial_number import SerialNumber, SerialNumberCapability
from iolane.model.pci.caps.sriov import SriovCapability
from iolane.model.pci.caps.vendor_specific import VendorSpecific, VendorSpecificCapability
from iolane.model.pci.config_space import ConfigSpace
from iolane.model.pci.function import PciDevice, Presentation
from iolane.model.pci.header import Command, Status, Type0Header
from iolane.model.pci.intx import Intx
from iolane.model.pci.pcie_id import PcieId
from iolane.model.pci.physical_function import PhysicalFunction, Sriov, VirtualFunctions
from iolane.model.pci.served import ServedFunction
from iolane.model.pci.virtual_function import VirtualFunction
from iolane.model.reset import ResetKind

__all__ = [
    "Aer",
    "AerCapability",
    "Ari",
    "AriCapability",
    "Bar",
    "BarKind",
    "BoundCapability",
    "Capability",
    "CapabilityId",
    "Command",
    "ConfigSpace",
    "ExpressCapability",
    "ExtendedCapabilityId",
    "Intx",
    "MemoryPart",
    "Msi",
    "MsiCapability",
    "Msix",
    "MsixCapability",
    "PciDevice",
    "PcieEndpoint",
    "PcieId",
    "PhysicalFunction",
    "PortType",
    "PowerManagement",
    "PowerManagementCapability",
    "Presentation",
    "ResetKind",
    "SerialNumber",
    "SerialNumberCapability",
    "ServedFunction",
    "Sriov",
    "SriovCapability",
    "Status",
    "Type0Header",
    "VendorSpecific",
    "VendorSpecificCapability",
    "VirtualFunction",
    "VirtualFunctions",
]
