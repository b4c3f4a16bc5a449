/* Loads a disk from inside a guest: 4 KiB at random places, past the page cache, by threads that each have one
 * request at a time.
 *
 * usage: disk_load DEVICE idle|read|write|written THREADS MILLISECONDS
 *
 * read and write say on one line of JSON how many requests were done, in how many nanoseconds, the p50, p99 and
 * greatest time of one, and how many message interrupts came; idle says the same of doing nothing, for
 * comparison. What is written to a block is its number and a mark, over and over, so `written`
 * can read every block back: it counts those that hold anything else than that or than what the disk began
 * with (which it takes for untouched when it does not bear the mark).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { BLOCK = 4096, AT_ONCE = 64, MOST_THREADS = 64, MOST_TIMES = 1 << 20 };

static const uint64_t MARK = 0x656e616c6f69ULL;

static int disk;
static int writing;
static uint64_t blocks, deadline;

struct load {
    pthread_t thread;
    uint64_t seed, done;
    uint32_t *times; /* nanoseconds of each request */
};

static void fail(const char *what)
{
    fprintf(stderr, "disk_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static uint64_t next(uint64_t *seed) /* xorshift64 */
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

static void *buffer_of(size_t size)
{
    void *buffer;
    if (posix_memalign(&buffer, BLOCK, size))
        fail("memory");
    memset(buffer, 0, size);
    return buffer;
}

static void *work(void *argument)
{
    struct load *load = argument;
    uint64_t *buffer = buffer_of(BLOCK);
    for (uint64_t began = now(); began < deadline && load->done < MOST_TIMES;) {
        uint64_t number = next(&load->seed) % blocks;
        ssize_t moved;
        if (writing) {
            for (size_t i = 0; i < BLOCK / 8; i += 2) {
                buffer[i] = number;
                buffer[i + 1] = MARK;
            }
            moved = pwrite(disk, buffer, BLOCK, (off_t)(number * BLOCK));
        } else {
            moved = pread(disk, buffer, BLOCK, (off_t)(number * BLOCK));
        }
        if (moved != BLOCK)
            fail(writing ? "write" : "read");
        uint64_t ended = now(), took = ended - began;
        load->times[load->done++] = took > UINT32_MAX ? UINT32_MAX : (uint32_t)took;
        began = ended;
    }
    free(buffer);
    return NULL;
}

static int by_size(const void *left, const void *right)
{
    uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;
    return (a > b) - (a < b);
}

static uint64_t interrupts(void) /* those of PCI functions, so far */
{
    static char line[4096];
    uint64_t total = 0;
    FILE *file = fopen("/proc/interrupts", "r");
    if (!file)
        fail("/proc/interrupts");
    while (fgets(line, sizeof line, file)) {
        char *place = strchr(line, ':'), *end;
        if (!place || !strstr(line, "PCI-MSI"))
            continue;
        for (place++;; place = end) { /* one number for each processor */
            uint64_t count = strtoull(place, &end, 10);
            if (end == place)
                break;
            total += count;
        }
    }
    fclose(file);
    return total;
}

static void say(uint64_t total, uint64_t elapsed, const uint32_t *all, uint64_t before)
{
    printf("{\"requests\": %llu, \"nanoseconds\": %llu, \"p50\": %u, \"p99\": %u, \"greatest\": %u, "
           "\"interrupts\": %llu}\n",
           (unsigned long long)total, (unsigned long long)elapsed, total ? all[total / 2] : 0,
           total ? all[total * 99 / 100] : 0, total ? all[total - 1] : 0,
           (unsigned long long)(interrupts() - before));
}

static void idle(int milliseconds)
{
    uint64_t before = interrupts(), began = now();
    struct timespec t = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&t, &t) && errno == EINTR)
        ;
    say(0, now() - began, NULL, before);
}

static void measure(int threads, int milliseconds)
{
    static struct load loads[MOST_THREADS];
    uint64_t before = interrupts(), began = now(), total = 0;
    deadline = began + (uint64_t)milliseconds * 1000000u;
    for (int i = 0; i < threads; i++) {
        loads[i].seed = 0x9e3779b97f4a7c15ULL * (uint64_t)(i + 1);
        loads[i].times = malloc(sizeof(uint32_t) * MOST_TIMES); /* touched as far as it is used */
        if (!loads[i].times || pthread_create(&loads[i].thread, NULL, work, &loads[i]))
            fail("thread");
    }
    for (int i = 0; i < threads; i++) {
        pthread_join(loads[i].thread, NULL);
        total += loads[i].done;
    }
    uint64_t elapsed = now() - began;
    uint32_t *all = malloc(sizeof(uint32_t) * (total + 1));
    if (!all || !total)
        fail("no request was done");
    uint64_t place = 0;
    for (int i = 0; i < threads; i++) {
        memcpy(all + place, loads[i].times, sizeof(uint32_t) * loads[i].done);
        place += loads[i].done;
    }
    qsort(all, total, sizeof(uint32_t), by_size);
    say(total, elapsed, all, before);
}

static void look_at_written(void)
{
    uint64_t *buffer = buffer_of(AT_ONCE * BLOCK), marked = 0, wrong = 0;
    for (uint64_t first = 0; first < blocks; first += AT_ONCE) {
        size_t count = blocks - first < AT_ONCE ? blocks - first : AT_ONCE;
        if (pread(disk, buffer, count * BLOCK, (off_t)(first * BLOCK)) != (ssize_t)(count * BLOCK))
            fail("read");
        for (size_t block = 0; block < count; block++) {
            const uint64_t *words = buffer + block * BLOCK / 8;
            if (words[1] != MARK)
                continue;
            marked++;
            for (size_t i = 0; i < BLOCK / 8; i += 2)
                if (words[i] != first + block || words[i + 1] != MARK) {
                    wrong++;
                    break;
                }
        }
    }
    free(buffer);
    printf("{\"marked\": %llu, \"wrong\": %llu}\n", (unsigned long long)marked, (unsigned long long)wrong);
}

int main(int count, char **words)
{
    if (count != 5) {
        fprintf(stderr, "usage: disk_load DEVICE idle|read|write|written THREADS MILLISECONDS\n");
        return 2;
    }
    int threads = atoi(words[3]), milliseconds = atoi(words[4]);
    uint64_t bytes;
    if (threads < 1 || threads > MOST_THREADS || milliseconds < 0)
        return 2;
    writing = !strcmp(words[2], "write");
    disk = open(words[1], (writing ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes))
        fail(words[1]);
    blocks = bytes / BLOCK;
    if (!strcmp(words[2], "written"))
        look_at_written();
    else if (!strcmp(words[2], "idle"))
        idle(milliseconds);
    else
        measure(threads, milliseconds);
    return 0;
}
