# cython: language_level=3
"""Bits of shared memory set without losing those that somebody else sets at the same time."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer

cdef extern from *:
    """
    #include <stdint.h>
    static inline void iolane_or8(unsigned char *at, unsigned char bits) {
        __atomic_fetch_or(at, bits, __ATOMIC_SEQ_CST);
    }
    """
    void iolane_or8(unsigned char *at, unsigned char bits) nogil


def set_bits(buffer, Py_ssize_t first, Py_ssize_t count):
    """Set `count` bits from number `first` on (number 0 is the lowest bit of the first byte), atomically each byte.

    Bits past the end of the buffer are left out. Returns how many were set.
    """
    cdef Py_buffer view
    cdef Py_ssize_t end, at, limit
    cdef unsigned char bits
    cdef unsigned char *start
    if first < 0 or count < 0:
        raise ValueError(f"{count} bits from {first} on")
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
    try:
        limit = 8 * view.len
        if first >= limit or count == 0:
            return 0
        end = first + min(count, limit - first)
        start = <unsigned char *>view.buf
        with nogil:
            for at in range(first // 8, (end + 7) // 8):
                bits = 0xFF
                if at == first // 8:
                    bits &= <unsigned char>(0xFF << (first % 8))
                if at == end // 8:
                    bits &= <unsigned char>((1 << (end % 8)) - 1)
                iolane_or8(start + at, bits)
        return end - first
    finally:
        PyBuffer_Release(&view)
