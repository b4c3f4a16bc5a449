"""The carrier VFIO: a physical PCI function, its DMA translated and policed by the IOMMU."""

from iolane.carriers.vfio.address_space import DmaAddressSpace, IovaRange
from iolane.carriers.vfio.function import VfioFunction
from iolane.carriers.vfio.ioctl import VfioError
from iolane.carriers.vfio.irqs import VfioIrq
from iolane.carriers.vfio.memory import DmaMemory
from iolane.carriers.vfio.open import Backend, open_function
from iolane.carriers.vfio.region import VfioRegion
from iolane.carriers.vfio.vectors import Vectors

__all__ = [
    "Backend",
    "DmaAddressSpace",
    "DmaMemory",
    "IovaRange",
    "Vectors",
    "VfioError",
    "VfioFunction",
    "VfioIrq",
    "VfioRegion",
    "open_function",
]
