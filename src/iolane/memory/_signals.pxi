# Signals between two sides that share a descriptor: eventfds, pipes and sockets.
#
# A descriptor's flags are whoever's has it, so that a peer may clear O_NONBLOCK at any time, and take or fill what
# `poll` has just seen. Nothing here leans on the flag, but for pipes, which are opened anew and so have flags of ours.

from libc.errno cimport EINTR, ENOTSOCK, EOPNOTSUPP, errno
from libc.stdint cimport int64_t, uint64_t

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, iovec *vectors, int count, int64_t offset, int flags)
    int RWF_NOWAIT

cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    ssize_t send(int fd, const void *buffer, size_t count, int flags)
    ssize_t recv(int fd, void *buffer, size_t count, int flags)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int POLLOUT
    int poll(pollfd *entries, unsigned long count, int timeout)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)


cdef ssize_t take_signal(int fd, void *buffer, size_t size) noexcept nogil:
    """Read what was signalled, without waiting. Bytes; 0: nobody signals any more; -1: see errno, EAGAIN for nothing."""
    cdef iovec whole = iovec(buffer, size)
    cdef ssize_t count = preadv2(fd, &whole, 1, -1, RWF_NOWAIT)
    if count >= 0 or errno != EOPNOTSUPP:
        return count
    count = recv(fd, buffer, size, MSG_DONTWAIT)  # sockets before Linux 6.4
    if count < 0 and errno == ENOTSOCK:
        count = read(fd, buffer, size)  # pipes before Linux 6.4, and eventfds before 5.8, which may wait here
    return count


cdef bint send_signal(int fd) noexcept nogil:
    """Signal a socket, without waiting: one that is full has been signalled. False: it is no socket."""
    cdef uint64_t one = 1
    return send(fd, &one, 8, MSG_DONTWAIT | MSG_NOSIGNAL) >= 0 or errno != ENOTSOCK
