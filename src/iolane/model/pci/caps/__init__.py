"""Capabilities, one file each."""
