"""Signals by descriptors that a peer has, too: nothing here waits for it, whatever it does with them."""

from iolane.memory._signal import Signaller, take

__all__ = ["Signaller", "take"]
