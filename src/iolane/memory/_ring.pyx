# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
"""The compiled data plane: a split virtqueue served by a thread without the GIL (architecture, rule 6).

`CompiledQueue.run` takes chains, does plain block reads and writes itself and hands every other chain, and everything
that looks wrong, to Python: `iolane.model.virtio.split_ring` is its oracle. Whatever the driver wrote is copied
before it is checked, and checked before it is used.
"""

from libc.errno cimport ENOMEM, errno
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec

import os

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int fd, iovec *vectors, int count, int64_t offset, int flags)
    ssize_t pwritev(int fd, iovec *vectors, int count, int64_t offset)
    int RWF_NOWAIT

cdef extern from "<sys/mman.h>" nogil:
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_POPULATE
    void *MAP_FAILED
    void *mmap(void *address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void *address, size_t length)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *entries, unsigned long count, int timeout)

cdef extern from "<unistd.h>" nogil:
    int close(int fd)
    ssize_t read(int fd, void *buffer, size_t count)
    ssize_t write(int fd, const void *buffer, size_t count)

include "_virtq.pxi"
include "_uring.pxi"

cdef enum:
    SECTOR = 512
    BATCH = 64
    MODE_MMAP = 0
    MODE_CACHE = 1
    MODE_DIRECT = 2
    T_IN = 0
    T_OUT = 1
    S_OK = 0
    SLOW = 0
    TAKEN = 1
    FINISHED = 2
    PAGE = 4096
    POLL_LONGEST = 50000  # ns
    POLL_SHORTEST = 1000

cdef enum:
    E_CHAIN = 0
    E_BAD_INDEX = 1
    E_HEAD_IN_FLIGHT = 2
    E_BROKEN_MEMORY = 3

CHAIN, BAD_INDEX, HEAD_IN_FLIGHT, BROKEN_MEMORY = E_CHAIN, E_BAD_INDEX, E_HEAD_IN_FLIGHT, E_BROKEN_MEMORY


cdef uint64_t now_ns() noexcept nogil:
    cdef timespec t
    clock_gettime(CLOCK_MONOTONIC, &t)
    return <uint64_t>t.tv_sec * 1000000000 + <uint64_t>t.tv_nsec


cdef class RegionTable:
    """Guest memory as the driver names it.

    Args:
        regions: (start, size, address in this process, writable, address of a flag that tells it is broken or 0).
        keep: kept alive as long as the table: the mappings.
    """

    cdef Region *regions
    cdef int count
    cdef object keep

    def __cinit__(self, regions, keep=None):
        regions = list(regions)
        if not 0 < len(regions) <= LARGEST_TABLE:
            raise ValueError(f"{len(regions)} regions")
        self.regions = <Region *>calloc(len(regions), sizeof(Region))
        if self.regions == NULL:
            raise MemoryError
        self.keep = keep
        self.count = len(regions)
        for index, (start, size, address, writable, broken) in enumerate(regions):
            if size <= 0 or address == 0 or start + size > 1 << 64:
                raise ValueError(f"region at {start:#x}, {size:#x} bytes")
            self.regions[index] = Region(start, size, <uint8_t *><size_t>address, writable, <const uint32_t *><size_t>broken)

    def __dealloc__(self):
        free(self.regions)


