"""The driver's side of iolane's devices, over the device itself: what their unit tests are written with."""
