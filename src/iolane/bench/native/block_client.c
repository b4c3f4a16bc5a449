/* A vhost-user front end that loads a block back end (virtio 1.3, 2.7 and 5.2; vhost-user.rst).
 *
 * Usage: block_client SOCKET read|write random|sequential BYTES DEPTH QUEUES MILLISECONDS SPAN SPIN_NS
 * One thread a queue keeps DEPTH requests of BYTES in flight over the first SPAN bytes of the disk. It looks for
 * completions for SPIN_NS, then waits for an interrupt, as a guest does (EVENT_IDX).
 * Prints: REQUESTS WALL_NS P50_NS P99_NS TOTAL. TOTAL also has those of the warm-up, a fifth of the time.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
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

#define QUEUE_SIZE 128
#define GUEST 0x100000000ULL
#define HEAD_ROOM 0x10000 /* rings, headers and statuses of a queue */
#define SAMPLES (1 << 20)
#define EVENT_IDX 29
#define PROTOCOL_FEATURES 30
#define VERSION_1 32

enum { GET_FEATURES = 1, SET_FEATURES = 2, SET_OWNER = 3, SET_MEM_TABLE = 5, SET_VRING_NUM = 8, SET_VRING_ADDR = 9,
       SET_VRING_BASE = 10, GET_VRING_BASE = 11, SET_VRING_KICK = 12, SET_VRING_CALL = 13,
       GET_PROTOCOL_FEATURES = 15, SET_PROTOCOL_FEATURES = 16, SET_VRING_ENABLE = 18 };

struct descriptor { uint64_t address; uint32_t length; uint16_t flags, next; };
struct used_element { uint32_t head, written; };
struct header { uint32_t type, reserved; uint64_t sector; };

struct queue {
    pthread_t thread;
    int index, kick, call;
    unsigned char *base; /* of this queue's memory */
    uint64_t guest;
    struct descriptor *table;
    volatile uint16_t *available, *used;
    struct used_element *elements;
    struct header *headers;
    unsigned char *status;
    uint64_t started[QUEUE_SIZE];
    uint64_t seed, next, requests, total;
    uint32_t *samples;
    uint16_t available_index, used_index;
};

static int server, depth, queues, writes, sequential;
static uint32_t bytes;
static uint64_t span, spin, warm_until, until, memory_size;

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ULL + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void put(uint32_t request, const void *payload, uint32_t size, int fd)
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

static uint64_t get(void)
{
    struct { uint32_t head[3]; uint64_t value; } __attribute__((packed)) reply;
    if (recv(server, &reply, sizeof reply, MSG_WAITALL) != sizeof reply)
        fail("recv");
    return reply.value;
}

static void number(uint32_t request, uint64_t value) { put(request, &value, sizeof value, -1); }

static void state(uint32_t request, uint32_t index, uint32_t value)
{
    uint32_t payload[2] = {index, value};
    put(request, payload, sizeof payload, -1);
}

static void signal_fd(uint32_t request, uint64_t index, int fd) { put(request, &index, sizeof index, fd); }

static void negotiate(int memory, unsigned char *base)
{
    put(GET_FEATURES, NULL, 0, -1);
    uint64_t features = get();
    if (!(features >> PROTOCOL_FEATURES & 1) || !(features >> VERSION_1 & 1)) {
        fprintf(stderr, "the back end offers features %#lx\n", (unsigned long)features);
        exit(1);
    }
    put(GET_PROTOCOL_FEATURES, NULL, 0, -1);
    uint64_t protocol = get();
    number(SET_PROTOCOL_FEATURES, protocol & 1); /* MQ */
    put(SET_OWNER, NULL, 0, -1);
    number(SET_FEATURES, features & (1ULL << EVENT_IDX | 1ULL << PROTOCOL_FEATURES | 1ULL << VERSION_1 | 1ULL << 12 | 1ULL << 9));
    struct { uint32_t count, padding; uint64_t guest, size, user, offset; } table = {
        1, 0, GUEST, memory_size, (uintptr_t)base, 0};
    put(SET_MEM_TABLE, &table, sizeof table, memory);
}

