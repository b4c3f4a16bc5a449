"""I/O virtualization in Python: a device is a class, its lane is what the guest sees of it."""

from iolane._version import __version__
from iolane.errors import IolaneError

__all__ = ["IolaneError", "__version__"]
