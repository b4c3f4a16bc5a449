"""NVMe (NVM Express Base 2.0): a disk for the stock driver of any guest."""

from iolane.devices.nvme.controller import Nvme
from iolane.devices.nvme.namespace import Namespace

__all__ = ["Namespace", "Nvme"]
