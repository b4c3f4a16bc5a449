/* A vhost-user front end that loads a net back end (virtio 1.3, 5.1).
 *
 * Usage: net_client SOCKET send|receive|echo BYTES DEPTH MILLISECONDS CPU
 * One thread on processor CPU, which polls, as DPDK's front end does: it asks for no interrupts, and kicks when it is asked to.
 * send: DEPTH packets of BYTES are in the transmit queue; receive: DEPTH buffers are in the receive queue; echo:
 * DEPTH packets are under way, and come back as they were sent. In the end all that are late are waited for; only those
 * that do not come then, either, are lost.
 * Prints: PACKETS WALL_NS P50_NS P99_NS TOTAL LOST. TOTAL also has those of the warm-up, a fifth of the time. The
 * percentiles are of an echo's way there and back, else 0.
 */
#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>

#include "front_end.h"

#define SIZE 256 /* of each queue */
#define BUFFER 2048
#define HEADER 12
#define MRG_RXBUF 15
#define NO_INTERRUPT 1
#define NO_NOTIFY 1
#define SAMPLES (1 << 20)
#define STALLED 200000000ULL /* without an echo: others are sent beside those that are late */
#define HANGS 10000000000ULL /* without an echo: the rest does not come any more */
#define ETHERNET 14
#define LEFT 4096 /* packets at most that an earlier front end left with the back end */

struct queue {
    struct descriptor *table;
    volatile uint16_t *available, *used;
    struct used_element *elements;
    unsigned char *buffers;
    uint16_t available_index, used_index, free;
    uint16_t stack[SIZE]; /* of heads that are free */
    int kick;
};

struct stamp { uint64_t mark, sent, number; };

static struct queue receiver, transmitter;
static uint32_t bytes;
static uint64_t packets, total, lost, left, mark, warm_until, until, duration;
static uint32_t *samples;

static void prepare(struct queue *q, int index, unsigned char *base, uint64_t guest)
{
    q->table = (struct descriptor *)base;
    q->available = (uint16_t *)(base + 0x2000);
    q->used = (uint16_t *)(base + 0x3000);
    q->elements = (struct used_element *)(base + 0x3004);
    q->buffers = base + 0x4000;
    q->kick = eventfd(0, EFD_NONBLOCK);
    q->available[0] = NO_INTERRUPT;
    for (int i = 0; i < SIZE; i++) {
        uint32_t length = index ? HEADER + bytes : BUFFER;
        q->table[i] = (struct descriptor){guest + 0x4000 + (uint64_t)i * BUFFER, length, index ? 0 : WRITE, 0};
        q->stack[q->free++] = i;
        unsigned char *frame = q->buffers + (uint64_t)i * BUFFER + HEADER;
        static const unsigned char addresses[ETHERNET] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x88, 0xb5};
        memcpy(frame, addresses, ETHERNET);
        for (uint32_t at = ETHERNET; at < bytes; at++)
            frame[at] = at;
    }
    start_ring(index, SIZE, q->table, (void *)q->available, (void *)q->used, q->kick, eventfd(0, 0));
}

static uint16_t offer(struct queue *q)
{
    uint16_t head = q->stack[--q->free];
    q->available[2 + q->available_index++ % SIZE] = head;
    return head;
}

static void submit(struct queue *q)
{
    static const uint64_t one = 1;
    if (q->available[1] == q->available_index)
        return;
    atomic_thread_fence(memory_order_release);
    q->available[1] = q->available_index;
    atomic_thread_fence(memory_order_seq_cst);
    if (!(q->used[0] & NO_NOTIFY) && write(q->kick, &one, 8) != 8 && errno != EAGAIN)
        fail("kick");
}

/* The next chain that came back, or NULL. */
static struct used_element *collect(struct queue *q)
{
    if (q->used[1] == q->used_index)
        return NULL;
    atomic_thread_fence(memory_order_acquire);
    struct used_element *element = &q->elements[q->used_index++ % SIZE];
    if (element->head >= SIZE || q->free == SIZE) {
        fprintf(stderr, "chain %u came back in ring %d, which has %d\n", element->head, q == &transmitter, SIZE - q->free);
        exit(1);
    }
    q->stack[q->free++] = element->head;
    return element;
}

static void wrong(const char *what, uint64_t value)
{
    fprintf(stderr, "%s: %lu\n", what, (unsigned long)value);
    exit(1);
}

/* The measurement begins with the first packet: the other side may still be coming up. */
static void count(uint64_t time)
{
    if (!total++)
        warm_until = time + duration / 5, until = warm_until + duration;
    if (time >= warm_until && time < until)
        packets++;
}

static void give_buffers(uint32_t depth)
{
    while (SIZE - receiver.free < (int)depth)
        offer(&receiver);
    submit(&receiver);
}

