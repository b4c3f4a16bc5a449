"""How a device reaches the guest: vfio-user and its kin."""
