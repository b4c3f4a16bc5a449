/* A vhost-user front end that loads a block back end (virtio 1.3, 2.7 and 5.2; vhost-user.rst).
 *
 * Usage: block_client SOCKET read|write random|sequential BYTES DEPTH QUEUES MILLISECONDS SPAN SPIN_NS
 * One thread a queue keeps DEPTH requests of BYTES in flight over the first SPAN bytes of the disk. It looks for
 * completions for SPIN_NS, then waits for an interrupt, as a guest does (EVENT_IDX).
 * Prints: REQUESTS WALL_NS P50_NS P99_NS TOTAL. TOTAL also has those of the warm-up, a fifth of the time.
 */
#define _GNU_SOURCE
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>

#include "front_end.h"

#define QUEUE_SIZE 128
#define HEAD_ROOM 0x10000 /* rings, headers and statuses of a queue */
#define SAMPLES (1 << 20)
#define EVENT_IDX 29
#define FLUSH 9
#define MQ 12

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

static int depth, queues, writes, sequential;
static uint32_t bytes;
static uint64_t span, spin, warm_until, until;

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
    start_ring(q->index, QUEUE_SIZE * 4, q->table, (void *)q->available, (void *)q->used, q->kick, q->call);
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
    connect_to(words[1]);
    uint64_t room = HEAD_ROOM + (((uint64_t)depth * bytes + 0xfff) & ~0xfffULL);
    int memory;
    unsigned char *base = make_memory(room * queues, &memory);
    for (uint64_t i = 0; i < queues * room; i += 8) /* not all the same byte */
        if (i % room >= HEAD_ROOM)
            *(uint64_t *)(base + i) = i * 0x9e3779b97f4a7c15ULL;
    negotiate(memory, base, room * queues, BIT(EVENT_IDX) | BIT(MQ) | BIT(FLUSH));
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
    for (int i = 0; i < queues; i++)
        stop_ring(i);
    if (!kept) {
        fprintf(stderr, "no request came back in time\n");
        return 1;
    }
    qsort(samples, kept, sizeof *samples, compare);
    printf("%lu %lu %u %u %lu\n", (unsigned long)requests, (unsigned long)duration, samples[kept / 2],
           samples[kept * 99 / 100], (unsigned long)total);
    return 0;
}
