"""The 16550A serial port."""

from iolane.devices.serial.device import PciSerial
from iolane.devices.serial.registers import UartRegisters
from iolane.devices.serial.uart import Uart

__all__ = ["PciSerial", "Uart", "UartRegisters"]
