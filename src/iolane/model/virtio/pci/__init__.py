"""Virtio over PCI (virtio 1.3, 4.1): any virtio device as a PCI function."""

from iolane.model.virtio.pci.function import VirtioPci, VirtioPciState

__all__ = ["VirtioPci", "VirtioPciState"]
