# Where compiled code reads and writes blocks.

@cython.final
cdef class BlockPath:
    """Where block requests go.

    Args:
        fd: the image.
        size: bytes.
        mode: 0: reads are copied from a mapping at `address`; 1: `preadv2` from the page cache, and io_uring for what
            is not there; 2: io_uring for everything (the descriptor has O_DIRECT). Where the host has no io_uring for
            us, requests that need it wait instead.
        read_only: writes are left to Python, which refuses them, or does more than to write. May be changed.
        address: of the mapping, with mode 0.
        broken: address of the mapping's flag that tells the file was cut, with mode 0.
        own_fd: the descriptor is closed with this.
        keep: what must live as long: the mapping, the descriptor's owner.
    """

    cdef bint own_fd
    cdef int fd
    cdef uint64_t size
    cdef readonly int mode
    cdef public bint read_only
    cdef const uint8_t *image
    cdef const uint32_t *broken
    cdef object keep

    def __cinit__(
        self, int fd, uint64_t size, int mode, bint read_only=False, size_t address=0, size_t broken=0, keep=None, *,
        bint own_fd=False,
    ):
        if mode not in (MODE_MMAP, MODE_CACHE, MODE_DIRECT) or (mode == MODE_MMAP and (address == 0 or broken == 0)):
            raise ValueError(f"mode {mode}")
        self.fd, self.size, self.mode, self.read_only = fd, size, mode, read_only
        self.image = <const uint8_t *>address
        self.broken = <const uint32_t *>broken
        self.keep = keep
        self.own_fd = own_fd

    def become(self, BlockPath other not None):
        """Take the place of `other`, which is of no use afterwards. While no queue runs."""
        self.fd, other.fd = other.fd, self.fd
        self.own_fd, other.own_fd = other.own_fd, self.own_fd
        self.keep, other.keep = other.keep, self.keep
        self.size, self.image, self.broken = other.size, other.image, other.broken
        self.mode, self.read_only = other.mode, other.read_only

    def __dealloc__(self):
        if self.own_fd:
            close(self.fd)


cdef struct Flight:  # a transfer under way in io_uring
    Pieces pieces
    uint32_t total
    uint16_t head
    bint is_read
