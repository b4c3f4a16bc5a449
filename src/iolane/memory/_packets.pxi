# What `CompiledQueue` does with the packets of a network device (virtio 1.3, 5.1.6).
#
# Chains are looked at where they are available, and count as taken only when their packet has passed. What is left
# to Python lies as if nobody had looked: a chain in the available ring, a packet at the port, unread.

cdef enum:  # why packets rest
    REST_NOT = 0
    REST_CHAINS = 1  # until the driver offers more than were seen
    REST_NETWORK = 2

cdef enum:
    PASSED = 0
    WAITS = 1  # `rest` says for what
    LEFT = 2  # to Python

cdef struct Buffers:  # chains for a packet that is received
    Pieces pieces
    uint64_t room
    int count
    uint16_t heads[LARGEST_CHAIN]
    uint32_t lengths[LARGEST_CHAIN]


cdef int pass_packets(CompiledQueue queue) noexcept nogil:
    """A batch: -1, or E_TURN if the next packet is Python's."""
    cdef int done = 0, outcome = PASSED
    if rests(queue):
        return -1
    if queue.by_turns:
        return E_TURN
    while done < BATCH and outcome == PASSED:
        if queue.net.receives:
            outcome = receive_packet(queue, queue.net, queue.net.port)
        else:
            outcome = send_packet(queue, queue.net)
        done += 1
    queue.net.port.flush()
    if outcome == WAITS and not queue.net.receives and queue.net.port.is_behind():
        queue.rest = REST_NETWORK
    return E_TURN if outcome == LEFT else -1


cdef bint rests(CompiledQueue queue) noexcept nogil:
    if queue.rest == REST_CHAINS and ring_load16(queue.available + 1) != queue.top:
        queue.rest = REST_NOT
    if queue.rest == REST_NETWORK and queue.net.port.is_ready(queue.net.receives):
        queue.rest = REST_NOT
    return queue.rest != REST_NOT


cdef int wait_for_chains(CompiledQueue queue) noexcept nogil:
    """For more than were seen."""
    queue.rest = REST_CHAINS
    return WAITS


cdef int next_head(CompiledQueue queue, int ahead, uint16_t *head) noexcept nogil:
    """The chain that is `ahead` of the next one. LEFT: the ring is wrong."""
    cdef uint16_t waiting = queue.top - queue.last_available
    if ahead >= waiting:
        queue.top = ring_load16(queue.available + 1)
        waiting = queue.top - queue.last_available
        if waiting > queue.size:
            queue.top = queue.last_available
            return LEFT
        if ahead >= waiting:
            return WAITS
    head[0] = ring_read16(queue.available + 2 + (<uint16_t>(queue.last_available + ahead) & queue.mask))
    return LEFT if head[0] >= queue.size or queue.taken[head[0]] else PASSED


cdef void use_chain(CompiledQueue queue, uint16_t head, uint32_t written) noexcept nogil:
    """The next chain is taken, and given back."""
    queue.last_available += 1
    queue._note_taken(head)
    queue._give_back(head, written)
    queue.requests += 1


cdef int behind(const iovec *vectors, int count, size_t skip, iovec *target) noexcept nogil:
    """The pieces without their first `skip` bytes; how many there are."""
    cdef int left = 0
    while count:
        if skip >= vectors.iov_len:
            skip -= vectors.iov_len
        else:
            target[left] = iovec(<uint8_t *>vectors.iov_base + skip, vectors.iov_len - skip)
            left += 1
            skip = 0
        vectors += 1
        count -= 1
    return left


# From the driver (5.1.6.2).


cdef int send_packet(CompiledQueue queue, NetPath path) noexcept nogil:
    cdef Pieces pieces
    cdef iovec vectors[LARGEST_CHAIN + 1]
    cdef PacketHeader header
    cdef uint64_t total = 0
    cdef uint16_t head = 0
    cdef int index, count, outcome
    outcome = next_head(queue, 0, &head)
    if outcome != PASSED:
        return wait_for_chains(queue) if outcome == WAITS else LEFT
    pieces.count = pieces.readable = 0
    if not path.open or not gather(queue, head, &pieces) or pieces.readable != pieces.count:
        return LEFT
    for index in range(pieces.count):
        total += pieces.vectors[index].iov_len
    if total < HEADER or total > LARGEST_PACKET:
        return LEFT
    collect(pieces.vectors, <uint8_t *>&header, HEADER)
    if not may_be_sent(path, &header, total - HEADER):
        return LEFT
    vectors[0] = iovec(&header, HEADER)
    count = 1 + behind(pieces.vectors, pieces.count, HEADER, vectors + 1)
    outcome = path.port.write(vectors, count, total)
    if outcome == SEND_DONE:
        path.packets += 1
        path.bytes += total - HEADER
        queue.bytes_read += total
        use_chain(queue, head, 0)
        return PASSED
    if outcome == SEND_FULL:
        queue.rest = REST_NETWORK
        return WAITS
    return LEFT


# To the driver (5.1.6.4).


