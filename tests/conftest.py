"""What holds for every test."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("iolane", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("iolane")  # how long an example takes says how busy the machine is, and nothing of us
