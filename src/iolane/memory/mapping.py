"""Shared file mappings that survive their file's truncation."""

from iolane.memory._guard import Mapping, MappingError

__all__ = ["Mapping", "MappingError"]
