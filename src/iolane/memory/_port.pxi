# The network's end of a queue pair, for compiled code: a tap, a socket, or a network in memory.

cdef extern from "<sys/uio.h>" nogil:
    ssize_t readv(int fd, iovec *vectors, int count)
    ssize_t writev(int fd, iovec *vectors, int count)

cdef packed struct PacketHeader:  # struct virtio_net_hdr_v1 (virtio 1.3, 5.1.6)
    uint8_t flags
    uint8_t gso_type
    uint16_t header_length
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
    uint16_t num_buffers

cdef enum:
    HEADER = 12
    ETHERNET = 14
    LARGEST_FRAME = 14 + 40 + 65535  # as iolane.backends.net.base has it
    LARGEST_PACKET = HEADER + LARGEST_FRAME
    PORT_TAP = 0
    PORT_SINK = 1
    PORT_SOURCE = 2
    PORT_ECHO = 3
    PORT_STREAM = 4
    ECHOES = 256  # packets, a power of two
    SEND_DONE = 1
    SEND_FULL = 0
    SEND_FAILED = -1


cdef void scatter(iovec *vectors, const uint8_t *source, size_t length) noexcept nogil:
    """Copy to pieces that have room for it."""
    cdef size_t part
    while length:
        part = min(vectors.iov_len, length)
        memcpy(vectors.iov_base, source, part)
        source += part
        length -= part
        vectors += 1


cdef void collect(const iovec *vectors, uint8_t *target, size_t length) noexcept nogil:
    """Copy from pieces that have so much."""
    cdef size_t part
    while length:
        part = min(vectors.iov_len, length)
        memcpy(target, vectors.iov_base, part)
        target += part
        length -= part
        vectors += 1


include "_stream.pxi"


