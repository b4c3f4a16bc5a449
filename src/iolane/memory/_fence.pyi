"""A full memory fence."""

def fence() -> None:
    """Make every store before it visible before any load after it."""
