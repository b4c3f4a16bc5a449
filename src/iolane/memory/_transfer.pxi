# What `CompiledQueue` does with a chain: plain block reads and writes (virtio 1.3, 2.7.4 and 5.2.6).

cdef extern from "<sys/uio.h>" nogil:
    ssize_t pwritev(int fd, iovec *vectors, int count, int64_t offset)


cdef bint block_start(CompiledQueue queue, uint16_t head) noexcept nogil:
    """Do or start a plain read or write. False: it is something else."""
    cdef Pieces pieces
    cdef int index
    cdef uint32_t kind
    cdef uint64_t sector, total = 0
    pieces.count = pieces.readable = 0
    if not gather(queue, head, &pieces) or pieces.count < 3:
        return False
    if pieces.vectors[0].iov_len != 16 or pieces.vectors[pieces.count - 1].iov_len != 1 or not pieces.readable:
        return False
    kind = ring_read32(pieces.vectors[0].iov_base)
    sector = ring_read64(<uint8_t *>pieces.vectors[0].iov_base + 8)
    if kind == T_IN:
        if pieces.readable != 1:
            return False
    elif kind != T_OUT or pieces.readable != pieces.count - 1 or queue.path.read_only:
        return False
    for index in range(1, pieces.count - 1):
        total += pieces.vectors[index].iov_len
    if total % SECTOR or total > LARGEST_TRANSFER or total > queue.path.size:
        return False
    if sector > (queue.path.size - total) // SECTOR:
        return False
    return block_transfer(queue, head, &pieces, kind == T_IN, sector * SECTOR, <uint32_t>total)


cdef bint block_transfer(CompiledQueue queue, uint16_t head, Pieces *pieces, bint is_read, uint64_t offset, uint32_t total) noexcept nogil:
    cdef const uint8_t *source
    cdef ssize_t moved
    cdef int index
    cdef int count = pieces.count - 2
    if queue.path.mode == MODE_MMAP and is_read:
        source = queue.path.image + offset
        for index in range(1, count + 1):
            memcpy(pieces.vectors[index].iov_base, source, pieces.vectors[index].iov_len)
            source += pieces.vectors[index].iov_len
        if ring_load32(queue.path.broken):
            return False
    elif queue.path.mode == MODE_DIRECT:
        if queue.uring.open:
            return block_fly(queue, head, pieces, is_read, offset, total)
        if not block_wait(queue, pieces, is_read, offset, total):
            return False
    elif is_read:
        moved = preadv2(queue.path.fd, pieces.vectors + 1, count, <int64_t>offset, RWF_NOWAIT)
        if moved != <ssize_t>total:
            if queue.uring.open:
                return block_fly(queue, head, pieces, is_read, offset, total)
            if not block_wait(queue, pieces, is_read, offset, total):
                return False
    elif not block_wait(queue, pieces, is_read, offset, total):
        return False
    queue.landed_bytes = 0
    block_done(queue, head, pieces, is_read, total)
    return True


cdef bint block_wait(CompiledQueue queue, Pieces *pieces, bint is_read, uint64_t offset, uint32_t total) noexcept nogil:
    """Transfer at once, waiting for the file. False: it failed, or went only half way; Python knows what to answer."""
    cdef int count = pieces.count - 2
    if is_read:
        return preadv2(queue.path.fd, pieces.vectors + 1, count, <int64_t>offset, 0) == <ssize_t>total
    return pwritev(queue.path.fd, pieces.vectors + 1, count, <int64_t>offset) == <ssize_t>total


cdef void block_done(CompiledQueue queue, uint16_t head, Pieces *pieces, bint is_read, uint32_t total) noexcept nogil:
    """A request has ended well: its status, its marks (after what they tell of), its used element."""
    cdef int index
    (<uint8_t *>pieces.vectors[pieces.count - 1].iov_base)[0] = S_OK
    if queue.log != NULL:
        for index in range(pieces.readable, pieces.count):
            queue._mark(pieces.addresses[index], pieces.vectors[index].iov_len)
    queue.requests += 1
    queue.bytes_read += 16 if is_read else 16 + total
    queue.bytes_written += total + 1 if is_read else 1
    queue._give_back(head, total + 1 if is_read else 1)


# Transfers by io_uring.


cdef bint block_fly(CompiledQueue queue, uint16_t head, Pieces *pieces, bint is_read, uint64_t offset, uint32_t total) noexcept nogil:
    """Start a transfer. There is a free flight: chains are taken only while there is."""
    cdef uint16_t slot = queue.free_flights[queue.free_count - 1]
    cdef Flight *flight = &queue.flights[slot]
    cdef int count = pieces.count
    memcpy(flight.pieces.vectors, pieces.vectors, count * sizeof(iovec))
    memcpy(flight.pieces.addresses, pieces.addresses, count * sizeof(uint64_t))
    flight.pieces.count, flight.pieces.readable = count, pieces.readable
    flight.total, flight.head, flight.is_read = total, head, is_read
    if not uring_queue(&queue.uring, not is_read, queue.path.fd, flight.pieces.vectors + 1, count - 2, offset, slot):
        return False
    queue.free_count -= 1
    queue.under_way += 1
    queue.bytes_under_way += total
    queue.bytes_queued += total
    queue.in_sequence = offset == queue.sequence_end
    queue.sequence_end = offset + total
    queue.taken[head] = TAKEN
    return True


cdef bint block_may_hold(CompiledQueue queue) noexcept nogil:
    """Whether what is queued may wait for more: the kernel makes one transfer of neighbours that come together, and
    the disk has enough to do meanwhile.
    """
    return (
        queue.in_sequence
        and queue.bytes_queued < GATHERED_BYTES
        and queue.bytes_under_way - queue.bytes_queued >= BUSY_BYTES
        and not queue.stopping
        and not queue.draining
    )


cdef void block_submit(CompiledQueue queue) noexcept nogil:
    """Hand over what is queued. What the kernel does not take is done by Python."""
    cdef uint64_t slot = 0
    queue.bytes_queued = 0
    if uring_submit(&queue.uring):
        return
    while uring_take_back(&queue.uring, &slot):
        block_landed(queue, slot, -1)


cdef void block_reap(CompiledQueue queue) noexcept nogil:
    cdef uint64_t slot = 0
    cdef int result = 0
    while uring_next(&queue.uring, &slot, &result):
        block_landed(queue, slot, result)


cdef void block_landed(CompiledQueue queue, uint64_t slot, int result) noexcept nogil:
    """A transfer has ended. A failed or short one is done again by Python, which knows what to answer."""
    cdef Flight *flight = &queue.flights[slot]
    queue.free_flights[queue.free_count] = <uint16_t>slot
    queue.free_count += 1
    queue.under_way -= 1
    queue.bytes_under_way -= flight.total
    queue.landed_bytes = flight.total
    if result == <int>flight.total:
        block_done(queue, flight.head, &flight.pieces, flight.is_read, flight.total)
    else:
        queue.asked[queue.asked_count] = flight.head
        queue.asked_count += 1
