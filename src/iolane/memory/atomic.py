"""Changes to shared memory that somebody else changes at the same time."""

from iolane.memory._atomic import set_bits

__all__ = ["set_bits"]