cdef class BlockPath:
    """Where block requests go.

    Args:
        fd: the image.
        size: bytes.
        mode: 0: reads are copied from a mapping at `address`; 1: `preadv2` from the page cache, and io_uring for what
            is not there; 2: io_uring for everything (the descriptor has O_DIRECT).
        read_only: writes are left to Python, which refuses them, or does more than to write. May be changed.
        address: of the mapping, with mode 0.
        broken: address of the mapping's flag that tells the file was cut, with mode 0.
        own_fd: the descriptor is closed with this.
        keep: what must live as long: the mapping, the descriptor's owner.
    """

    cdef bint own_fd
    cdef int fd
    cdef uint64_t size
    cdef int mode
    cdef public bint read_only
    cdef const uint8_t *image
    cdef const uint32_t *broken
    cdef object keep

    def __cinit__(self, int fd, uint64_t size, int mode, bint read_only=False, size_t address=0, size_t broken=0, keep=None, *, bint own_fd=False):
        if mode not in (MODE_MMAP, MODE_CACHE, MODE_DIRECT) or (mode == MODE_MMAP and (address == 0 or broken == 0)):
            raise ValueError(f"mode {mode}")
        self.fd, self.size, self.mode, self.read_only = fd, size, mode, read_only
        self.image = <const uint8_t *>address
        self.broken = <const uint32_t *>broken
        self.keep = keep
        self.own_fd = own_fd

    def become(self, BlockPath other not None):
        """Take the place of `other`, which is of no use afterwards. While no queue runs."""
        if other.mode != self.mode:
            raise ValueError(f"mode {other.mode} instead of {self.mode}")
        self.fd, other.fd = other.fd, self.fd
        self.own_fd, other.own_fd = other.own_fd, self.own_fd
        self.size, self.image, self.broken, self.keep = other.size, other.image, other.broken, other.keep
        self.read_only = other.read_only

    def __dealloc__(self):
        if self.own_fd:
            close(self.fd)


cdef struct Flight:  # a transfer under way in io_uring
    iovec vectors[LARGEST_CHAIN]
    uint8_t *status
    uint32_t total
    uint16_t head
    bint is_read