static void prepare(struct queue *q, unsigned char *base, uint64_t room)
{
    q->base = base + q->index * room;
    q->guest = GUEST + q->index * room;
    q->table = (struct descriptor *)q->base;
    q->available = (uint16_t *)(q->base + 0x4000);
    q->used = (uint16_t *)(q->base + 0x6000);
    q->elements = (struct used_element *)(q->base + 0x6004);
    q->headers = (struct header *)(q->base + 0x8000);
    q->status = q->base + 0xc000;
    q->kick = eventfd(0, EFD_NONBLOCK);
    q->call = eventfd(0, 0);
    q->seed = 88172645463325252ULL + q->index * 7919;
    q->next = (span / queues / bytes * bytes) * q->index;
    q->samples = malloc(SAMPLES * sizeof *q->samples);
    for (int i = 0; i < depth; i++) {
        int flag = writes ? 0 : 2;
        q->table[3 * i] = (struct descriptor){q->guest + 0x8000 + 16 * i, 16, 1, 3 * i + 1};
        q->table[3 * i + 1] = (struct descriptor){q->guest + HEAD_ROOM + (uint64_t)i * bytes, bytes, 1 | flag, 3 * i + 2};
        q->table[3 * i + 2] = (struct descriptor){q->guest + 0xc000 + i, 1, 2, 0};
    }
    struct { uint32_t index, flags; uint64_t table, used, available, log; } address = {
        q->index, 0, (uintptr_t)q->table, (uintptr_t)q->used, (uintptr_t)q->available, 0};
    state(SET_VRING_NUM, q->index, QUEUE_SIZE * 4);
    put(SET_VRING_ADDR, &address, sizeof address, -1);
    state(SET_VRING_BASE, q->index, 0);
    signal_fd(SET_VRING_CALL, q->index, q->call);
    signal_fd(SET_VRING_KICK, q->index, q->kick);
    state(SET_VRING_ENABLE, q->index, 1);
}

static void offer(struct queue *q, int slot, uint64_t time)
{
    uint64_t offset;
    if (sequential) {
        offset = q->next;
        q->next = q->next + bytes >= span ? 0 : q->next + bytes;
    } else {
        q->seed ^= q->seed << 13, q->seed ^= q->seed >> 7, q->seed ^= q->seed << 17;
        offset = q->seed % (span / bytes) * bytes;
    }
    q->headers[slot] = (struct header){writes, 0, offset / 512};
    q->status[slot] = 0xee;
    q->started[slot] = time;
    q->available[2 + q->available_index % (QUEUE_SIZE * 4)] = 3 * slot;
    q->available_index++;
}

static void submit(struct queue *q, uint16_t before)
{
    static const uint64_t one = 1;
    atomic_thread_fence(memory_order_release);
    q->available[1] = q->available_index;
    atomic_thread_fence(memory_order_seq_cst);
    uint16_t event = *(volatile uint16_t *)&q->elements[QUEUE_SIZE * 4];
    if ((uint16_t)(q->available_index - event - 1) < (uint16_t)(q->available_index - before))
        if (write(q->kick, &one, 8) != 8 && errno != EAGAIN)
            fail("kick");
}

static void wait_used(struct queue *q)
{
    uint64_t since = now(), value;
    while (q->used[1] == q->used_index) {
        if (now() - since < spin) {
            __builtin_ia32_pause();
            continue;
        }
        q->available[2 + QUEUE_SIZE * 4] = q->used_index; /* used_event */
        atomic_thread_fence(memory_order_seq_cst);
        if (q->used[1] != q->used_index)
            break;
        struct pollfd entry = {q->call, POLLIN, 0};
        if (poll(&entry, 1, 10000) != 1) {
            fprintf(stderr, "no interrupt for 10 s\n");
            exit(1);
        }
        if (read(q->call, &value, 8) != 8 && errno != EAGAIN)
            fail("call");
    }
    atomic_thread_fence(memory_order_acquire);
}