static unsigned char *received(const struct used_element *element)
{
    unsigned char *packet = receiver.buffers + (uint64_t)element->head * BUFFER;
    if (element->written != HEADER + bytes)
        wrong("the length of a packet", element->written);
    if (packet[10] != 1 || packet[11])
        wrong("the number of buffers of a packet", packet[10]);
    return packet + HEADER;
}

static void run_send(uint32_t depth)
{
    for (uint64_t time = now(); time < until; time = now()) {
        while (collect(&transmitter))
            count(time);
        while (SIZE - transmitter.free < (int)depth)
            offer(&transmitter);
        submit(&transmitter);
    }
}

static void run_receive(uint32_t depth)
{
    for (uint64_t time = now(); time < until; time = now()) {
        for (const struct used_element *element; (element = collect(&receiver)); count(time))
            received(element);
        give_buffers(depth);
    }
}

static uint64_t sent, came, late, late_before; /* packets sent, and come; of those before one, so many are late */

/* The number of a packet that came, if it is one of ours, else UINT64_MAX. */
static uint64_t echoed(const unsigned char *frame, uint64_t time)
{
    struct stamp stamp;
    memcpy(&stamp, frame + ETHERNET, sizeof stamp);
    if (stamp.mark != mark && left++ < LEFT)
        return UINT64_MAX;
    if (stamp.mark != mark || stamp.number >= sent || stamp.sent > time)
        wrong("the content of a packet", stamp.number);
    for (uint32_t at = ETHERNET + sizeof stamp; at < bytes; at += 64)
        if (frame[at] != (unsigned char)at)
            wrong("a byte of a packet", at);
    if (time >= warm_until && time < until)
        samples[packets % SAMPLES] = time - stamp.sent;
    count(time);
    return stamp.number;
}

/* Take what came. Returns whether that was anything. */
static int take_echoes(uint64_t time)
{
    uint64_t before = came;
    for (const struct used_element *element; (element = collect(&receiver));) {
        uint64_t which = echoed(received(element), time);
        came += which != UINT64_MAX;
        late -= late && which < late_before;
    }
    give_buffers(SIZE);
    while (collect(&transmitter))
        ;
    return came != before;
}

static void run_echo(uint32_t depth)
{
    uint64_t last = now(), time;
    while ((time = now()) < until) {
        if (take_echoes(time))
            last = time;
        if (time - last > STALLED)
            late = sent - came, late_before = sent, last = time;
        while (sent - came - late < depth && transmitter.free) {
            struct stamp stamp = {mark, time, sent++};
            uint16_t head = offer(&transmitter);
            memcpy(transmitter.buffers + (uint64_t)head * BUFFER + HEADER + ETHERNET, &stamp, sizeof stamp);
        }
        submit(&transmitter);
    }
    for (last = time; came < sent && time - last < HANGS; time = now())
        if (take_echoes(time))
            last = time;
    lost = sent - came;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;
    return x < y ? -1 : x > y;
}

int main(int words, char **word)
{
    if (words != 7)
        return 2;
    cpu_set_t processors;
    CPU_ZERO(&processors);
    CPU_SET(atoi(word[6]), &processors);
    if (sched_setaffinity(0, sizeof processors, &processors))
        fail("sched_setaffinity");
    bytes = atoi(word[3]);
    uint32_t depth = atoi(word[4]);
    uint64_t room = 0x4000 + SIZE * BUFFER;
    duration = atoll(word[5]) * 1000000ULL;
    if (bytes < 60 || bytes + HEADER > BUFFER || depth < 1 || depth > SIZE || !duration)
        return 2;
    connect_to(word[1]);
    int memory;
    unsigned char *base = make_memory(2 * room, &memory);
    negotiate(memory, base, 2 * room, BIT(MRG_RXBUF));
    prepare(&receiver, 0, base, GUEST);
    prepare(&transmitter, 1, base + room, GUEST + room);
    samples = malloc(SAMPLES * sizeof *samples);
    mark = now() ^ (uint64_t)getpid() << 40;
    warm_until = until = now() + HANGS;
    if (!strcmp(word[2], "send"))
        run_send(depth);
    else if (!strcmp(word[2], "receive"))
        run_receive(depth);
    else if (!strcmp(word[2], "echo"))
        run_echo(depth);
    else
        return 2;
    stop_ring(0);
    stop_ring(1);
    if (!packets) {
        fprintf(stderr, "no packet passed in time, %lu before and after\n", (unsigned long)total);
        return 1;
    }
    uint64_t kept = strcmp(word[2], "echo") ? 0 : packets < SAMPLES ? packets : SAMPLES;
    qsort(samples, kept, sizeof *samples, compare);
    printf("%lu %lu %u %u %lu %lu\n", (unsigned long)packets, (unsigned long)duration, kept ? samples[kept / 2] : 0,
           kept ? samples[kept * 99 / 100] : 0, (unsigned long)total, (unsigned long)lost);
    return 0;
}
