/* The part of vfio-user that the measurements need (docs/interop/vfio-user.rst of QEMU: "Header", "VFIO_USER_REGION_READ"). */
#ifndef IOLANE_BENCH_PROTOCOL_H
#define IOLANE_BENCH_PROTOCOL_H

#include <stdint.h>

enum { COMMAND_VERSION = 1, COMMAND_READ = 9, COMMAND_WRITE = 10 };
enum { FLAG_REPLY = 0x01, FLAG_NO_REPLY = 0x10, FLAG_ERROR = 0x20 };

struct header {
    uint16_t id;
    uint16_t command;
    uint32_t size;
    uint32_t flags;
    uint32_t error;
} __attribute__((packed));

struct access {
    struct header header;
    uint64_t offset;
    uint32_t region;
    uint32_t count;
    uint8_t data[8];
} __attribute__((packed));

enum { ACCESS_SIZE = 32, LONGEST = 1 << 16 };

#endif
