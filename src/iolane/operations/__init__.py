"""Transactions over machines: plug, unplug, snapshot, migrate."""
