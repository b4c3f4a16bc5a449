"""Machines: a guest with devices, what it is made of, and what can be done with it while it runs."""

from iolane.operations.machine.description import DeviceDescription, EngineName, MachineDescription
from iolane.operations.machine.machine import Machine

__all__ = ["DeviceDescription", "EngineName", "Machine", "MachineDescription"]
