"""What runs a guest."""