cdef int receive_packet(CompiledQueue queue, NetPath path, NetPort port) noexcept nogil:
    """Read the next packet where the driver is to find it, but for its header; what does not fit, behind its place in
    `unread`, so that the rest need only be put before it. Without buffers, too: the packet may be of no use.
    """
    cdef Buffers found
    cdef iovec vectors[LARGEST_CHAIN + 2]
    cdef PacketHeader header
    cdef ssize_t length
    cdef int count = 0
    cdef uint64_t room
    if port.unread_length:
        return deliver_unread(queue, path, port)
    find_buffers(queue, &found, HEADER + <uint64_t>path.expected)
    room = min(found.room, <uint64_t>LARGEST_PACKET) if path.open else 0
    if room:
        vectors[0] = iovec(&header, HEADER)
        count = 1 + behind(found.pieces.vectors, found.pieces.count, HEADER, vectors + 1)
    if room < LARGEST_PACKET:
        vectors[count] = iovec(port.unread + room, LARGEST_PACKET - room)
        count += 1
    length = port.read(vectors, count)
    if length == -EAGAIN:
        queue.rest = REST_NETWORK
        return WAITS
    if length < 0:
        if length == -EFAULT:
            touch(&found.pieces)
        return LEFT
    if <uint64_t>length <= room and may_be_received(path, &header, length - HEADER):
        give_packet(queue, &found, &header, <uint32_t>length)
        return PASSED
    if room:
        memcpy(port.unread, &header, HEADER)
        collect(vectors + 1, port.unread + HEADER, max(<ssize_t>min(room, <uint64_t>length), <ssize_t>HEADER) - HEADER)
        mark_written(queue, &found.pieces, 0, min(room, <uint64_t>length))
    port.unread_length, port.admitted = <uint32_t>length, False
    return deliver_unread(queue, path, port)


cdef int deliver_unread(CompiledQueue queue, NetPath path, NetPort port) noexcept nogil:
    """The packet that lies in `unread`, by a copy."""
    cdef Buffers found
    cdef PacketHeader header
    cdef uint32_t length = port.unread_length
    cdef int outcome
    memcpy(&header, port.unread, HEADER)
    if not port.admitted and not (path.open and may_be_received(path, &header, <int64_t>length - HEADER)):
        return LEFT
    port.admitted = True
    outcome = find_buffers(queue, &found, length)
    if outcome == WAITS and found.count < queue.size:
        return wait_for_chains(queue)
    if outcome != PASSED or found.room < length:
        return LEFT
    scatter(found.pieces.vectors, port.unread, length)
    port.unread_length = 0
    give_packet(queue, &found, &header, length)
    return PASSED


cdef int find_buffers(CompiledQueue queue, Buffers *found, uint64_t wanted) noexcept nogil:
    """Chains for so many bytes, or the next one alone if they can't be merged. WAITS: there are not enough.

    LEFT: there is one that is wrong or unusual behind those that are found.
    """
    cdef uint16_t head = 0
    cdef int index, outcome = PASSED
    found.pieces.count = found.pieces.readable = found.count = 0
    found.room = 0
    while found.room < wanted and (queue.net.mergeable or not found.count):
        outcome = LEFT if found.count == LARGEST_CHAIN else next_head(queue, found.count, &head)
        if outcome == PASSED and not add_buffer(queue, found, head):
            outcome = LEFT
        if outcome != PASSED:
            break
    for index in range(found.count):
        queue.taken[found.heads[index]] = 0
    return outcome


cdef bint add_buffer(CompiledQueue queue, Buffers *found, uint16_t head) noexcept nogil:
    """The first must hold the header, and no driver gives what is to be read (5.1.6.3). `taken` finds doubles."""
    cdef int index, first = found.pieces.count
    cdef uint64_t length = 0
    if not gather(queue, head, &found.pieces):
        return False
    for index in range(first, found.pieces.count):
        length += found.pieces.vectors[index].iov_len
    if found.pieces.readable or length > LARGEST_TRANSFER or (not found.count and length < HEADER):
        found.pieces.count, found.pieces.readable = first, 0
        return False
    found.heads[found.count], found.lengths[found.count] = head, <uint32_t>length
    found.count += 1
    found.room += length
    queue.taken[head] = TAKEN
    return True


cdef void give_packet(CompiledQueue queue, Buffers *found, PacketHeader *header, uint32_t length) noexcept nogil:
    """A packet is in its buffers but for the header, which tells how many they are."""
    cdef uint32_t left = length, part
    cdef int used = 0, index
    while left:
        left -= min(left, found.lengths[used])
        used += 1
    header.num_buffers = <uint16_t>used
    scatter(found.pieces.vectors, <uint8_t *>header, HEADER)
    mark_written(queue, &found.pieces, 0, length)
    left = length
    for index in range(used):
        part = min(left, found.lengths[index])
        left -= part
        use_chain(queue, found.heads[index], part)
    queue.bytes_written += length
    queue.net.packets += 1
    queue.net.bytes += length - HEADER
    queue.net.expect(length - HEADER)


cdef void mark_written(CompiledQueue queue, Pieces *pieces, int index, uint64_t length) noexcept nogil:
    cdef uint64_t part
    if queue.log == NULL:
        return
    while length:
        part = min(<uint64_t>pieces.vectors[index].iov_len, length)
        queue._mark(pieces.addresses[index], part)
        length -= part
        index += 1


cdef void touch(Pieces *pieces) noexcept nogil:
    """The kernel found a part of guest memory missing: find it, too, so that the region counts as broken."""
    cdef int index
    cdef uint64_t at, seen = 0
    for index in range(pieces.count):
        at = 0
        while at < pieces.vectors[index].iov_len and seen < LARGEST_PACKET:
            ring_read8(<uint8_t *>pieces.vectors[index].iov_base + at)
            at += PAGE
            seen += PAGE
        ring_read8(<uint8_t *>pieces.vectors[index].iov_base + min(at, <uint64_t>pieces.vectors[index].iov_len) - 1)
