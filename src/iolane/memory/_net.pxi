# What compiled code may do with the packets of one queue.

cdef enum:
    NEEDS_CSUM = 1
    DATA_VALID = 2
    GSO_TCPV4 = 1
    GSO_TCPV6 = 4
    GSO_ECN = 0x80
    OFFLOAD_CSUM = 1  # TUN_F_*, iolane.backends.net.Offload
    OFFLOAD_TSO4 = 2
    OFFLOAD_TSO6 = 4
    OFFLOAD_ECN = 8
    USUAL_FRAME = 1514


@cython.final
cdef class NetPath:
    """Where the packets of a queue go, or come from.

    Args:
        port: the network's end.
        receives: it is a receive queue.

    Attributes:
        open: packets may pass without Python; else each is Python's (the link is down, say).
        packets, bytes: what passed by compiled code alone.
    """

    cdef readonly NetPort port
    cdef readonly bint receives
    cdef public bint open
    cdef uint32_t offloads, longest
    cdef bint mergeable, checksums
    cdef uint32_t expected  # bytes of a frame: for so many buffers are looked up before it is read
    cdef readonly uint64_t packets, bytes

    def __cinit__(self, NetPort port not None, *, bint receives):
        self.port, self.receives, self.open = port, receives, True
        self.longest, self.expected = LARGEST_FRAME, USUAL_FRAME

    def agree(self, *, uint32_t offloads, uint32_t longest=LARGEST_FRAME, bint mergeable=False, bint checksums=False):
        """What was negotiated. While the queue does not run.

        Args:
            offloads: what is left to the receiving end, TUN_F_*.
            longest: bytes of a frame that is not to be cut.
            mergeable: a received packet may take several chains.
            checksums: the driver takes checksums that are only begun (GUEST_CSUM).
        """
        self.offloads, self.longest = offloads, min(longest, <uint32_t>LARGEST_FRAME)
        self.mergeable, self.checksums = mergeable, checksums

    cdef void expect(self, uint32_t length) noexcept nogil:
        """Frames of about this length are to be expected: at once if they are longer, by and by if they are shorter."""
        if length > self.expected:
            self.expected = length
        else:
            self.expected -= (self.expected - length) // 16


cdef uint32_t offload_of(uint8_t gso_type) noexcept nogil:
    """What the receiving end must be able to do for segments of this kind; 0: they are of no known kind."""
    cdef uint32_t needed = 0
    if gso_type & ~GSO_ECN == GSO_TCPV4:
        needed = OFFLOAD_TSO4
    elif gso_type & ~GSO_ECN == GSO_TCPV6:
        needed = OFFLOAD_TSO6
    return needed | OFFLOAD_ECN if needed and gso_type & GSO_ECN else needed


cdef bint may_be_sent(NetPath path, PacketHeader *header, int64_t length) noexcept nogil:
    """Whether the driver broke no rule (5.1.6.2); what means nothing to the network is taken out of the header.

    `iolane.devices.virtio.net.header.checked` is its oracle, and names the rule.
    """
    cdef bint begun = (header.flags & NEEDS_CSUM) != 0
    cdef uint32_t needed
    if length < ETHERNET or length > LARGEST_FRAME:
        return False
    if begun and (not path.offloads & OFFLOAD_CSUM or <int64_t>header.csum_start + header.csum_offset + 2 > length):
        return False
    if header.gso_type == 0:
        if length > path.longest:
            return False
        header.gso_size = 0
    else:
        needed = offload_of(header.gso_type)
        if not needed or needed & ~path.offloads or not begun or not header.gso_size:
            return False
    header.flags = begun
    header.header_length = <uint16_t>min(<int64_t>header.header_length, length)
    if not begun:
        header.csum_start = header.csum_offset = 0
    header.num_buffers = 0
    return True


cdef bint may_be_received(NetPath path, const PacketHeader *header, int64_t length) noexcept nogil:
    """Whether the driver takes the packet as it is (5.1.6.4.1)."""
    cdef uint32_t needed
    if length < ETHERNET or (header.flags & (NEEDS_CSUM | DATA_VALID) and not path.checksums):
        return False
    if header.gso_type == 0:
        return length <= path.longest
    needed = offload_of(header.gso_type)
    return needed != 0 and not needed & ~path.offloads
