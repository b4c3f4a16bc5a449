# Guest memory, and chains of descriptors in it.

cdef struct Region:
    uint64_t start
    uint64_t size
    uint8_t *host
    bint writable


@cython.final
cdef class RegionTable:
    """Guest memory as the driver names it.

    Args:
        regions: (start, size, address in this process, writable, address of a flag that tells it is broken or 0).
        keep: kept alive as long as the table: the mappings.
    """

    cdef Region *regions
    cdef int count
    cdef const uint32_t **flags  # each once: regions share files
    cdef int flag_count
    cdef object keep

    def __cinit__(self, regions, keep=None):
        regions = list(regions)
        if not 0 < len(regions) <= LARGEST_TABLE:
            raise ValueError(f"{len(regions)} regions")
        flags = sorted({broken for *_, broken in regions if broken})
        self.regions = <Region *>calloc(len(regions), sizeof(Region))
        self.flags = <const uint32_t **>calloc(len(flags) + 1, sizeof(void *))
        if self.regions == NULL or self.flags == NULL:
            raise MemoryError
        self.keep = keep
        self.count, self.flag_count = len(regions), len(flags)
        for index, flag in enumerate(flags):
            self.flags[index] = <const uint32_t *><size_t>flag
        for index, (start, size, address, writable, _) in enumerate(regions):
            if size <= 0 or address == 0 or start + size > 1 << 64:
                raise ValueError(f"region at {start:#x}, {size:#x} bytes")
            self.regions[index] = Region(start, size, <uint8_t *><size_t>address, writable)

    def __dealloc__(self):
        free(self.regions)
        free(self.flags)

    cdef bint lost(self) noexcept nogil:
        """Whether a part of this memory was found cut away."""
        cdef int index
        for index in range(self.flag_count):
            if ring_load32(self.flags[index]):
                return True
        return False

    cdef uint8_t *translate(self, uint64_t address, uint64_t length, bint write, Region *cached) noexcept nogil:
        """Where a range lies that is in one region; NULL: nowhere, or the device may not write there."""
        cdef int index
        if cached.host == NULL or address - cached.start >= cached.size:
            for index in range(self.count):
                if address - self.regions[index].start < self.regions[index].size:
                    cached[0] = self.regions[index]
                    break
            else:
                return NULL
        if length > cached.size - (address - cached.start) or (write and not cached.writable):
            return NULL
        return cached.host + (address - cached.start)


cdef Descriptor read_descriptor(const Descriptor *place) noexcept nogil:
    """A copy that the driver can't change any more."""
    cdef Descriptor copy
    cdef uint64_t rest = ring_read64(<const uint8_t *>place + 8)
    copy.address = ring_read64(place)
    copy.length = <uint32_t>rest
    copy.flags = <uint16_t>(rest >> 32)
    copy.next = <uint16_t>(rest >> 48)
    return copy


cdef struct Pieces:  # a chain, as memory of this process
    iovec vectors[LARGEST_CHAIN]
    uint64_t addresses[LARGEST_CHAIN]
    int count
    int readable  # so many at the start are the device's to read, the others to write
