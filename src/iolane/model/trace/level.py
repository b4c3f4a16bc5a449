"""The rungs of the ladder."""

from enum import IntEnum


class TraceLevel(IntEnum):
    """How much is traced; each level includes the ones below it."""

    OFF = 0
    """Nothing: accesses are dispatched by the very callables that an untraced device has."""
    COUNTERS = 1
    """Accesses are counted by register, and a guest that spins is noticed."""
    REGISTERS = 2
    """Each access is told, with the register's name and the value."""
    FIELDS = 3
    """The value is taken apart into fields."""
    HOOK = 4
    """A Python callable sees each access, and may change or drop it."""

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, name: str) -> "TraceLevel":
        """A level by its name in lower case. Raises KeyError."""
        return cls[name.upper()]
