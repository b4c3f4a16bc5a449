# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled data plane: a split virtqueue served by a thread without the GIL (architecture, rule 6).

`CompiledQueue.run` takes chains, does plain block reads and writes and plain packets itself and leaves everything
else, and everything that looks wrong, to Python: `iolane.model.virtio.split_ring` is its oracle. Whatever the driver
wrote is copied before it is checked, and checked before it is used.
"""

from libc.errno cimport EAGAIN, EFAULT, ENOMEM, EPIPE
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

cimport cython

import os
import stat

include "_signals.pxi"

include "_virtq.pxi"
include "_limits.pxi"

CHAIN, BAD_INDEX, HEAD_IN_FLIGHT, BROKEN_MEMORY = E_CHAIN, E_BAD_INDEX, E_HEAD_IN_FLIGHT, E_BROKEN_MEMORY
TURN = E_TURN

include "_regions.pxi"
include "_block.pxi"
include "_port.pxi"
include "_net.pxi"
include "_uring.pxi"


@cython.final
cdef class CompiledQueue:
    """One queue: its rings and the thread that serves it.

    Args:
        size: entries of the rings, a power of two.
        descriptors, available, used: addresses in this process, checked by the caller for their whole length.
        regions: guest memory, that of the rings included.
        event_idx, indirect: VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated.
        last_available, used_index: where to go on.
        kick, call: eventfds, pipes or sockets; -1 for none: without a kick the rings are polled.
        path: what compiled code may do: block requests, or packets; None: every chain goes to Python.
        log: (address, size in bytes, guest address of the used ring) of the dirty log.
        log_signal: eventfd that is signalled after marks, once a batch; -1 for none.
        inflight: address of the queue's part of the in-flight area, or 0.
        poll_ns: how long at most to look for new chains before sleeping.
        keep: what must live as long: the mappings of log and in-flight area.
    """

    cdef const Descriptor *descriptors
    cdef uint16_t *available
    cdef uint8_t *used
    cdef uint16_t size, mask
    cdef bint event_idx, indirect
    cdef RegionTable table
    cdef BlockPath path
    cdef NetPath net
    cdef int call, kick, wake
    cdef bint calls_socket
    cdef volatile int signalling  # the descriptor that `run` is writing to, or -1
    cdef uint8_t *log
    cdef uint64_t log_size, log_used
    cdef int log_signal, rest
    cdef bint marked  # since the log's eventfd was signalled last
    cdef InflightHeader *inflight
    cdef InflightDescriptor *inflight_table
    cdef uint64_t inflight_counter
    cdef object keep
    cdef readonly uint16_t last_available, used_index
    cdef uint16_t published
    cdef uint8_t *taken  # by head: 0, TAKEN or FINISHED
    cdef uint16_t *given  # heads given back, by used index: the used ring itself is the driver's
    cdef UsedElement *finished  # by Python, and not yet given back
    cdef volatile uint32_t finished_count
    cdef uint32_t lock, sleeping  # sleeping: AWAKE, ASLEEP or HELD
    cdef bint was_held  # since the thread went to sleep
    cdef volatile bint left
    cdef volatile uint32_t stopping
    cdef Flight *flights
    cdef uint16_t *free_flights
    cdef uint16_t *asked  # heads whose transfer failed, at most `size`: each is in flight once
    cdef uint32_t free_count, flight_count, asked_count, under_way
    cdef Uring uring
    cdef uint64_t bytes_under_way, bytes_queued, landed_bytes, sequence_end  # landed: by the last transfer of the disk
    cdef bint in_sequence  # the transfer that was queued last goes on where the one before ends
    cdef uint64_t poll_longest, looked, typical_waits[2]  # for the driver, and for the disk
    cdef bint draining, rested  # rested: there was nothing to do when it was looked last
    cdef uint16_t top  # of packets: the available index as it was seen last
    cdef public bint by_turns  # Python has chains of an earlier life that come first: each packet is its
    cdef Region near, far
    cdef readonly uint64_t requests, bytes_read, bytes_written, slow, kicks, interrupts, suppressed, batches
    cdef readonly bint broken

    def __cinit__(
        self, *, int size, size_t descriptors, size_t available, size_t used, RegionTable regions not None,
        bint event_idx, bint indirect, uint16_t last_available, uint16_t used_index, int kick, int call,
        object path=None, log=None, int log_signal=-1, size_t inflight=0, uint64_t poll_ns=POLL_LONGEST, keep=None,
    ):
        cdef uint16_t index
        if size <= 0 or size > LARGEST_QUEUE or size & (size - 1):
            raise ValueError(f"queue of {size}")
        if not descriptors or not available or not used or descriptors % 16 or available % 2 or used % 4:
            raise ValueError("ring addresses")
        self.wake = self.signalling = -1
        self.size, self.mask = size, size - 1
        self.descriptors = <const Descriptor *>descriptors
        self.available = <uint16_t *>available
        self.used = <uint8_t *>used
        self.event_idx, self.indirect, self.table = event_idx, indirect, regions
        self.path = None if isinstance(path, NetPath) else path
        self.net = path if isinstance(path, NetPath) else None
        self.last_available, self.used_index, self.published = last_available, used_index, used_index
        self.top = last_available
        self.set_wires(kick, call)
        self.set_log(log, log_signal, keep)
        self.poll_longest = self.typical_waits[0] = self.typical_waits[1] = poll_ns
        if inflight:
            self.inflight = <InflightHeader *>inflight
            self.inflight_table = <InflightDescriptor *>(inflight + sizeof(InflightHeader))
            for index in range(self.size):
                if self.inflight_table[index].inflight:
                    self.inflight_counter = max(self.inflight_counter, self.inflight_table[index].counter + 1)
        self.taken = <uint8_t *>calloc(size, 1)
        self.given = <uint16_t *>calloc(size, sizeof(uint16_t))
        self.finished = <UsedElement *>calloc(size, sizeof(UsedElement))
        self.asked = <uint16_t *>calloc(size, sizeof(uint16_t))
        if self.taken == NULL or self.given == NULL or self.finished == NULL or self.asked == NULL:
            raise MemoryError
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    cdef int _open_uring(self) except -1:
        """Where the host refuses (a container's system call filter, say), transfers wait instead."""
        cdef uint32_t index
        if self.path is None or self.path.mode == MODE_MMAP or self.uring.open:
            return 0
        if self.flights == NULL:
            self.flight_count = min(self.size, FLIGHTS)
            self.flights = <Flight *>calloc(self.flight_count, sizeof(Flight))
            self.free_flights = <uint16_t *>calloc(self.flight_count, sizeof(uint16_t))
            if self.flights == NULL or self.free_flights == NULL:
                raise MemoryError
            for index in range(self.flight_count):
                self.free_flights[index] = index
            self.free_count = self.flight_count
        with nogil:
            uring_open(&self.uring, self.flight_count)
        return 0

    def __dealloc__(self):
        uring_close(&self.uring)
        free(self.flights)
        free(self.free_flights)
        free(self.asked)
        free(self.taken)
        free(self.given)
        free(self.finished)
        if self.wake >= 0:
            close(self.wake)

    # Python's side.

    def run(self, slow):
        """Serve the queue until `stop`. `slow(event, head)` is called with the GIL for what Python must do.

        It gives chains back with `complete`, at once or later, and returns False when the queue is of no use any more.
        TURN asks for the next packet, however it lies: Python takes chains with `take` then.
        """
        cdef int event
        cdef uint16_t head = 0
        self._open_uring()
        self.rest = REST_NOT
        while True:
            with nogil:
                event = self._serve(&head)
            if event < 0:
                break
            self.slow += 1
            if event == E_CHAIN and head < self.size:
                self.taken[head] = TAKEN
            if not slow(event, head):
                with nogil:
                    self._give_up()
        if self.left:
            with nogil:
                uring_close(&self.uring)  # takes a while, for which nobody waits here

    def drain(self, slow):
        """Serve what is available, in this thread and without waiting for more. While `run` is not."""
        self.draining = True
        try:
            self.run(slow)
        finally:
            self.draining = False

    def rearm(self):
        """Let `run` work again after `stop`; before it is called."""
        self.stopping = 0

    def stop(self):
        """Have `run` return once what is under way in the kernel is done; from any thread."""
        self.stopping = 1
        ring_fence()
        os.eventfd_write(self.wake, 1)

    def hold(self):
        """Have the queue, if the thread in `run` sleeps and owes nothing: it touches the queue no more before `release`.

        Nobody has to wait for the thread then, as after `stop`. With the GIL, from another thread. False: it is at
        work, or something is under way in the kernel.
        """
        if not ring_change32(&self.sleeping, ASLEEP, HELD):
            return False
        self.was_held = True
        if self.under_way:
            self.release()
            return False
        if not self.broken:
            ask_for_kicks(self, True)
        return True

    def release(self):
        """After `hold`: the thread goes on, and looks what there is to do."""
        ring_store32(&self.sleeping, ASLEEP)
        ring_fence()
        os.eventfd_write(self.wake, 1)

    def leave(self):
        """Instead of `release`: `run` returns by and by, and touches neither ring nor guest memory before."""
        self.left = True
        ring_fence()
        os.eventfd_write(self.wake, 1)

    def complete(self, unsigned int head, unsigned int written):
        """Give back a chain that `slow` was called for. With the GIL, from any thread."""
        if head >= self.size or self.taken[head] != TAKEN:
            raise ValueError(f"chain {head} is not taken")
        self._lock()
        self.taken[head] = FINISHED
        self.finished[self.finished_count] = UsedElement(head, written)
        self.finished_count += 1
        self._unlock()
        ring_fence()
        if ring_load32(&self.sleeping):
            os.eventfd_write(self.wake, 1)

    def adopt(self, unsigned int head):
        """A chain that an earlier life of the device had taken: it is given back like others. While `run` is not."""
        if head >= self.size or self.taken[head]:
            raise ValueError(f"chain {head} is taken")
        self.taken[head] = TAKEN

    def take(self, unsigned int head):
        """Python takes the next available chain, which starts at `head`. While `slow` does a turn."""
        if head >= self.size:
            raise ValueError(f"there is no chain {head}")
        self.taken[head] = TAKEN
        self.last_available += 1
        self.top = self.last_available
        self._note_taken(<uint16_t>head)

    def untake(self, unsigned int head):
        """The chain that was taken last is available again."""
        if head >= self.size or self.taken[head] != TAKEN:
            raise ValueError(f"chain {head} is not taken")
        self.taken[head] = 0
        self.last_available -= 1
        self.top = self.last_available
        if self.inflight != NULL:
            ring_store8(&self.inflight_table[head].inflight, 0)

    def wait(self, uint16_t seen):
        """Nothing could be done in this turn: not before the network is ready, or more is available than `seen`."""
        if self.net is None:
            raise ValueError("a queue without packets")
        if self.net.receives:
            self.rest = REST_CHAINS if self.net.port.unread_length else REST_NETWORK
        else:
            self.rest = REST_NETWORK if self.by_turns or seen != self.last_available else REST_CHAINS
        self.top = seen if <uint16_t>(seen - self.last_available) <= self.size else self.last_available

    def settle(self):
        """After `run` has returned: make visible what was completed since.

        Returns:
            Whether the driver is to be interrupted, and whether the log was marked; both are the caller's to tell.
        """
        cdef bint wanted = False, marked
        self._collect_finished()
        if self.used_index != self.published and not self.broken:
            wanted = self._show()
        marked, self.marked = self.marked, False
        return wanted, marked

    def set_wires(self, int kick, int call):
        """Other descriptors from now on. While `run` is not."""
        self.kick, self.call = kick, call
        self.calls_socket = call >= 0 and stat.S_ISSOCK(os.fstat(call).st_mode)

    def set_log(self, log, int log_signal, keep):
        """Mark writes elsewhere from now on, or nowhere. While `run` is not."""
        address, length, where = (0, 0, 0) if log is None else log
        self.log, self.log_size, self.log_used = <uint8_t *><size_t>address, length, where
        self.log_signal, self.keep = log_signal, keep

    def let_go(self):
        """Have `run` go on if it waits for a peer that has filled an eventfd and cleared its O_NONBLOCK.

        Returns:
            The descriptor, which must be signalled once `run` has returned: the signals in it are gone. Else -1.
        """
        cdef int fd = self.signalling
        cdef uint64_t count
        return fd if fd >= 0 and take_signal(fd, &count, sizeof(count)) > 0 else -1

    cdef void _lock(self) noexcept nogil:
        take_lock(&self.lock)

    cdef void _unlock(self) noexcept nogil:
        ring_store32(&self.lock, 0)

    # Without the GIL.

    cdef int _serve(self, uint16_t *head) noexcept nogil:
        """Work until Python is needed: an event, or -1 to stop."""
        cdef int event
        cdef uint64_t idle_since = 0
        cdef bint waits_for_disk = False
        self._collect_finished()  # what Python did at once comes back before what is taken next
        while True:
            event = self._take_batch(head)
            if self.uring.queued and (event >= 0 or not block_may_hold(self)):
                block_submit(self)
            if self.under_way:
                block_reap(self)
            if self.asked_count and event < 0:
                self.asked_count -= 1
                head[0] = self.asked[self.asked_count]
                event = E_CHAIN
            self._collect_finished()
            if self.table.lost() and not self.broken:
                return E_BROKEN_MEMORY
            if self.used_index != self.published and not self.broken:
                self._publish()
                if idle_since:
                    adapt(self, waits_for_disk, self.looked)
                idle_since = 0
                self.rested = False
                if event < 0:
                    continue
            if event >= 0:
                return event
            if (self.stopping or self.draining) and not self.under_way:
                if not self.broken:
                    ask_for_kicks(self, True)  # whoever serves the ring next may not look before a kick
                return -1
            self.rested = True
            if idle_since == 0:
                idle_since = now_ns()
                self.looked = 0
                waits_for_disk = self.under_way > 0
            elif has_looked_enough(self, idle_since, waits_for_disk):
                sleep(self)
                if self.left:
                    return -1
                adapt(self, waits_for_disk, now_ns() - idle_since)
                idle_since = 0
                continue
            relax(self)

    cdef void _give_up(self) noexcept nogil:
        """The ring is wrong from here on. What is done so far the driver sees: nobody does it again."""
        self._collect_finished()
        if self.used_index != self.published and not self.broken:
            self._publish()
        self.broken = True

    cdef int _take_batch(self, uint16_t *head) noexcept nogil:
        cdef uint16_t top, waiting, position
        cdef int done = 0
        if self.stopping or self.broken:
            return -1
        if self.net is not None:
            return pass_packets(self)
        top = ring_load16(self.available + 1)
        waiting = <uint16_t>(top - self.last_available)
        if waiting > self.size:
            return E_BAD_INDEX
        while waiting and done < BATCH and not self._full():
            position = ring_read16(self.available + 2 + (self.last_available & self.mask))
            head[0] = position
            if position >= self.size:
                return E_CHAIN  # Python names the rule that this breaks; it is not taken
            if self.taken[position]:
                return E_HEAD_IN_FLIGHT
            self.last_available += 1
            waiting -= 1
            done += 1
            self._note_taken(position)
            if self.path is None or not block_start(self, position):
                return E_CHAIN
            if self.rested and <uint16_t>(self.used_index - self.published) >= FIRST_SHOWN:
                break
        return -1

    cdef void _note_taken(self, uint16_t head) noexcept nogil:
        """The entry's order is there before the entry counts, and both before the chain has any effect."""
        if self.inflight != NULL:
            self.inflight_table[head].counter = self.inflight_counter
            self.inflight_counter += 1
            ring_store8(&self.inflight_table[head].inflight, 1)

    cdef bint _full(self) noexcept nogil:
        return self.uring.open and self.free_count == 0

    # The used ring.

    cdef void _give_back(self, uint16_t head, uint32_t written) noexcept nogil:
        cdef UsedElement *entries = <UsedElement *>(self.used + 4)
        cdef uint16_t place = self.used_index & self.mask
        self.taken[head] = 0
        self.given[place] = head
        entries[place] = UsedElement(head, written)
        if self.log != NULL:
            self._mark(self.log_used + 4 + 8 * place, 8)
        if self.inflight != NULL:
            self.inflight_table[head].next = self.inflight.last_batch_head
            self.inflight.last_batch_head = head
        self.used_index += 1

    cdef void _collect_finished(self) noexcept nogil:
        cdef uint32_t index
        if self.finished_count == 0:
            return
        self._lock()
        for index in range(self.finished_count):
            self._give_back(<uint16_t>self.finished[index].head, self.finished[index].written)
        self.finished_count = 0
        self._unlock()

    cdef void _publish(self) noexcept nogil:
        """Let the driver see what was given back, and interrupt it if it asked for that."""
        cdef bint wanted = self._show()
        if self.log != NULL:
            self._tell_marks()
        if wanted and not (self.calls_socket and send_signal(self.call)):
            self._signal(self.call)

    cdef void _signal(self, int fd) noexcept nogil:
        """Signal an eventfd or a pipe. An eventfd may make this wait, if its peer has seen to that: `let_go` helps."""
        cdef uint64_t one = 1
        self.signalling = fd
        write(fd, &one, 8)
        self.signalling = -1

    cdef bint _show(self) noexcept nogil:
        """Let the driver see what was given back. True: it wants to be told (2.7.7)."""
        cdef uint16_t old = self.published, new = self.used_index, index = self.published
        cdef bint wanted
        ring_store16(self.used + 2, new)
        if self.log != NULL:
            self._mark(self.log_used + 2, 2)
        if self.inflight != NULL:
            while index != new:
                ring_store8(&self.inflight_table[self.given[index & self.mask]].inflight, 0)
                index += 1
            ring_store16(&self.inflight.used_idx, new)
        self.published = new
        self.batches += 1
        ring_fence()
        if self.event_idx:
            wanted = <uint16_t>(new - ring_read16(self.available + 2 + self.size) - 1) < <uint16_t>(new - old)
        else:
            wanted = not ring_read16(self.available) & NO_INTERRUPT
        if not wanted or self.call < 0:
            self.suppressed += 1
            return False
        self.interrupts += 1
        return True

    cdef void _mark(self, uint64_t address, uint64_t length) noexcept nogil:
        """Mark guest pages in the dirty log (vhost-user.rst, "Migration"), after they were written."""
        cdef uint64_t page = address // PAGE, last = (address + (length - 1)) // PAGE
        while page <= last and page // 8 < self.log_size:
            ring_or8(self.log + page // 8, 1 << (page % 8))
            self.marked = True
            page += 1

    cdef void _tell_marks(self) noexcept nogil:
        """SET_LOG_FD: "it may be used to inform the front-end that the log has been modified"."""
        if self.marked and self.log_signal >= 0:
            self._signal(self.log_signal)
        self.marked = False

include "_chain.pxi"
include "_waiting.pxi"
include "_transfer.pxi"
include "_packets.pxi"
