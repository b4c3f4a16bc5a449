# cython: language_level=3
"""Shared file mappings that survive their file's truncation (architecture, rule 1).

A peer owns the file behind guest memory and may cut it at any time; the next access would then end this process by
SIGBUS. `_guard.h` holds the handler that puts zero pages there instead and marks the mapping broken.
"""

import os
import stat

from iolane.errors import IolaneError

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo
from libc.errno cimport errno

cdef extern from "_guard.h" nogil:
    struct guard_range:
        pass
    int guard_install()
    guard_range *guard_add(void *start, size_t length, size_t page, int protection)
    void guard_remove(guard_range *range)
    int guard_is_broken(guard_range *range)
    const void *guard_broken_flag(guard_range *range)
    size_t guard_page_size(int fd)
    void guard_touch(const unsigned char *address)

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long long offset)
    int munmap(void *address, size_t length)

cdef size_t LARGEST = 1 << 62


class MappingError(IolaneError):
    """A file that can't be mapped; `errno` is the kernel's answer, 0 when it was not asked."""

    def __init__(self, message, *, errno=0, remedy=None):
        super().__init__(message, remedy=remedy)
        self.errno = errno


cdef class Mapping:
    """Bytes [offset, offset + length) of a file, shared with whoever else maps it.

    `memoryview(mapping)` gives them; they stay mapped for as long as a view or the mapping lives (or, after `close`,
    a view). The descriptor may be closed at once. When the file is truncated underneath, the pages from the first
    one missed to the end of the mapping become zero pages of our own and `broken` turns True.

    Only loads and stores of this process are guarded. A system call that is given a view (`preadv`, `recv_into`)
    gets EFAULT from the kernel instead of a signal, and `broken` does not change: call `probe` then.
    """

    cdef unsigned char *start
    cdef size_t mapped
    cdef guard_range *range
    cdef Py_ssize_t exports
    cdef bint was_broken
    cdef object __weakref__
    cdef readonly Py_ssize_t length
    cdef readonly long long offset
    cdef readonly bint writable
    cdef readonly bint closed

    def __cinit__(self, int fd, length, offset=0, writable=True):
        if not 0 < length <= LARGEST or not 0 <= offset <= LARGEST:
            raise MappingError(f"cannot map {length} bytes at offset {offset}")
        try:
            status = os.fstat(fd)
        except OSError as error:
            raise MappingError(f"cannot map descriptor {fd}: {error.strerror}", errno=error.errno) from None
        cdef size_t page = guard_page_size(fd)
        if offset % page:
            raise MappingError(f"cannot map at offset {offset:#x}: it is no multiple of the page size {page:#x}")
        if stat.S_ISREG(status.st_mode) and offset + length > status.st_size:
            raise MappingError(
                f"cannot map up to {offset + length:#x}: the file ends at {status.st_size:#x}",
                remedy="the owner of the file must make it as long as what it announces",
            )
        self.length = length
        self.offset = offset
        self.writable = writable
        self.closed = False
        self.mapped = (self.length + page - 1) // page * page
        self._map(fd, page)

    cdef int _map(self, int fd, size_t page) except -1:
        cdef int protection = PROT_READ | PROT_WRITE if self.writable else PROT_READ
        cdef int failed = guard_install()
        if failed:
            raise MappingError(f"cannot guard against SIGBUS: {os.strerror(-failed)}", errno=-failed)
        cdef void *start = mmap(NULL, self.mapped, protection, MAP_SHARED, fd, self.offset)
        if start == MAP_FAILED:
            failed = errno
            raise MappingError(f"cannot map {self.length} bytes: {os.strerror(failed)}", errno=failed)
        self.range = guard_add(start, self.mapped, page, protection)
        if self.range == NULL:
            munmap(start, self.mapped)
            raise MemoryError
        self.start = <unsigned char *>start
        return 0

    cdef void _unmap(self) noexcept:
        if self.start == NULL:
            return
        self.was_broken = guard_is_broken(self.range)
        guard_remove(self.range)
        munmap(self.start, self.mapped)
        self.start = NULL
        self.range = NULL

    def __dealloc__(self):
        self._unmap()

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        if self.closed:
            raise BufferError("the mapping is closed")
        if flags & PyBUF_WRITABLE and not self.writable:
            raise BufferError("the mapping is read-only")
        PyBuffer_FillInfo(buffer, self, self.start, self.length, not self.writable, flags)
        self.exports += 1

    def __releasebuffer__(self, Py_buffer *buffer):
        self.exports -= 1
        if self.closed and self.exports == 0:
            self._unmap()

    def __len__(self):
        return self.length

    def __repr__(self):
        words = ["writable" if self.writable else "read-only"]
        words += ["broken"] * self.broken + ["closed"] * self.closed
        return f"<Mapping of {self.length:#x} bytes at {self.offset:#x}, {', '.join(words)}>"

    @property
    def broken(self):
        """True once an access found the file truncated."""
        return bool(guard_is_broken(self.range)) if self.range != NULL else self.was_broken

    @property
    def address(self):
        """Where the bytes lie in this process, for compiled helpers that hold a view; 0 when unmapped."""
        return <size_t>self.start

    @property
    def broken_address(self):
        """Where the 32-bit flag behind `broken` lies, for compiled helpers that hold a view; 0 when unmapped."""
        return <size_t>guard_broken_flag(self.range) if self.range != NULL else 0

    def probe(self, Py_ssize_t offset=0, length=None):
        """Touch the first and last byte of a part, and say whether the mapping is broken.

        A truncation takes a file's tail, so the last byte stands for what is before it.
        """
        cdef Py_ssize_t count = self.length - offset if length is None else length
        if offset < 0 or count <= 0 or offset + count > self.length:
            raise ValueError("the part lies outside the mapping")
        if self.start == NULL:
            raise ValueError("the mapping is closed")
        guard_touch(self.start + offset)
        guard_touch(self.start + offset + count - 1)
        return self.broken

    def close(self):
        """Give no more views, and unmap as soon as the last one is gone."""
        self.closed = True
        if self.exports == 0:
            self._unmap()
