# cython: language_level=3
"""Signalling a peer that may do anything with its descriptors, and never waiting for it."""

from libc.string cimport memset

import os

include "_signals.pxi"

cdef extern from "<linux/aio_abi.h>" nogil:
    ctypedef unsigned long aio_context_t
    struct iocb:
        uint64_t aio_data
        unsigned short aio_lio_opcode
        unsigned int aio_fildes
        uint64_t aio_buf
        uint64_t aio_nbytes
        int64_t aio_offset
        unsigned int aio_flags
        unsigned int aio_resfd
    struct io_event:
        int64_t res
    int IOCB_CMD_PREAD
    int IOCB_FLAG_RESFD

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_io_setup
    long SYS_io_submit
    long SYS_io_getevents
    long SYS_io_destroy

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)


def take(int fd):
    """Take what was signalled, without waiting. False: nobody signals any more.

    Raises:
        OSError: BlockingIOError if there is nothing.
    """
    cdef char buffer[4096]
    cdef ssize_t count = take_signal(fd, buffer, sizeof(buffer))
    if count < 0:
        raise OSError(errno, os.strerror(errno))
    return count > 0


cdef class Signaller:
    """Signals eventfds, sockets and pipes. It holds nothing before it is used, and may be used again after `close`.

    A write to an eventfd waits while its counter is full, unless the flags say otherwise, and those are the peer's,
    too. The kernel signals an eventfd without waiting when asynchronous I/O ends (IOCB_FLAG_RESFD, linux/aio_abi.h):
    so what signals is the end of a read of nothing. Where the host has no such I/O for us (a container's system call
    filter, say), the counter is looked at before it is written.
    """

    cdef aio_context_t context
    cdef int nothing  # an empty file
    cdef bint refused

    def __cinit__(self):
        self.nothing = -1

    def __dealloc__(self):
        self._give_back()

    def open(self):
        """Take what it needs now: a file and a context for asynchronous I/O, where there is one."""
        if not self.context:
            self._open()

    def close(self):
        """Give back what it holds. Takes the kernel some 30 ms. While nobody signals."""
        with nogil:
            self._give_back()

    cdef void _give_back(self) noexcept nogil:
        cdef aio_context_t context = self.context
        self.context = 0
        if self.nothing >= 0:
            close(self.nothing)
            self.nothing = -1
        if context:
            syscall(SYS_io_destroy, context)

    def signal(self, int fd):
        """Signal. What is full has been signalled, and a pipe or socket that nobody reads needs no signal."""
        cdef uint64_t one = 1
        cdef pollfd entry = pollfd(fd, POLLOUT, 0)
        if self._end_a_read(fd) or send_signal(fd):
            return
        if poll(&entry, 1, 0) > 0 and entry.revents & POLLOUT:
            write(fd, &one, 8)

    cdef bint _end_a_read(self, int fd):
        """False: it is no eventfd, or the host refuses."""
        cdef iocb request
        cdef iocb *requests = &request
        cdef io_event event
        cdef char nowhere
        if not self.context and not self._open():
            return False
        memset(&request, 0, sizeof(request))
        request.aio_lio_opcode, request.aio_fildes = <unsigned short>IOCB_CMD_PREAD, self.nothing
        request.aio_buf, request.aio_nbytes = <uint64_t><size_t>&nowhere, 1
        request.aio_flags, request.aio_resfd = IOCB_FLAG_RESFD, fd
        if syscall(SYS_io_submit, self.context, 1, &requests) != 1:
            return False
        syscall(SYS_io_getevents, self.context, 0, 1, &event, NULL)
        return True

    cdef bint _open(self):
        if self.refused:
            return False
        if syscall(SYS_io_setup, 1, &self.context):
            self.context, self.refused = 0, True
            return False
        try:
            self.nothing = os.memfd_create("iolane-nothing", os.MFD_CLOEXEC)
        except OSError:
            self.close()
            self.refused = True
        return not self.refused
