"""The host resources behind devices: files, memory, byte streams."""
