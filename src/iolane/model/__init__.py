"""The device model: registers, PCI, interrupts, DMA, state, tasks, clock, trace."""
