# The layout of a split virtqueue (virtio 1.3, 2.7) and the fences it needs.
#
# What the driver may change meanwhile is read by `ring_read*`: once, and never again by the compiler's choice.

cdef extern from *:
    """
    #include <stdint.h>
    #define ring_load16(p) __atomic_load_n((const uint16_t *)(p), __ATOMIC_ACQUIRE)
    #define ring_store16(p, v) __atomic_store_n((uint16_t *)(p), (uint16_t)(v), __ATOMIC_RELEASE)
    #define ring_load32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_ACQUIRE)
    #define ring_store32(p, v) __atomic_store_n((uint32_t *)(p), (uint32_t)(v), __ATOMIC_RELEASE)
    #define ring_read8(p) (void)__atomic_load_n((const uint8_t *)(p), __ATOMIC_RELAXED)
    #define ring_read16(p) __atomic_load_n((const uint16_t *)(p), __ATOMIC_RELAXED)
    #define ring_read32(p) __atomic_load_n((const uint32_t *)(p), __ATOMIC_RELAXED)
    #define ring_read64(p) __atomic_load_n((const uint64_t *)(p), __ATOMIC_RELAXED)
    #define ring_store8(p, v) __atomic_store_n((uint8_t *)(p), (uint8_t)(v), __ATOMIC_RELEASE)
    #define ring_or8(p, v) __atomic_fetch_or((uint8_t *)(p), (uint8_t)(v), __ATOMIC_SEQ_CST)
    #define ring_exchange32(p, v) __atomic_exchange_n((uint32_t *)(p), (uint32_t)(v), __ATOMIC_ACQUIRE)
    #define ring_change32(p, old, new) ({ uint32_t expected = (old); \
        __atomic_compare_exchange_n((uint32_t *)(p), &expected, (uint32_t)(new), 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE); })
    #define ring_fence() __atomic_thread_fence(__ATOMIC_SEQ_CST)
    #if defined(__x86_64__)
    #define ring_relax() __builtin_ia32_pause()
    #else
    #define ring_relax() __atomic_signal_fence(__ATOMIC_SEQ_CST)
    #endif
    """
    uint16_t ring_load16(const void *) nogil
    void ring_store16(void *, uint16_t) nogil
    uint32_t ring_load32(const void *) nogil
    void ring_read8(const void *) nogil  # to have been there
    uint16_t ring_read16(const void *) nogil
    uint32_t ring_read32(const void *) nogil
    uint64_t ring_read64(const void *) nogil
    void ring_store8(void *, uint8_t) nogil
    void ring_store32(void *, uint32_t) nogil
    uint32_t ring_exchange32(void *, uint32_t) nogil
    bint ring_change32(void *, uint32_t, uint32_t) nogil  # False: it did not have the first of the values
    void ring_or8(void *, uint8_t) nogil
    void ring_fence() nogil
    void ring_relax() nogil

cdef packed struct Descriptor:
    uint64_t address
    uint32_t length
    uint16_t flags
    uint16_t next

cdef packed struct UsedElement:
    uint32_t head
    uint32_t written

# Shared memory of vhost-user's in-flight tracking (vhost-user.rst, "Inflight I/O tracking", split virtqueue).
cdef packed struct InflightDescriptor:
    uint8_t inflight
    uint8_t padding[5]
    uint16_t next
    uint64_t counter

cdef packed struct InflightHeader:
    uint64_t features
    uint16_t version
    uint16_t desc_num
    uint16_t last_batch_head
    uint16_t used_idx

cdef enum:
    F_NEXT = 1
    F_WRITE = 2
    F_INDIRECT = 4
    NO_NOTIFY = 1
    NO_INTERRUPT = 1
    LARGEST_QUEUE = 32768
    LARGEST_CHAIN = 256  # header, 254 pieces of data, status: what the block device offers
    LARGEST_TABLE = 520  # regions: vhost-user has at most 509 memory slots


cdef void take_lock(uint32_t *lock) noexcept nogil:
    """Given back by storing 0. For a few instructions, or a system call that does not wait."""
    while ring_exchange32(lock, 1):
        ring_relax()
