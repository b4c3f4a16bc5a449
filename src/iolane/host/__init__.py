"""The physical machine: its PCI functions, what it needs itself, and taking functions from their drivers."""
