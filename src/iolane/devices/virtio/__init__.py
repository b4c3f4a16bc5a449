"""Virtio devices, whatever carries them, and each as a PCI function."""
