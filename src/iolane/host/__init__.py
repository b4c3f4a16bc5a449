"""The physical machine: inventory, taking and giving back."""