static void *drive(void *argument)
{
    struct queue *q = argument;
    uint64_t time = now();
    for (int i = 0; i < depth; i++)
        offer(q, i, time);
    submit(q, 0);
    for (int outstanding = depth; outstanding;) {
        wait_used(q);
        time = now();
        uint16_t before = q->available_index, top = q->used[1];
        while (q->used_index != top) {
            uint32_t head = q->elements[q->used_index % (QUEUE_SIZE * 4)].head;
            int slot = head / 3;
            q->used_index++;
            if (head % 3 || slot >= depth || q->status[slot]) {
                fprintf(stderr, "chain %u came back with status %u\n", head, q->status[slot % depth]);
                exit(1);
            }
            q->total++;
            if (time >= warm_until && time < until)
                q->samples[q->requests++ % SAMPLES] = time - q->started[slot];
            if (time < until)
                offer(q, slot, time);
            else
                outstanding--;
        }
        if (q->available_index != before)
            submit(q, before);
    }
    return NULL;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int count, char **words)
{
    if (count != 10)
        return 2;
    writes = !strcmp(words[2], "write");
    sequential = !strcmp(words[3], "sequential");
    bytes = atoi(words[4]), depth = atoi(words[5]), queues = atoi(words[6]);
    uint64_t duration = atoll(words[7]) * 1000000ULL;
    span = atoll(words[8]), spin = atoll(words[9]);
    if (depth < 1 || depth > QUEUE_SIZE || queues < 1 || queues > 16 || bytes % 512 || span < bytes)
        return 2;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strncpy(address.sun_path, words[1], sizeof address.sun_path - 1);
    server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(server, (struct sockaddr *)&address, sizeof address))
        fail("connect");
    uint64_t room = HEAD_ROOM + (((uint64_t)depth * bytes + 0xfff) & ~0xfffULL);
    memory_size = room * queues;
    int memory = memfd_create("guest", MFD_CLOEXEC);
    if (memory < 0 || ftruncate(memory, memory_size))
        fail("memfd");
    unsigned char *base = mmap(NULL, memory_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, memory, 0);
    if (base == MAP_FAILED)
        fail("mmap");
    for (uint64_t i = 0; i < queues * room; i += 8) /* not all the same byte */
        if (i % room >= HEAD_ROOM)
            *(uint64_t *)(base + i) = i * 0x9e3779b97f4a7c15ULL;
    negotiate(memory, base);
    struct queue *all = calloc(queues, sizeof *all);
    for (int i = 0; i < queues; i++) {
        all[i].index = i;
        prepare(&all[i], base, room);
    }
    uint64_t start = now();
    warm_until = start + duration / 5;
    until = warm_until + duration;
    for (int i = 0; i < queues; i++)
        if (pthread_create(&all[i].thread, NULL, drive, &all[i]))
            fail("pthread_create");
    uint64_t requests = 0, total = 0, kept = 0;
    uint32_t *samples = malloc((size_t)queues * SAMPLES * sizeof *samples);
    for (int i = 0; i < queues; i++) {
        pthread_join(all[i].thread, NULL);
        requests += all[i].requests, total += all[i].total;
        uint64_t some = all[i].requests < SAMPLES ? all[i].requests : SAMPLES;
        memcpy(samples + kept, all[i].samples, some * sizeof *samples);
        kept += some;
    }
    for (int i = 0; i < queues; i++) {
        state(GET_VRING_BASE, i, 0);
        get();
    }
    if (!kept) {
        fprintf(stderr, "no request came back in time\n");
        return 1;
    }
    qsort(samples, kept, sizeof *samples, compare);
    printf("%lu %lu %u %u %lu\n", (unsigned long)requests, (unsigned long)duration, samples[kept / 2],
           samples[kept * 99 / 100], (unsigned long)total);
    return 0;
}
