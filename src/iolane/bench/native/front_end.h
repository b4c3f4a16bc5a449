/* A vhost-user front end, as far as a load generator needs one (vhost-user.rst; virtio 1.3, 2.7). One memory, at
 * GUEST; rings are named by the addresses that they have here. Every failure ends the process. */
#ifndef FRONT_END_H
#define FRONT_END_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define GUEST 0x100000000ULL
#define BIT(feature) (1ULL << (feature))
#define PROTOCOL_FEATURES 30
#define VERSION_1 32
#define NEXT 1
#define WRITE 2

enum { GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR = 9,
       SET_VRING_BASE = 10, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13,
       GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct used_element { uint32_t head, written; };

static int server;

static inline uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static inline void fail(const char *what)
{
    perror(what);
    exit(1);
}

static inline void put(uint32_t request, const void *payload, uint32_t size, int fd)
{
    uint32_t head[3] = {request, 1, size};
    struct iovec parts[2] = {{head, sizeof head}, {(void *)payload, size}};
    union { char room[CMSG_SPACE(sizeof(int))]; struct cmsghdr align; } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (fd >= 0) {
        message.msg_control = control.room;
        message.msg_controllen = sizeof control.room;
        struct cmsghdr *cmsg = CMSG_FIRSTHDR(&message);
        cmsg->cmsg_level = SOL_SOCKET;
        cmsg->cmsg_type = SCM_RIGHTS;
        cmsg->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(cmsg), &fd, sizeof(int));
    }
    if (sendmsg(server, &message, MSG_NOSIGNAL) != (ssize_t)(sizeof head + size))
        fail("sendmsg");
}

static inline uint64_t get(void)
{
    struct { uint32_t head[3]; uint64_t value; } __attribute__((packed)) reply;
    if (recv(server, &reply, sizeof reply, MSG_WAITALL) != sizeof reply)
        fail("recv");
    return reply.value;
}

static inline void number(uint32_t request, uint64_t value) { put(request, &value, sizeof value, -1); }

static inline void state(uint32_t request, uint32_t index, uint32_t value)
{
    uint32_t payload[2] = {index, value};
    put(request, payload, sizeof payload, -1);
}

static inline void signal_fd(uint32_t request, uint64_t index, int fd) { put(request, &index, sizeof index, fd); }

static inline void connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, path, sizeof address.sun_path - 1);
    server = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(server, (struct sockaddr *)&address, sizeof address))
        fail("connect");
}

/* Memory that is shared, and the descriptor for it in `memory`. */
static inline unsigned char *make_memory(uint64_t size, int *memory)
{
    *memory = memfd_create("guest", MFD_CLOEXEC);
    if (*memory < 0 || ftruncate(*memory, size))
        fail("memfd");
    unsigned char *base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, *memory, 0);
    if (base == MAP_FAILED)
        fail("mmap");
    return base;
}

/* The features that are used: those of `wanted` that are offered. Memory is shared, queues are still to come. */
static inline uint64_t negotiate(int memory, unsigned char *base, uint64_t size, uint64_t wanted)
{
    put(GET_FEATURES, NULL, 0, -1);
    uint64_t features = get(), needed = BIT(PROTOCOL_FEATURES) | BIT(VERSION_1);
    if ((features & needed) != needed) {
        fprintf(stderr, "the back end offers features %#lx\n", (unsigned long)features);
        exit(1);
    }
    put(GET_PROTOCOL_FEATURES, NULL, 0, -1);
    uint64_t protocol = get();
    number(SET_PROTOCOL_FEATURES, protocol & 1); /* MQ */
    put(SET_OWNER, NULL, 0, -1);
    features &= needed | wanted;
    number(SET_FEATURES, features);
    struct { uint32_t count, padding; uint64_t guest, size, user, offset; } table = {
        1, 0, GUEST, size, (uintptr_t)base, 0};
    put(SET_MEM_TABLE, &table, sizeof table, memory);
    return features;
}

static inline void start_ring(uint32_t index, uint32_t size, void *table, void *available, void *used, int kick, int call)
{
    struct { uint32_t index, flags; uint64_t table, used, available, log; } address = {
        index, 0, (uintptr_t)table, (uintptr_t)used, (uintptr_t)available, 0};
    state(SET_VRING_NUM, index, size);
    put(SET_VRING_ADDR, &address, sizeof address, -1);
    state(SET_VRING_BASE, index, 0);
    signal_fd(SET_VRING_CALL, index, call);
    signal_fd(SET_VRING_KICK, index, kick);
    state(SET_VRING_ENABLE, index, 1);
}

static inline void stop_ring(uint32_t index)
{
    state(GET_VRING_BASE, index, 0);
    get();
}

#endif
