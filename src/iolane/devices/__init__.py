"""Devices, each knowing neither its carrier nor its engine."""
