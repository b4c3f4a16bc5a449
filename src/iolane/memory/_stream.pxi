# Frames on a byte stream, each behind its length (4 bytes, big-endian): what QEMU's `-netdev stream` and passt speak.
# `iolane.backends.net.SocketPeer` has its oracle.

cdef extern from "<unistd.h>" nogil:
    int dup3(int fd, int target, int flags)

cdef extern from "<fcntl.h>" nogil:
    int O_CLOEXEC

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int SHUT_RDWR
    int shutdown(int fd, int how)
    ssize_t sendmsg(int fd, const msghdr *message, int flags)

cdef enum:
    PREFIX = 4
    STREAM_START = HEADER - PREFIX  # of the input: before a frame, its prefix included, there is room for a header
    STREAM_ROOM = 1 << 20
    TROUBLE_GONE = 1
    TROUBLE_NONSENSE = 2


@cython.final
cdef class FrameStream:
    """A socket on which frames come and go, whoever is behind it.

    One thread may read while another writes and a third connects, or cuts. The descriptor keeps its number all its
    life, so that nobody ever reads from what another has opened meanwhile. poll(2) does not see that another socket
    is behind a number: who waits for one must wait for news, too.

    Attributes:
        fd: the socket.
        reader_news, writer_news: eventfds that tell of another socket.
        trouble: why the peer must go: 0, or 1: it has left, 2: it says nonsense.
        pending: part of a frame is still to be written; `push` does it.
    """

    cdef readonly int fd
    cdef readonly int reader_news, writer_news
    cdef int idle  # an eventfd, never signalled: behind `fd` while there is no peer
    cdef readonly int trouble
    cdef bint connected
    cdef uint32_t read_lock, write_lock
    cdef uint8_t *input
    cdef uint8_t *output
    cdef size_t first, last  # of the bytes in `input` that nobody has taken
    cdef size_t sent, kept  # of the bytes in `output`

    def __cinit__(self):
        self.fd = self.idle = self.reader_news = self.writer_news = -1
        self.input = <uint8_t *>calloc(1, STREAM_START + STREAM_ROOM)
        self.output = <uint8_t *>calloc(1, PREFIX + LARGEST_FRAME)
        if self.input == NULL or self.output == NULL:
            raise MemoryError
        self.first = self.last = STREAM_START
        self.idle, self.reader_news, self.writer_news = (
            os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(3)
        )
        self.fd = os.dup(self.idle)

    def __dealloc__(self):
        free(self.input)
        free(self.output)
        for fd in (self.fd, self.idle, self.reader_news, self.writer_news):
            if fd >= 0:
                close(fd)

    # Python's side. These locks are never held while the GIL is waited for.

    @property
    def pending(self):
        return self.kept != self.sent

    def connect(self, int fd, bytes input=b"", bytes output=b""):
        """Use a socket, of which the caller keeps its own descriptor.

        Args:
            input: what was read from it already.
            output: what is still to be written of a frame.
        """
        if len(input) > STREAM_ROOM or len(output) > PREFIX + LARGEST_FRAME:
            raise ValueError(f"{len(input)} bytes of input, {len(output)} of output")
        self._lock()
        self._forget()
        memcpy(self.input + STREAM_START, <const char *>input, len(input))
        memcpy(self.output, <const char *>output, len(output))
        self.last, self.kept = STREAM_START + len(input), len(output)
        cdef bint done = dup3(fd, self.fd, O_CLOEXEC) >= 0
        self.connected = done
        self._unlock()
        self._tell()
        if not done:
            raise ValueError(f"{fd} is no descriptor")

    def cut(self):
        """The peer is gone, or is to go: what came and nobody has read is forgotten."""
        self._lock()
        self._forget()
        if self.connected:
            shutdown(self.fd, SHUT_RDWR)
        self.connected = False
        dup3(self.idle, self.fd, O_CLOEXEC)
        self._unlock()
        self._tell()

    def push(self):
        """Go on with a frame that was not written whole. Whether it is now."""
        return self.push_rest()

    # Without the GIL.

    cdef bint push_rest(self) noexcept nogil:
        take_lock(&self.write_lock)
        cdef bint done = self._push()
        ring_store32(&self.write_lock, 0)
        return done

    cdef void _lock(self) noexcept nogil:
        take_lock(&self.read_lock)
        take_lock(&self.write_lock)

    cdef void _unlock(self) noexcept nogil:
        ring_store32(&self.write_lock, 0)
        ring_store32(&self.read_lock, 0)

    cdef void _tell(self) noexcept nogil:
        cdef uint64_t one = 1
        write(self.reader_news, &one, 8)
        write(self.writer_news, &one, 8)

    cdef void _forget(self) noexcept nogil:
        self.first = self.last = STREAM_START
        self.sent = self.kept = 0
        self.trouble = 0

    cdef ssize_t read_frame(self, iovec *vectors) noexcept nogil:
        """Read a frame, and a header of zeroes before it. Their length, -EAGAIN, or -EPIPE: there is trouble."""
        take_lock(&self.read_lock)
        cdef ssize_t length = self._next()
        cdef uint8_t *start
        if length >= 0:
            start = self.input + self.first + PREFIX - HEADER
            memset(start, 0, HEADER)
            scatter(vectors, start, HEADER + length)
            self.first += PREFIX + length
            length += HEADER
        ring_store32(&self.read_lock, 0)
        return length

    cdef ssize_t _next(self) noexcept nogil:
        """The length of the frame that starts at `first`, once it is there."""
        cdef size_t waiting
        cdef uint32_t length
        cdef ssize_t count
        while True:
            waiting = self.last - self.first
            if waiting >= PREFIX:
                length = big_endian(self.input + self.first)
                if length > LARGEST_FRAME:
                    self.trouble = TROUBLE_NONSENSE
                    return -EPIPE
                if waiting >= PREFIX + <size_t>length:
                    return length
            if not self.connected:
                return -EAGAIN
            if self.first > STREAM_START:
                memmove(self.input + STREAM_START, self.input + self.first, waiting)
                self.first, self.last = STREAM_START, STREAM_START + waiting
            count = recv(self.fd, self.input + self.last, STREAM_ROOM - waiting, MSG_DONTWAIT)
            if count > 0:
                self.last += count
            elif count < 0 and errno == EAGAIN and not self.trouble:
                return -EAGAIN
            elif count == 0 or errno != EINTR:
                self.trouble = self.trouble or TROUBLE_GONE
                return -EPIPE

    cdef int write_frame(self, iovec *vectors, int count, size_t length) noexcept nogil:
        """Write a packet of `length` bytes whose header, which is not written, is the first of the pieces."""
        cdef uint8_t prefix[PREFIX]
        cdef int outcome
        length -= HEADER
        prefix[0], prefix[1] = <uint8_t>(length >> 24), <uint8_t>(length >> 16)
        prefix[2], prefix[3] = <uint8_t>(length >> 8), <uint8_t>length
        vectors[0] = iovec(&prefix[0], PREFIX)
        take_lock(&self.write_lock)
        outcome = self._write(vectors, count, PREFIX + length) if self._push() else SEND_FULL
        if not self.connected or self.trouble:
            outcome = SEND_FAILED
        ring_store32(&self.write_lock, 0)
        return outcome

    cdef int _write(self, iovec *vectors, int count, size_t length) noexcept nogil:
        cdef iovec rest[LARGEST_CHAIN + 1]
        cdef ssize_t done
        if not self.connected:
            return SEND_FAILED
        done = self._send(vectors, count)
        if done <= 0:
            return SEND_FULL
        if <size_t>done < length:
            behind(vectors, count, done, rest)
            self.sent, self.kept = 0, length - done
            collect(rest, self.output, self.kept)
        return SEND_DONE

    cdef bint _push(self) noexcept nogil:
        """Whether nothing is kept any more."""
        cdef iovec rest
        cdef ssize_t done
        while self.kept != self.sent and self.connected:
            rest = iovec(self.output + self.sent, self.kept - self.sent)
            done = self._send(&rest, 1)
            if done <= 0:
                return False
            self.sent += done
        return True

    cdef ssize_t _send(self, iovec *vectors, int count) noexcept nogil:
        """Bytes that were taken; 0: there is no room, or trouble."""
        cdef msghdr message
        cdef ssize_t done = -1
        memset(&message, 0, sizeof(message))
        message.msg_iov, message.msg_iovlen = vectors, count
        while done < 0:
            done = sendmsg(self.fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)
            if done < 0 and errno != EINTR:
                if errno != EAGAIN:
                    self.trouble = self.trouble or TROUBLE_GONE
                return 0
        return done


cdef uint32_t big_endian(const uint8_t *bytes) noexcept nogil:
    return <uint32_t>bytes[0] << 24 | <uint32_t>bytes[1] << 16 | <uint32_t>bytes[2] << 8 | bytes[3]
