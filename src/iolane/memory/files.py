"""The files behind guest memory, each mapped once however many DMA maps lie in it.

A guest behind a vIOMMU makes one DMA map per 4 KiB page, each with the same RAM file: mapping the file anew
for each would use up the kernel's limit of areas (vm.max_map_count, 65530).
"""

import fcntl
import os
import stat
from dataclasses import dataclass

from iolane.memory.mapping import Mapping, MappingError

_Key = tuple[int, int, bool]


@dataclass
class _Use:
    key: _Key
    mapping: Mapping
    count: int = 0


class MemoryFiles:
    """One `Mapping` of the whole file per (st_dev, st_ino) and access, counted. Callers take turns."""

    def __init__(self) -> None:
        self._newest: dict[_Key, _Use] = {}
        self._uses: dict[int, _Use] = {}

    def __len__(self) -> int:
        return len(self._uses)

    def acquire(self, fd: int, writable: bool = True, *, end: int | None = None) -> Mapping:
        """The mapping that holds the file's bytes up to `end` (default: all that the file has now).

        The descriptor is not consumed. A file that grew past its mapping, or whose mapping broke, is mapped
        anew; who holds the older mapping keeps it.
        """
        try:
            status = os.fstat(fd)
            access = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
        except OSError as error:
            raise MappingError(
                f"cannot map descriptor {fd}: {error.strerror}", errno=error.errno or 0
            ) from None
        if not stat.S_ISREG(status.st_mode):
            raise MappingError("cannot map guest memory: its descriptor is no regular file or memfd")
        if access == os.O_WRONLY or (writable and access != os.O_RDWR):
            raise MappingError(
                "cannot map guest memory: the access that its descriptor was opened with forbids it"
            )
        needed = status.st_size if end is None else end
        if needed > status.st_size:
            raise MappingError(f"cannot map up to {needed:#x}: the file ends at {status.st_size:#x}")
        key = (status.st_dev, status.st_ino, writable)
        use = self._newest.get(key)
        if use is None or use.mapping.length < needed or use.mapping.broken:
            use = _Use(key, Mapping(fd, status.st_size, 0, writable))
            self._newest[key] = self._uses[id(use.mapping)] = use
        use.count += 1
        return use.mapping

    def release(self, mapping: Mapping) -> None:
        """Give one `acquire` back; the last one closes the mapping (its views may outlive that)."""
        use = self._uses.get(id(mapping))
        if use is None:
            raise ValueError("the mapping was not acquired here, or was released already")
        use.count -= 1
        if use.count:
            return
        del self._uses[id(mapping)]
        if self._newest.get(use.key) is use:
            del self._newest[use.key]
        mapping.close()

    def close(self) -> None:
        """Give everything back."""
        for use in self._uses.values():
            use.mapping.close()
        self._uses.clear()
        self._newest.clear()
