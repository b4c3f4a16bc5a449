"""Layouts of VFIO's structures (include/uapi/linux/vfio.h), each named after its struct. A test compares
sizes and offsets with the header.
"""

from struct import Struct

GROUP_STATUS = Struct("=II")
"""argsz, flags."""
DEVICE_INFO = Struct("=IIIIII")
"""argsz, flags, num_regions, num_irqs, cap_offset, padding (newer headers name it)."""
INFO_CAP_HEADER = Struct("=HHI")
"""id, version, next."""
REGION_INFO = Struct("=IIIIQQ")
"""argsz, flags, index, cap_offset, size, offset."""
REGION_INFO_CAP_SPARSE_MMAP = Struct("=HHIII")
"""The header, nr_areas, reserved; areas follow."""
REGION_SPARSE_MMAP_AREA = Struct("=QQ")
"""offset, size."""
IRQ_INFO = Struct("=IIII")
"""argsz, flags, index, count."""
IRQ_SET = Struct("=IIIII")
"""argsz, flags, index, start, count; data follows."""
PCI_HOT_RESET_INFO = Struct("=III")
"""argsz, flags, count; dependent devices follow."""
PCI_DEPENDENT_DEVICE = Struct("=IHBB")
"""group_id (with an iommufd: devid), segment, bus, devfn."""
PCI_HOT_RESET = Struct("=III")
"""argsz, flags, count; descriptors of groups follow."""
IOMMU_TYPE1_INFO = Struct("=IIQI4x")
"""argsz, flags, iova_pgsizes, cap_offset."""
IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = Struct("=HHIII")
"""The header, nr_iovas, reserved; ranges follow."""
IOVA_RANGE = Struct("=QQ")
"""start, end (the last address of the range)."""
IOMMU_TYPE1_INFO_CAP_MIGRATION = Struct("=HHII4xQQ")
"""The header, flags, pgsize_bitmap, max_dirty_bitmap_size."""
IOMMU_TYPE1_INFO_DMA_AVAIL = Struct("=HHII")
"""The header, avail."""
IOMMU_TYPE1_DMA_MAP = Struct("=IIQQQ")
"""argsz, flags, vaddr, iova, size."""
IOMMU_TYPE1_DMA_UNMAP = Struct("=IIQQ")
"""argsz, flags, iova, size."""
IOMMU_TYPE1_DIRTY_BITMAP = Struct("=II")
"""argsz, flags."""
IOMMU_TYPE1_DIRTY_BITMAP_GET = Struct("=QQQQQ")
"""iova, size, and the bitmap's pgsize, size, address."""
DEVICE_BIND_IOMMUFD = Struct("=IIiI")
"""argsz, flags, iommufd, out_devid (Linux 6.6)."""
DEVICE_ATTACH_IOMMUFD_PT = Struct("=III")
"""argsz, flags, pt_id (Linux 6.6)."""
