# A chain of descriptors as memory of this process (virtio 1.3, 2.7.4 and 2.7.5).


cdef bint gather(CompiledQueue queue, uint16_t head, Pieces *pieces) noexcept nogil:
    """Add a chain to `pieces`. False: it is wrong or unusual, which Python finds out; nothing is added.

    Readable pieces come first; behind those of an earlier chain only writable ones are taken.
    """
    cdef const Descriptor *table = queue.descriptors
    cdef Descriptor one = read_descriptor(table + head)
    cdef uint32_t limit = queue.size
    cdef int count = pieces.count, first = pieces.count
    cdef int readable = pieces.readable
    cdef uint8_t *place
    cdef bint write
    if one.flags & F_INDIRECT:
        if not queue.indirect or one.flags & F_NEXT or one.length % sizeof(Descriptor) or one.length == 0:
            return False
        if one.length > LARGEST_CHAIN * sizeof(Descriptor):
            return False
        table = <const Descriptor *>queue.table.translate(one.address, one.length, False, &queue.near)
        limit = one.length // sizeof(Descriptor)
        if table == NULL:
            return False
        one = read_descriptor(table)
    while count < LARGEST_CHAIN:
        write = (one.flags & F_WRITE) != 0
        if one.flags & F_INDIRECT or (not write and readable != count) or one.length == 0:
            return False
        place = queue.table.translate(one.address, one.length, write, &queue.near if one.length <= 16 else &queue.far)
        if place == NULL:
            return False
        pieces.vectors[count] = iovec(place, one.length)
        pieces.addresses[count] = one.address
        count += 1
        if not write:
            readable = count
        if not one.flags & F_NEXT:
            pieces.count, pieces.readable = count, readable
            return True
        if one.next >= limit or <uint32_t>(count - first) >= limit:
            return False
        one = read_descriptor(table + one.next)
    return False
