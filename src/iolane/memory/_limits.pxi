# Sizes and times of the compiled data plane, and what it tells Python.

cdef enum:
    SECTOR = 512
    LARGEST_TRANSFER = 1 << 30
    BATCH = 64
    FIRST_SHOWN = 8  # chains after a rest: a driver that waits is told while the others are done, and not too often
    MODE_MMAP = 0
    MODE_CACHE = 1
    MODE_DIRECT = 2
    T_IN = 0
    T_OUT = 1
    S_OK = 0
    TAKEN = 1
    FINISHED = 2
    PAGE = 4096
    FLIGHTS = 256
    POLL_LONGEST = 200000  # ns; a processor that sleeps may take 50 us to wake, and a disk 100 us to read
    POLL_SHORTEST = 1000
    POLL_BYTES = 32768  # what takes the disk longer than to wake us, and needs the processor for its interrupts
    GATHERED_BYTES = 1 << 20
    BUSY_BYTES = 1 << 20
    POLL_MS = 1  # how often a ring without a kick descriptor is looked at
    AWAKE = 0
    ASLEEP = 1  # and to be woken
    HELD = 2  # asleep, and not to touch the queue

cdef enum:
    E_CHAIN = 0
    E_BAD_INDEX = 1
    E_HEAD_IN_FLIGHT = 2
    E_BROKEN_MEMORY = 3
    E_TURN = 4
