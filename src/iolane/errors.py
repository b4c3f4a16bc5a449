"""The base of every error that iolane raises on purpose."""


class IolaneError(Exception):
    """What can't be done, said in one clear line, with the way out where there is one."""

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        line = " ".join(self.message.split())
        return f"{line} ({' '.join(self.remedy.split())})" if self.remedy else line

    def __reduce__(self) -> tuple[object, ...]:
        # BaseException would call the class with self.args alone; subclasses may take other arguments.
        return _rebuild, (type(self), self.args, self.__dict__.copy())


def _rebuild(kind: type[IolaneError], args: tuple[object, ...], attributes: dict[str, object]) -> IolaneError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(attributes)
    return error
