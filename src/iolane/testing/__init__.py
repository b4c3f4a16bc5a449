"""Test doubles for device authors: the in-memory carrier and the driver sides, split by floor."""
