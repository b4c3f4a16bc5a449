/* Changes a guest's memory at a steady rate, and reads its disk beside that.
 *
 * usage: memory_load MIB RATE DEVICE READS COUNT
 *
 * Fills MIB MiB with what does not compress, then every 10 ms changes as many pages as make RATE MiB a second, in
 * turns through all of them, and reads READS blocks of 4 KiB a second of DEVICE past the page cache. COUNT is a
 * file that holds how many rounds were done, for whoever waits for it to be at work.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#include <linux/fs.h>

enum { PAGE = 4096, ROUNDS = 100 /* a second */ };

static void fail(const char *what)
{
    fprintf(stderr, "memory_load: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t next(uint64_t *seed) /* xorshift64 */
{
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    return *seed;
}

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    uint64_t seed = 88172645463325252ULL, size = strtoull(argv[1], 0, 10) << 20, blocks = 0;
    uint64_t pages = size / PAGE, each = (strtoull(argv[2], 0, 10) << 20) / PAGE / ROUNDS;
    uint64_t reads = strtoull(argv[4], 0, 10), owed = 0, place = 0;
    unsigned char *memory = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    madvise(memory, size, MADV_HUGEPAGE); /* else the faults of filling it take longest */
    void *block = aligned_alloc(PAGE, PAGE);
    if (memory == MAP_FAILED || !block)
        fail("memory");
    int disk = open(argv[3], O_RDONLY | O_DIRECT), count = open(argv[5], O_WRONLY | O_CREAT, 0644);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &blocks) || count < 0)
        fail("open");
    blocks /= PAGE;
    for (uint64_t word = 0; word < size / 8; word++)
        ((uint64_t *)memory)[word] = next(&seed);
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    for (uint64_t round = 1;; round++) {
        for (uint64_t page = 0; page < each; page++) {
            *(uint64_t *)(memory + place * PAGE) = round;
            place = (place + 1) % pages;
        }
        for (owed += reads; owed >= ROUNDS; owed -= ROUNDS)
            if (pread(disk, block, PAGE, (off_t)(next(&seed) % blocks * PAGE)) != PAGE)
                fail("read");
        char text[32];
        int length = snprintf(text, sizeof text, "%llu\n", (unsigned long long)round);
        if (pwrite(count, text, (size_t)length, 0) != length)
            fail("count");
        at.tv_nsec += 1000000000 / ROUNDS;
        if (at.tv_nsec >= 1000000000) {
            at.tv_nsec -= 1000000000;
            at.tv_sec++;
        }
        struct timespec is;
        clock_gettime(CLOCK_MONOTONIC, &is);
        if (is.tv_sec > at.tv_sec + 1)
            at = is; /* it was held up: what was missed is not made up for */
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
    }
}
