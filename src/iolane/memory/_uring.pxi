# io_uring by its system calls (linux/io_uring.h): one ring a queue, vectored reads and writes, no polling thread.

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "<linux/io_uring.h>" nogil:
    struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t array
    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t cqes
    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    struct io_uring_sqe:
        uint8_t opcode
        int fd
        uint64_t off
        uint64_t addr
        uint32_t len
        uint64_t user_data
    struct io_uring_cqe:
        uint64_t user_data
        int res
    int IORING_OP_READV
    int IORING_OP_WRITEV
    int IORING_ENTER_GETEVENTS
    long IORING_OFF_SQ_RING
    long IORING_OFF_CQ_RING
    long IORING_OFF_SQES

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_io_uring_setup
    long SYS_io_uring_enter

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef struct Uring:
    int fd
    uint8_t *submissions
    uint8_t *completions
    size_t submissions_size
    size_t completions_size
    size_t entries_size
    io_uring_sqe *entries
    io_uring_params parameters
    uint32_t queued
    bint open


cdef void *uring_map(int fd, size_t size, long offset) noexcept nogil:
    cdef void *place = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset)
    return NULL if place == MAP_FAILED else place


cdef int uring_open(Uring *ring, uint32_t entries) noexcept nogil:
    """0, or a negative errno."""
    memset(ring, 0, sizeof(Uring))
    ring.fd = <int>syscall(SYS_io_uring_setup, entries, &ring.parameters)
    if ring.fd < 0:
        return -errno
    cdef io_uring_params *p = &ring.parameters
    ring.submissions_size = p.sq_off.array + p.sq_entries * sizeof(uint32_t)
    ring.completions_size = p.cq_off.cqes + p.cq_entries * sizeof(io_uring_cqe)
    ring.entries_size = p.sq_entries * sizeof(io_uring_sqe)
    ring.submissions = <uint8_t *>uring_map(ring.fd, ring.submissions_size, IORING_OFF_SQ_RING)
    ring.completions = <uint8_t *>uring_map(ring.fd, ring.completions_size, IORING_OFF_CQ_RING)
    ring.entries = <io_uring_sqe *>uring_map(ring.fd, ring.entries_size, IORING_OFF_SQES)
    if ring.submissions == NULL or ring.completions == NULL or ring.entries == NULL:
        uring_close(ring)
        return -ENOMEM
    ring.open = True
    return 0


cdef void uring_close(Uring *ring) noexcept nogil:
    if ring.submissions != NULL:
        munmap(ring.submissions, ring.submissions_size)
    if ring.completions != NULL:
        munmap(ring.completions, ring.completions_size)
    if ring.entries != NULL:
        munmap(ring.entries, ring.entries_size)
    if ring.fd > 0:
        close(ring.fd)
    memset(ring, 0, sizeof(Uring))


cdef bint uring_queue(Uring *ring, bint write, int fd, iovec *vectors, int count, uint64_t offset, uint64_t data) noexcept nogil:
    """Queue a transfer; False: there is no room."""
    cdef uint32_t *tail = <uint32_t *>(ring.submissions + ring.parameters.sq_off.tail)
    cdef uint32_t *array = <uint32_t *>(ring.submissions + ring.parameters.sq_off.array)
    cdef uint32_t head = ring_load32(ring.submissions + ring.parameters.sq_off.head)
    cdef uint32_t mask = (<uint32_t *>(ring.submissions + ring.parameters.sq_off.ring_mask))[0]
    if tail[0] - head >= ring.parameters.sq_entries:
        return False
    cdef uint32_t slot = tail[0] & mask
    cdef io_uring_sqe *entry = &ring.entries[slot]
    memset(entry, 0, sizeof(io_uring_sqe))
    entry.opcode = <uint8_t>(IORING_OP_WRITEV if write else IORING_OP_READV)
    entry.fd = fd
    entry.off = offset
    entry.addr = <uint64_t>vectors
    entry.len = count
    entry.user_data = data
    array[slot] = slot
    ring_store32(tail, tail[0] + 1)
    ring.queued += 1
    return True


cdef bint uring_submit(Uring *ring) noexcept nogil:
    """Hand what is queued to the kernel. False: it does not take what is left."""
    cdef long done
    while ring.queued:
        done = syscall(SYS_io_uring_enter, ring.fd, ring.queued, 0, 0, NULL, 0)
        if done < 0 and errno == EINTR:
            continue
        if done <= 0:
            return False
        ring.queued -= <uint32_t>done
    return True


cdef bint uring_take_back(Uring *ring, uint64_t *data) noexcept nogil:
    """Undo the last `uring_queue` that the kernel has not seen, if there is one: the tail is read by system calls alone."""
    cdef uint32_t *tail = <uint32_t *>(ring.submissions + ring.parameters.sq_off.tail)
    cdef uint32_t mask = (<uint32_t *>(ring.submissions + ring.parameters.sq_off.ring_mask))[0]
    if ring.queued == 0:
        return False
    ring.queued -= 1
    ring_store32(tail, tail[0] - 1)
    data[0] = ring.entries[tail[0] & mask].user_data
    return True


cdef bint uring_next(Uring *ring, uint64_t *data, int *result) noexcept nogil:
    """Take a completion, if there is one."""
    cdef uint32_t *head = <uint32_t *>(ring.completions + ring.parameters.cq_off.head)
    if head[0] == ring_load32(ring.completions + ring.parameters.cq_off.tail):
        return False
    cdef uint32_t mask = (<uint32_t *>(ring.completions + ring.parameters.cq_off.ring_mask))[0]
    cdef io_uring_cqe *entry = (<io_uring_cqe *>(ring.completions + ring.parameters.cq_off.cqes)) + (head[0] & mask)
    data[0] = entry.user_data
    result[0] = entry.res
    ring_store32(head, head[0] + 1)
    return True
