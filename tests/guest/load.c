/* The guest's side of a migration test.
 *
 * load disk DEVICE    writes tagged blocks and reads them back into pages that stay, until /tmp/stop appears; then
 *                     everything is compared: each page with what was read into it, each block with what was
 *                     written last.
 * load echo IP PORT   sends back what comes by TCP until the peer closes.
 * load clock          reads clocks and counts the ticks of a timer, until /tmp/stop appears: no clock may go back,
 *                     no tick may be lost or repeated.
 *
 * The number of operations is in /tmp/disk.count, /tmp/echo.count and /tmp/clock.count while they run, the verdict
 * in /tmp/disk.verdict and so on at the end. /tmp/disk.table then has the last sequence number of each block, 8
 * bytes each, for whoever compares the image with what was acknowledged.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum { BLOCK = 4096, BLOCKS = 4096, PAGES = 4096, WORDS = BLOCK / 8, COUNT_EVERY = 64 };

static uint64_t written[BLOCKS];               /* the last sequence number of each block; 0: never written */
static struct { uint32_t block; uint64_t sequence; } held[PAGES];

static uint64_t word(uint64_t block, uint64_t sequence, unsigned index)
{
    return (block << 48 | (sequence & 0xffffffff) << 16 | index) * 0x9e3779b97f4a7c15u;
}

static void fill(uint64_t *page, uint64_t block, uint64_t sequence)
{
    for (unsigned i = 0; i < WORDS; i++)
        page[i] = sequence ? word(block, sequence, i) : 0;
}

static int wrong(const uint64_t *page, uint64_t block, uint64_t sequence)
{
    for (unsigned i = 0; i < WORDS; i++)
        if (page[i] != (sequence ? word(block, sequence, i) : 0))
            return 1;
    return 0;
}

static void say(const char *path, const char *text)
{
    char fresh[64];
    snprintf(fresh, sizeof fresh, "%s.new", path);
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) < 0 || close(fd) || rename(fresh, path))
        exit(3);
}

static void count(const char *path, uint64_t number)
{
    char text[32];
    snprintf(text, sizeof text, "%llu\n", (unsigned long long)number);
    say(path, text);
}

static int keep_table(void)
{
    int fd = open("/tmp/disk.table", O_WRONLY | O_CREAT | O_TRUNC, 0644);
    return fd < 0 || write(fd, written, sizeof written) != sizeof written || close(fd);
}

static int disk(const char *device)
{
    int fd = open(device, O_RDWR | O_DIRECT);
    uint64_t *out = mmap(0, BLOCK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    char *pool = mmap(0, (size_t)PAGES * BLOCK, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    uint64_t sequence = 0, operations = 0, failed = 0, early = 0, pages = 0, blocks = 0;
    uint32_t random = 12345;
    char text[200];

    if (fd < 0 || out == MAP_FAILED || pool == MAP_FAILED)
        return 2;
    while (operations % COUNT_EVERY || access("/tmp/stop", F_OK)) {
        random = random * 1664525 + 1013904223;
        unsigned block = random >> 16 & (BLOCKS - 1);
        if (random & 0x1000) {
            fill(out, block, ++sequence);
            if (pwrite(fd, out, BLOCK, (off_t)block * BLOCK) != BLOCK)
                failed++;
            else
                written[block] = sequence;
        } else {
            unsigned page = operations % PAGES;
            if (pread(fd, pool + (size_t)page * BLOCK, BLOCK, (off_t)block * BLOCK) != BLOCK)
                failed++;
            held[page].block = block;
            held[page].sequence = written[block];
            early += wrong((void *)(pool + (size_t)page * BLOCK), block, written[block]);
        }
        if (++operations % COUNT_EVERY == 0)
            count("/tmp/disk.count", operations);
    }
    for (unsigned page = 0; page < PAGES; page++)
        pages += wrong((void *)(pool + (size_t)page * BLOCK), held[page].block, held[page].sequence);
    for (unsigned block = 0; block < BLOCKS; block++)
        if (pread(fd, out, BLOCK, (off_t)block * BLOCK) != BLOCK || wrong(out, block, written[block]))
            blocks++;
    if (fsync(fd) || keep_table())
        failed++;
    snprintf(text, sizeof text, "failed %llu, wrong when read %llu, wrong pages %llu, wrong blocks %llu\n",
             (unsigned long long)failed, (unsigned long long)early, (unsigned long long)pages,
             (unsigned long long)blocks);
    say("/tmp/disk.verdict", text);
    return failed || early || pages || blocks;
}

static int echo(const char *address, const char *port)
{
    static char data[65536];
    struct sockaddr_in peer = {.sin_family = AF_INET, .sin_port = htons(atoi(port))};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    uint64_t total = 0;
    char text[64];

    inet_pton(AF_INET, address, &peer.sin_addr);
    if (connect(fd, (struct sockaddr *)&peer, sizeof peer))
        return 2;
    for (;;) {
        ssize_t got = read(fd, data, sizeof data);
        if (got <= 0)
            break;
        for (ssize_t sent = 0; sent < got;) {
            ssize_t done = write(fd, data + sent, got - sent);
            if (done <= 0)
                return 2;
            sent += done;
        }
        count("/tmp/echo.count", total += got);
    }
    snprintf(text, sizeof text, "%llu bytes\n", (unsigned long long)total);
    say("/tmp/echo.verdict", text);
    return 0;
}

enum { PERIOD = 10 * 1000 * 1000 };

static uint64_t now(clockid_t clock)
{
    struct timespec time;
    clock_gettime(clock, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

static int clocks(void)
{
    static const clockid_t which[] = {CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME};
    struct itimerspec every = {.it_interval.tv_nsec = PERIOD, .it_value.tv_nsec = PERIOD};
    uint64_t before[3] = {0}, ticks = 0, expired, back = 0, count_at = 0, longest = 0, last = 0;
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    uint64_t start = now(CLOCK_MONOTONIC);
    char text[160];

    if (timer < 0 || timerfd_settime(timer, 0, &every, 0))
        return 2;
    while (access("/tmp/stop", F_OK)) {
        if (read(timer, &expired, sizeof expired) != sizeof expired)
            return 2;
        ticks += expired;
        for (unsigned i = 0; i < 3; i++) {
            uint64_t read = now(which[i]);
            back += read < before[i];
            before[i] = read;
        }
        if (last && before[0] - last > longest)
            longest = before[0] - last;
        last = before[0];
        if (ticks >= count_at) {
            count("/tmp/clock.count", ticks);
            count_at = ticks + 10;
        }
    }
    uint64_t due = (before[0] - start) / PERIOD;
    uint64_t off = ticks > due ? ticks - due : due - ticks;
    snprintf(text, sizeof text, "went back %llu, ticks off by %s, longest gap %llu ms\n",
             (unsigned long long)back, off <= 1 ? "none" : "some", (unsigned long long)longest / 1000000);
    say("/tmp/clock.verdict", text);
    return back || off > 1;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "disk"))
        return disk(argv[2]);
    if (argc == 4 && !strcmp(argv[1], "echo"))
        return echo(argv[2], argv[3]);
    if (argc == 2 && !strcmp(argv[1], "clock"))
        return clocks();
    return 2;
}
