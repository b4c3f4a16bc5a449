# How a queue waits: asking the driver for kicks (virtio 1.3, 2.7.10), and sleeping.

from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef extern from "<sched.h>" nogil:
    int sched_yield()


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef void ask_for_kicks(CompiledQueue queue, bint wanted) noexcept nogil:
    cdef size_t place = 0
    if not queue.event_idx:
        ring_store16(queue.used, 0 if wanted else NO_NOTIFY)
    elif wanted:
        place = 4 + 8 * <size_t>queue.size
        ring_store16(queue.used + place, queue.top if queue.net is not None else queue.last_available)
    else:
        return  # the event index that is left behind says so by itself
    if queue.log != NULL:
        queue._mark(queue.log_used + place, 2)
        queue._tell_marks()
    ring_fence()


cdef bint nothing_to_sleep_for(CompiledQueue queue) noexcept nogil:
    """Whether chains came, or a packet, while we made ready to sleep. Else kicks are asked for, if they are of use."""
    if queue.rest == REST_NETWORK:
        return False
    ask_for_kicks(queue, True)
    if queue.net is not None:
        if ring_load16(queue.available + 1) == queue.top:
            return False
    elif ring_load16(queue.available + 1) == queue.last_available or queue._full():
        return False
    ask_for_kicks(queue, False)
    return True


cdef void have_back(CompiledQueue queue) noexcept nogil:
    """After sleep the queue is ours again; or somebody else's, then once it is released. Not if we are to leave."""
    cdef uint8_t drain[8]
    cdef pollfd entry
    while not ring_change32(&queue.sleeping, ASLEEP, AWAKE):
        if queue.left:
            return
        entry = pollfd(queue.wake, POLLIN, 0)
        poll(&entry, 1, -1)
        read(queue.wake, drain, 8)


cdef void look_again(CompiledQueue queue) noexcept nogil:
    """Everything may be otherwise: look at the driver and at the network before the next sleep."""
    if queue.rest == REST_NETWORK:
        queue.net.port.has_woken(queue.net.receives)
    queue.rest = REST_NOT


cdef void sleep(CompiledQueue queue) noexcept nogil:
    """Wait for a kick, Python, the network or the kernel."""
    cdef pollfd entries[5]
    cdef uint8_t drain[512]
    cdef bint deaf = queue.broken or queue.stopping
    if not deaf and nothing_to_sleep_for(queue):
        return
    entries[3] = entries[4] = pollfd(-1, 0, 0)
    if not deaf and queue.rest == REST_NETWORK:
        if not queue.net.port.make_ready_to_wait(queue.net.receives, &entries[3]):
            queue.rest = REST_NOT
            return
    queue.was_held = False
    ring_store32(&queue.sleeping, ASLEEP)
    ring_fence()
    entries[0] = pollfd(queue.wake, POLLIN, 0)
    entries[1] = pollfd(-1 if deaf else queue.kick, POLLIN, 0)
    entries[2] = pollfd(queue.uring.fd if queue.under_way else -1, POLLIN, 0)
    poll(entries, 5, 0 if queue.finished_count else POLL_MS if queue.kick < 0 and not deaf else -1)
    have_back(queue)
    if queue.left:
        return
    if entries[0].revents:
        read(queue.wake, drain, 8)
    if queue.was_held:  # the descriptors may be others by now, and there may be more to do
        look_again(queue)
        return
    if entries[1].revents & POLLIN:
        take_signal(queue.kick, drain, sizeof(drain))
        queue.kicks += 1
    elif entries[1].revents:
        queue.kick = -1  # a pipe without a writer would be ready for ever
    if entries[3].revents or entries[4].revents:
        queue.net.port.has_woken(queue.net.receives)
        queue.rest = REST_NOT
    if not deaf:
        ask_for_kicks(queue, False)


cdef void relax(CompiledQueue queue) noexcept nogil:
    """Between two looks. Who puts packets into an echo, or takes them out, may have no processor but ours."""
    if queue.net is not None and queue.net.port.kind == PORT_ECHO:
        sched_yield()
    else:
        ring_relax()


cdef void adapt(CompiledQueue queue, bint for_disk, uint64_t waited) noexcept nogil:
    """Remember how long waits are of late; a single long one changes little."""
    cdef uint64_t *typical = &queue.typical_waits[1 if for_disk else 0]
    typical[0] = (7 * typical[0] + min(waited, 4 * queue.poll_longest)) // 8


cdef bint has_looked_enough(CompiledQueue queue, uint64_t since, bint for_disk) noexcept nogil:
    """Rings, and a network in memory, can be looked at for nothing; to ask the kernel takes longer. Hardly at all
    is looked where that would not spare the sleep, and not at all by who gets much from a disk at once.
    """
    cdef uint64_t worth = queue.poll_longest
    if queue.rest == REST_NETWORK and queue.net.port.asks_the_kernel():
        return True
    if queue.typical_waits[1 if for_disk else 0] >= queue.poll_longest:
        worth = min(worth, <uint64_t>POLL_SHORTEST)
    queue.looked = now_ns() - since
    if queue.bytes_under_way > POLL_BYTES or queue.landed_bytes > POLL_BYTES:
        return True
    return queue.looked >= worth or queue.stopping or queue.broken