@cython.final
cdef class NetPort:
    """Where packets, header and frame, go to and come from.

    One thread may read while another writes.

    Args:
        kind: 0: a tap at `fd`, which is non-blocking; 1: what is sent is dropped, and nothing comes; 2: the same, but
            frames of `length` bytes come without end; 3: frames of up to `length` bytes come back; 4: a peer at a
            socket, see `stream`.
        fd: stays the caller's.

    Attributes:
        admitted: what `take_back` would give was found to be as the driver wants it.
        arrival, room: with kind 3, eventfds by which who waits is told.
        stream: with kind 4, the peer.
        packets_read, packets_written: what passed here.
    """

    cdef readonly int kind
    cdef int fd
    cdef uint32_t length
    cdef uint8_t *unread  # a packet that was read and could not be delivered; the next to be read
    cdef uint32_t unread_length
    cdef readonly bint admitted
    cdef uint8_t *slots
    cdef uint32_t *lengths
    cdef uint32_t first, last  # of the packets in `slots`; both run freely
    cdef uint32_t reader_waits, writer_waits, write_lock
    cdef readonly int arrival, room
    cdef readonly FrameStream stream
    cdef readonly uint64_t packets_read, packets_written

    def __cinit__(self, int kind, *, int fd=-1, uint32_t length=0):
        self.arrival = self.room = -1
        if not PORT_TAP <= kind <= PORT_STREAM or (kind == PORT_TAP) != (fd >= 0):
            raise ValueError(f"kind {kind} with descriptor {fd}")
        if kind in (PORT_SOURCE, PORT_ECHO) and not ETHERNET <= length <= LARGEST_FRAME:
            raise ValueError(f"frames of {length} bytes")
        self.kind, self.fd, self.length = kind, fd, HEADER + length
        if kind == PORT_STREAM:
            self.stream = FrameStream()
            self.fd = self.stream.fd
        self.unread = <uint8_t *>calloc(1, LARGEST_PACKET)
        self.slots = <uint8_t *>calloc(ECHOES if kind == PORT_ECHO else 1, self.length)
        self.lengths = <uint32_t *>calloc(ECHOES, sizeof(uint32_t))
        if self.unread == NULL or self.slots == NULL or self.lengths == NULL:
            raise MemoryError
        if kind == PORT_ECHO:
            self.arrival, self.room = (os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) for _ in range(2))

    def __dealloc__(self):
        free(self.unread)
        free(self.slots)
        free(self.lengths)
        for fd in (self.arrival, self.room):
            if fd >= 0:
                close(fd)

    # Python's side.

    def put_back(self, bytes packet not None):
        """The packet that is to be read next; it was admitted. While no other thread reads."""
        if not HEADER <= len(packet) <= LARGEST_PACKET:
            raise ValueError(f"a packet of {len(packet)} bytes")
        memcpy(self.unread, <const char *>packet, len(packet))
        self.unread_length, self.admitted = <uint32_t>len(packet), True

    def take_back(self):
        """What `put_back`, or compiled code that could not deliver it, has left here; else None."""
        length, self.unread_length = self.unread_length, 0
        return None if length == 0 else (<char *>self.unread)[:length]

    def receive(self):
        """The next packet; not of a tap. None: `arrival`, or the stream's peer, tells of the next."""
        cdef iovec whole = iovec(self.unread, LARGEST_PACKET)
        self.has_woken(True)
        cdef pollfd entries[2]
        cdef ssize_t length = -EAGAIN
        while self.kind != PORT_TAP and (length := self.read(&whole, 1)) == -EAGAIN:
            if self.make_ready_to_wait(True, entries):
                return None
        self.flush()
        return None if length < 0 else (<char *>self.unread)[:length]

    def send(self, bytes packet not None):
        """Send; not to a tap. 1: sent; 0: `room`, or the stream's peer, tells when there is room; -1: it can't be."""
        if not HEADER <= len(packet) <= LARGEST_PACKET:
            return SEND_FAILED
        cdef uint8_t *start = <uint8_t *><const char *>packet
        cdef iovec pieces[2]
        cdef pollfd entries[2]
        cdef int outcome = SEND_FAILED
        pieces[0], pieces[1] = iovec(start, HEADER), iovec(start + HEADER, len(packet) - HEADER)
        while self.kind != PORT_TAP and (outcome := self.write(pieces, 2, len(packet))) == SEND_FULL:
            if self.make_ready_to_wait(False, entries):
                break
        self.flush()
        return outcome

    def disconnect(self):
        """A tap's interface is gone: nobody waits for it any more."""
        self.fd = -1

    # Without the GIL.

    cdef ssize_t read(self, iovec *vectors, int count) noexcept nogil:
        """Read a packet into pieces that have room for any. Its length, or a negative errno."""
        cdef ssize_t length = -EAGAIN
        cdef uint32_t slot
        if self.kind == PORT_TAP:
            length = readv(self.fd, vectors, count)
            while length < 0 and errno == EINTR:
                length = readv(self.fd, vectors, count)
            if length < 0:
                return -EAGAIN if self.fd < 0 else -errno
        elif self.kind == PORT_STREAM:
            length = self.stream.read_frame(vectors)
            if length < 0:
                return length
        elif self.kind == PORT_SOURCE:
            length = self.length
            scatter(vectors, self.slots, length)
        elif self.first != ring_load32(&self.last):
            slot = self.first % ECHOES
            length = self.lengths[slot]
            scatter(vectors, self.slots + <size_t>slot * self.length, length)
            ring_store32(&self.first, self.first + 1)
        else:
            return -EAGAIN
        self.packets_read += 1
        return length

    cdef int write(self, iovec *vectors, int count, size_t length) noexcept nogil:
        """Write a packet whose first piece is its header."""
        cdef ssize_t done
        cdef int outcome
        if self.kind == PORT_TAP:
            done = writev(self.fd, vectors, count)
            while done < 0 and errno == EINTR:
                done = writev(self.fd, vectors, count)
            if done < 0:
                return SEND_FULL if errno == EAGAIN else SEND_FAILED
        elif self.kind == PORT_STREAM:
            outcome = self.stream.write_frame(vectors, count, length)
            if outcome != SEND_DONE:
                return outcome
        elif self.kind == PORT_ECHO:
            if length > self.length:
                return SEND_FAILED
            if not self._keep(vectors, length):
                return SEND_FULL
        self.packets_written += 1
        return SEND_DONE

    cdef bint _keep(self, iovec *vectors, size_t length) noexcept nogil:
        """Put a packet behind those that are to come back. The device itself may send, too: an announcement."""
        cdef uint32_t slot
        take_lock(&self.write_lock)
        cdef bint room = self.last - ring_load32(&self.first) < ECHOES
        if room:
            slot = self.last % ECHOES
            self.lengths[slot] = <uint32_t>length
            collect(vectors, self.slots + <size_t>slot * self.length, length)
            ring_store32(&self.last, self.last + 1)
        ring_store32(&self.write_lock, 0)
        return room

    cdef void flush(self) noexcept nogil:
        """After a batch: wake who waits for what was read or written."""
        cdef uint64_t one = 1
        if self.kind != PORT_ECHO:
            return
        ring_fence()
        if ring_load32(&self.reader_waits) and self.is_ready(True) and ring_exchange32(&self.reader_waits, 0):
            write(self.arrival, &one, 8)
        if ring_load32(&self.writer_waits) and self.is_ready(False) and ring_exchange32(&self.writer_waits, 0):
            write(self.room, &one, 8)

    cdef bint asks_the_kernel(self) noexcept nogil:
        """Whether to look if there is something is a system call."""
        return self.kind == PORT_TAP or self.kind == PORT_STREAM

    cdef bint is_behind(self) noexcept nogil:
        """Whether part of a packet is still to be written, and can't be."""
        return self.kind == PORT_STREAM and not self.stream.push_rest() and not self.stream.trouble

    cdef bint is_ready(self, bint receives) noexcept nogil:
        """Whether an echo has a packet, or room for one. Of others nothing is known."""
        cdef uint32_t count = ring_load32(&self.last) - ring_load32(&self.first)
        return self.kind == PORT_ECHO and (count != 0 if receives else count < ECHOES)

    cdef bint make_ready_to_wait(self, bint receives, pollfd *entries) noexcept nogil:
        """What to wait for until `read`, or `write`, is of use: two entries. False: it is already."""
        cdef uint32_t *waits = &self.reader_waits if receives else &self.writer_waits
        entries[0] = pollfd(self.fd, POLLIN if receives else POLLOUT, 0)
        entries[1] = pollfd(self._news(receives), POLLIN, 0)
        if self.kind != PORT_ECHO:
            return True
        ring_store32(waits, 1)
        ring_fence()  # who reads or writes looks at the wish after that
        if not self.is_ready(receives):
            return True
        ring_store32(waits, 0)
        return False

    cdef int _news(self, bint receives) noexcept nogil:
        """An eventfd, or -1."""
        if self.kind == PORT_STREAM:
            return self.stream.reader_news if receives else self.stream.writer_news
        return self.arrival if receives else self.room

    cdef void has_woken(self, bint receives) noexcept nogil:
        cdef uint64_t count
        cdef int fd = self._news(receives)
        if fd >= 0:
            read(fd, &count, 8)