cdef class CompiledQueue:
    """One queue: its rings and the thread that serves it.

    Args:
        size: entries of the rings, a power of two.
        descriptors, available, used: addresses in this process, checked by the caller for their whole length.
        regions: guest memory.
        event_idx, indirect: VIRTIO_F_EVENT_IDX and VIRTIO_F_INDIRECT_DESC were negotiated.
        last_available, used_index: where to go on.
        kick, call: eventfds or pipes, non-blocking; -1 for none.
        path: block requests; None: every chain goes to Python.
        log: (address, size in bytes, guest address of the used ring) of the dirty log.
        inflight: address of the queue's part of the in-flight area, or 0.
        poll_ns: how long at most to look for new chains before sleeping.
    """

    cdef Descriptor *descriptors
    cdef uint16_t *available
    cdef uint8_t *used
    cdef uint16_t size, mask
    cdef bint event_idx, indirect
    cdef RegionTable table
    cdef BlockPath path
    cdef int call, kick, wake
    cdef uint8_t *log
    cdef uint64_t log_size, log_used
    cdef InflightHeader *inflight
    cdef InflightDescriptor *inflight_table
    cdef uint64_t inflight_counter
    cdef readonly uint16_t last_available
    cdef readonly uint16_t used_index
    cdef uint16_t published
    cdef uint8_t *taken
    cdef UsedElement *finished
    cdef volatile uint32_t finished_count
    cdef uint32_t lock
    cdef volatile uint32_t stopping
    cdef Flight *flights
    cdef uint16_t *free_flights
    cdef uint16_t *asked  # chains whose transfer failed
    cdef uint32_t free_count, flight_count, asked_count
    cdef Uring uring
    cdef uint32_t under_way
    cdef uint64_t poll_ns, poll_longest
    cdef Region near, far
    cdef readonly uint64_t requests, bytes_read, bytes_written, slow, kicks, interrupts, suppressed, batches
    cdef readonly bint broken

    def __cinit__(
        self, *, int size, size_t descriptors, size_t available, size_t used, RegionTable regions, bint event_idx,
        bint indirect,        uint16_t last_available, uint16_t used_index, int kick, int call, BlockPath path=None, log=None,
        size_t inflight=0, uint64_t poll_ns=POLL_LONGEST,
    ):
        if size <= 0 or size > LARGEST_QUEUE or size & (size - 1):
            raise ValueError(f"queue of {size}")
        if not descriptors or not available or not used or descriptors % 16 or available % 2 or used % 4:
            raise ValueError("ring addresses")
        self.wake = -1
        self.size, self.mask = size, size - 1
        self.descriptors = <Descriptor *>descriptors
        self.available = <uint16_t *>available
        self.used = <uint8_t *>used
        self.event_idx, self.indirect, self.table, self.path = event_idx, indirect, regions, path
        self.last_available, self.used_index, self.published = last_available, used_index, used_index
        self.kick, self.call = kick, call
        self.poll_longest, self.poll_ns = poll_ns, min(poll_ns, POLL_SHORTEST)
        if log is not None:
            address, length, where = log
            self.log, self.log_size, self.log_used = <uint8_t *><size_t>address, length, where
        if inflight:
            self.inflight = <InflightHeader *>inflight
            self.inflight_table = <InflightDescriptor *>(inflight + sizeof(InflightHeader))
            for index in range(size):
                self.inflight_counter = max(self.inflight_counter, self.inflight_table[index].counter + 1)
        self.taken = <uint8_t *>calloc(size, 1)
        self.finished = <UsedElement *>calloc(size, sizeof(UsedElement))
        if self.taken == NULL or self.finished == NULL:
            raise MemoryError
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        if path is not None and path.mode != MODE_MMAP:
            self._open_uring()

    cdef int _open_uring(self) except -1:
        self.flight_count = min(self.size, 256)
        cdef int failed = uring_open(&self.uring, self.flight_count)
        if failed:
            raise OSError(-failed, os.strerror(-failed))
        self.flights = <Flight *>calloc(self.flight_count, sizeof(Flight))
        self.free_flights = <uint16_t *>calloc(self.flight_count, sizeof(uint16_t))
        self.asked = <uint16_t *>calloc(self.flight_count, sizeof(uint16_t))
        if self.flights == NULL or self.free_flights == NULL or self.asked == NULL:
            raise MemoryError
        for index in range(self.flight_count):
            self.free_flights[index] = index
        self.free_count = self.flight_count
        return 0

    def __dealloc__(self):
        uring_close(&self.uring)
        free(self.flights)
        free(self.free_flights)
        free(self.asked)
        free(self.taken)
        free(self.finished)
        if self.wake >= 0:
            close(self.wake)

    # Python's side.

    def run(self, slow):
        """Serve the queue until `stop`. `slow(event, head)` is called with the GIL for what Python must do.

        It gives chains back with `complete`, at once or later, and returns False when the queue is of no use any more.
        """
        cdef int event
        cdef uint16_t head = 0
        while True:
            with nogil:
                event = self._serve(&head)
            if event < 0:
                return
            self.slow += 1
            if event == E_CHAIN:
                if head < self.size:
                    self.taken[head] = TAKEN
            if not slow(event, head):
                self.broken = True

    def rearm(self):
        """Let `run` work again after `stop`; before it is called."""
        self.stopping = 0

    def stop(self):
        """Have `run` return once what is under way in the kernel is done; from any thread."""
        self.stopping = 1
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
        os.eventfd_write(self.wake, 1)

    def adopt(self, unsigned int head):
        """A chain that an earlier life of the device had taken: it is given back like others. While `run` is not."""
        if head >= self.size or self.taken[head]:
            raise ValueError(f"chain {head} is taken")
        self.taken[head] = TAKEN

    def settle(self):
        """After `run` has returned: make visible what was completed since."""
        self._collect_finished()
        if self.used_index != self.published:
            self._publish()

    def set_wires(self, int kick, int call):
        """Other descriptors from now on. While `run` is not."""
        self.kick, self.call = kick, call

    cdef void _lock(self) noexcept nogil:
        while ring_exchange32(&self.lock, 1):
            ring_relax()

    cdef void _unlock(self) noexcept nogil:
        ring_store32(&self.lock, 0)

    # Without the GIL.

    cdef int _serve(self, uint16_t *head) noexcept nogil:
        """Work until Python is needed: an event, or -1 to stop."""
        cdef int event
        cdef uint64_t idle_since = 0
        while True:
            event = self._take_batch(head)
            if self.under_way or (self.path is not None and self.uring.queued):
                uring_submit(&self.uring, 0)
                self._reap()
            if self.asked_count and event < 0:
                self.asked_count -= 1
                head[0] = self.asked[self.asked_count]
                event = E_CHAIN
            self._collect_finished()
            if self.used_index != self.published:
                self._publish()
                idle_since = 0
                if event >= 0:
                    return event
                continue
            if event >= 0:
                return event
            if self.stopping and not self.under_way:
                return -1
            if idle_since == 0:
                idle_since = now_ns()
            elif now_ns() - idle_since >= self.poll_ns or self.stopping or self.broken:
                if not self._sleep(idle_since):
                    return E_BROKEN_MEMORY
                idle_since = 0
                continue
            ring_relax()

    cdef int _take_batch(self, uint16_t *head) noexcept nogil:
        cdef uint16_t top, waiting, position
        cdef int done = 0
        if self.stopping or self.broken:
            return -1
        top = ring_load16(self.available + 1)
        waiting = <uint16_t>(top - self.last_available)
        if waiting > self.size:
            return E_BAD_INDEX
        while waiting and done < BATCH:
            position = self.available[2 + (self.last_available & self.mask)]
            head[0] = position
            if position < self.size and self.taken[position]:
                return E_HEAD_IN_FLIGHT
            if self._full():
                return -1
            self.last_available += 1
            waiting -= 1
            done += 1
            if position < self.size:
                self._note_taken(position)
            if self.path is None or position >= self.size or self._block(position) == SLOW:
                return E_CHAIN
        return -1

    cdef void _note_taken(self, uint16_t head) noexcept nogil:
        if self.inflight != NULL:
            self.inflight_table[head].counter = self.inflight_counter
            self.inflight_counter += 1
            ring_fence()
            self.inflight_table[head].inflight = 1

    cdef uint8_t *_translate(self, uint64_t address, uint64_t length, bint write, Region *cached) noexcept nogil:
        cdef int index
        cdef Region *region = cached
        if region.host == NULL or address < region.start or address - region.start >= region.size:
            region = NULL
            for index in range(self.table.count):
                if address - self.table.regions[index].start < self.table.regions[index].size and address >= self.table.regions[index].start:
                    region = &self.table.regions[index]
                    break
            if region == NULL:
                return NULL
            cached[0] = region[0]
        if length > region.size - (address - region.start) or (write and not region.writable):
            return NULL
        return region.host + (address - region.start)

    cdef int _gather(self, uint16_t head, iovec *vectors, uint64_t *addresses, int *readable) noexcept nogil:
        """The chain as host memory: how many pieces, of which the first `readable` are the device's to read. 0: slow."""
        cdef Descriptor one = self.descriptors[head]
        cdef Descriptor *table = self.descriptors
        cdef uint32_t limit = self.size
        cdef int count = 0
        cdef uint8_t *place
        cdef bint write
        readable[0] = 0
        if one.flags & F_INDIRECT:
            if not self.indirect or one.flags & F_NEXT or one.length % sizeof(Descriptor) or one.length > LARGEST_CHAIN * sizeof(Descriptor):
                return 0
            table = <Descriptor *>self._translate(one.address, one.length, False, &self.near)
            limit = one.length // sizeof(Descriptor)
            if table == NULL or limit == 0:
                return 0
            one = table[0]
        while count < LARGEST_CHAIN:
            write = one.flags & F_WRITE
            if one.flags & F_INDIRECT or (not write and readable[0] != count) or one.length == 0:
                return 0
            place = self._translate(one.address, one.length, write, &self.near if one.length <= 16 else &self.far)
            if place == NULL:
                return 0
            vectors[count] = iovec(place, one.length)
            addresses[count] = one.address
            count += 1
            readable[0] += not write
            if not one.flags & F_NEXT:
                return count
            if one.next >= limit:
                return 0
            one = table[one.next]
        return 0

    cdef int _block(self, uint16_t head) noexcept nogil:
        """A plain read or write (virtio 1.3, 5.2.6) is TAKEN; everything else is SLOW."""
        cdef iovec vectors[LARGEST_CHAIN]
        cdef uint64_t addresses[LARGEST_CHAIN]
        cdef int readable = 0, count, index
        cdef uint32_t kind
        cdef uint64_t sector, total = 0
        count = self._gather(head, vectors, addresses, &readable)
        if count < 3 or vectors[0].iov_len != 16 or vectors[count - 1].iov_len != 1 or not readable:
            return SLOW
        memcpy(&kind, vectors[0].iov_base, 4)
        memcpy(&sector, <uint8_t *>vectors[0].iov_base + 8, 8)
        if not (kind == T_IN and readable == 1) and not (kind == T_OUT and readable == count - 1 and not self.path.read_only):
            return SLOW
        for index in range(1, count - 1):
            total += vectors[index].iov_len
        if total % SECTOR or total > self.path.size or sector > (self.path.size - total) // SECTOR:
            return SLOW
        if self.log != NULL:
            for index in range(readable, count):
                self._mark(addresses[index], vectors[index].iov_len)
        return self._transfer(head, vectors, count, kind == T_IN, sector * SECTOR, <uint32_t>total)

    cdef int _transfer(self, uint16_t head, iovec *vectors, int count, bint is_read, uint64_t offset, uint32_t total) noexcept nogil:
        cdef uint8_t *status = <uint8_t *>vectors[count - 1].iov_base
        cdef const uint8_t *source
        cdef ssize_t moved
        cdef int index
        if self.path.mode == MODE_MMAP and is_read:
            source = self.path.image + offset
            for index in range(1, count - 1):
                memcpy(vectors[index].iov_base, source, vectors[index].iov_len)
                source += vectors[index].iov_len
            if ring_load32(self.path.broken):
                return SLOW
        elif self.path.mode == MODE_DIRECT:
            return self._fly(head, vectors, count, is_read, offset, total)
        else:
            if is_read:
                moved = preadv2(self.path.fd, vectors + 1, count - 2, <int64_t>offset, RWF_NOWAIT)
                if moved != <ssize_t>total:
                    return self._fly(head, vectors, count, is_read, offset, total)
            else:
                moved = pwritev(self.path.fd, vectors + 1, count - 2, <int64_t>offset)
                if moved != <ssize_t>total:
                    return SLOW
        status[0] = S_OK
        self._give_back(head, total + 1 if is_read else 1)
        self._account(is_read, total)
        return TAKEN

    cdef void _account(self, bint is_read, uint32_t total) noexcept nogil:
        self.requests += 1
        if is_read:
            self.bytes_read += total
        else:
            self.bytes_written += total

    cdef int _fly(self, uint16_t head, iovec *vectors, int count, bint is_read, uint64_t offset, uint32_t total) noexcept nogil:
        """Start a transfer by io_uring."""
        cdef Flight *flight
        cdef uint16_t slot
        if self.free_count == 0:
            return SLOW
        slot = self.free_flights[self.free_count - 1]
        flight = &self.flights[slot]
        memcpy(flight.vectors, vectors + 1, (count - 2) * sizeof(iovec))
        flight.status = <uint8_t *>vectors[count - 1].iov_base
        flight.total, flight.head, flight.is_read = total, head, is_read
        if not uring_queue(&self.uring, not is_read, self.path.fd, flight.vectors, count - 2, offset, slot):
            return SLOW
        self.free_count -= 1
        self.under_way += 1
        self.taken[head] = 1
        return TAKEN

    cdef void _reap(self) noexcept nogil:
        """Transfers that io_uring finished. A failed or short one is done again by Python, which knows what to answer."""
        cdef uint64_t slot = 0
        cdef int result = 0
        cdef Flight *flight
        while uring_next(&self.uring, &slot, &result):
            flight = &self.flights[slot]
            self.free_flights[self.free_count] = <uint16_t>slot
            self.free_count += 1
            self.under_way -= 1
            if result == <int>flight.total:
                flight.status[0] = S_OK
                self._account(flight.is_read, flight.total)
                self._give_back(flight.head, flight.total + 1 if flight.is_read else 1)
            else:
                self.asked[self.asked_count] = flight.head
                self.asked_count += 1

    cdef void _give_back(self, uint16_t head, uint32_t written) noexcept nogil:
        cdef UsedElement *entries = <UsedElement *>(self.used + 4)
        self.taken[head] = 0
        entries[self.used_index & self.mask] = UsedElement(head, written)
        if self.log != NULL:
            self._mark(self.log_used + 4 + 8 * (self.used_index & self.mask), 8)
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
        """Let the driver see what was given back, and interrupt it if it asked for that (2.7.7)."""
        cdef UsedElement *entries = <UsedElement *>(self.used + 4)
        cdef uint16_t old = self.published, new = self.used_index, index = self.published
        cdef uint64_t one = 1
        cdef bint wanted
        ring_store16(self.used + 2, new)
        if self.log != NULL:
            self._mark(self.log_used, 4)
        if self.inflight != NULL:
            while index != new:
                self.inflight_table[entries[index & self.mask].head & self.mask].inflight = 0
                index += 1
            self.inflight.used_idx = new
        self.published = new
        self.batches += 1
        ring_fence()
        if self.event_idx:
            wanted = <uint16_t>(new - self.available[2 + self.size] - 1) < <uint16_t>(new - old)
        else:
            wanted = not ring_load16(self.available) & NO_INTERRUPT
        if not wanted or self.call < 0:
            self.suppressed += 1
            return
        write(self.call, &one, 8)
        self.interrupts += 1

    cdef void _mark(self, uint64_t address, uint64_t length) noexcept nogil:
        """Mark guest pages in the dirty log (vhost-user.rst, "Migration")."""
        cdef uint64_t page = address // PAGE, last = (address + length - 1) // PAGE
        while page <= last:
            if page // 8 < self.log_size:
                ring_or8(self.log + page // 8, 1 << (page % 8))
            page += 1

    cdef void _ask_for_kicks(self, bint wanted) noexcept nogil:
        if self.event_idx:
            if wanted:
                ring_store16(self.used + 4 + 8 * <size_t>self.size, self.last_available)
        else:
            ring_store16(self.used, 0 if wanted else NO_NOTIFY)
        ring_fence()

    cdef bint _sleep(self, uint64_t idle_since) noexcept nogil:
        """Wait for a kick, Python or the kernel. False: guest memory was cut away."""
        cdef pollfd entries[3]
        cdef uint64_t before, slept
        cdef uint8_t drain[512]
        cdef int index
        cdef bint deaf = self.broken or self.stopping
        for index in range(self.table.count):
            if self.table.regions[index].broken != NULL and ring_load32(self.table.regions[index].broken) and not self.broken:
                return False
        if not deaf:
            self._ask_for_kicks(True)
            if ring_load16(self.available + 1) != self.last_available and not self._full():
                self._ask_for_kicks(False)
                return True
        entries[0] = pollfd(self.wake, POLLIN, 0)
        entries[1] = pollfd(-1 if deaf else self.kick, POLLIN, 0)
        entries[2] = pollfd(self.uring.fd if self.under_way else -1, POLLIN, 0)
        before = now_ns()
        poll(entries, 3, -1)
        slept = now_ns() - before
        if entries[0].revents:
            read(self.wake, drain, 8)
        if entries[1].revents & POLLIN:
            read(self.kick, drain, sizeof(drain))
            self.kicks += 1
        elif entries[1].revents:
            self.kick = -1  # a pipe without a writer would be ready for ever
        self._adapt(slept)
        if not deaf:
            self._ask_for_kicks(False)
        return True

    cdef bint _full(self) noexcept nogil:
        return self.path is not None and self.path.mode != MODE_MMAP and self.free_count == 0

    cdef void _adapt(self, uint64_t slept) noexcept nogil:
        """Look longer for new chains where that would have spared a sleep, and shorter where it would not."""
        if slept < self.poll_longest:
            self.poll_ns = min(self.poll_longest, max(<uint64_t>POLL_SHORTEST, 2 * self.poll_ns))
        else:
            self.poll_ns = self.poll_ns // 2
