# cython: language_level=3
"""A full memory fence, for rings that two sides of shared memory read and write without a lock."""

cdef extern from *:
    """
    static inline void iolane_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
    """
    void iolane_fence() nogil


def fence():
    """Make every store before it visible before any load after it."""
    iolane_fence()
