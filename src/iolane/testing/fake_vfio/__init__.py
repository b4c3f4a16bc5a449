"""A kernel with VFIO that there is none of: groups, containers, iommufd and functions, for tests.

A device class of iolane plays the hardware. Calls answer with the errnos that Linux answers with.
"""

from iolane.testing.fake_vfio.function import FakeFunction
from iolane.testing.fake_vfio.kernel import FakeKernel

__all__ = ["FakeFunction", "FakeKernel"]
