/* The SIGBUS guard: one process-wide handler and a lock-free table of the ranges it may repair.
 *
 * Writers hold Python's GIL. The handler only reads the table, with atomics, and calls mmap: it may run in any
 * thread, at any instruction. A range stays in the table for as long as anything may touch it.
 */
#ifndef IOLANE_GUARD_H
#define IOLANE_GUARD_H

#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#define GUARD_CHUNK 256
#define GUARD_HUGETLBFS_MAGIC 0x958458f6

struct guard_range {
    _Atomic uintptr_t start; /* 0: this place is free */
    _Atomic uintptr_t end;
    _Atomic size_t page;
    _Atomic int protection;
    _Atomic int broken;
};

struct guard_chunk {
    struct guard_range ranges[GUARD_CHUNK];
    struct guard_chunk *_Atomic next;
};

static struct guard_chunk guard_first;
static struct sigaction *_Atomic guard_previous; /* published whole, never freed: a handler may be reading it */
static _Atomic long guard_chaining;              /* thread that is in the previous handler, or 0 */

static struct guard_range *guard_find(uintptr_t address)
{
    for (struct guard_chunk *chunk = &guard_first; chunk; chunk = atomic_load(&chunk->next))
        for (int i = 0; i < GUARD_CHUNK; i++) {
            struct guard_range *range = &chunk->ranges[i];
            uintptr_t start = atomic_load(&range->start);
            if (start && address >= start && address < atomic_load(&range->end) &&
                atomic_load(&range->start) == start) /* not taken for another range in between */
                return range;
        }
    return NULL;
}

/* Puts anonymous zero pages from the faulting page to the end of the range. The pages behind a page that lies beyond
 * the end of the file lie beyond it too, and one area instead of one per page keeps a hostile reader from using up the
 * kernel's limit of areas (vm.max_map_count). */
static int guard_repair(struct guard_range *range, uintptr_t address)
{
    uintptr_t from = address & ~((uintptr_t)atomic_load(&range->page) - 1);
    uintptr_t end = atomic_load(&range->end);
    atomic_store(&range->broken, 1);
    return mmap((void *)from, end - from, atomic_load(&range->protection),
                MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0) != MAP_FAILED;
}

static void guard_die(void)
{
    struct sigaction fallback;
    memset(&fallback, 0, sizeof fallback);
    fallback.sa_handler = SIG_DFL;
    sigaction(SIGBUS, &fallback, NULL);
}

/* A SIGBUS that is not ours goes to whoever had the signal before. */
static void guard_chain(int signal_number, siginfo_t *info, void *context)
{
    struct sigaction *previous = atomic_load(&guard_previous);
    int sent = info->si_code <= 0; /* kill() or sigqueue(), not a fault */
    long self = syscall(SYS_gettid), nobody = 0;

    if (atomic_load(&guard_chaining) == self || !previous ||
        (!(previous->sa_flags & SA_SIGINFO) && previous->sa_handler == SIG_DFL)) {
        /* The default action, or a previous handler that handed the signal back to us: a fault is met again on
         * return, a sent signal is sent again, and the process ends by it. */
        guard_die();
        if (sent)
            raise(signal_number);
        return;
    }
    if (!(previous->sa_flags & SA_SIGINFO) && previous->sa_handler == SIG_IGN) {
        if (!sent)
            guard_die(); /* the kernel does not let a fault be ignored either */
        return;
    }
    int marked = atomic_compare_exchange_strong(&guard_chaining, &nobody, self);
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    if (previous->sa_flags & SA_NODEFER) /* faulthandler: it raises the signal again and must not come back here */
        pthread_sigmask(SIG_UNBLOCK, &bus, NULL);
    if (previous->sa_flags & SA_SIGINFO)
        previous->sa_sigaction(signal_number, info, context);
    else
        previous->sa_handler(signal_number);
    pthread_sigmask(SIG_BLOCK, &bus, NULL);
    if (marked)
        atomic_store(&guard_chaining, 0);
}

static void guard_handler(int signal_number, siginfo_t *info, void *context)
{
    int saved = errno;
    struct guard_range *range = NULL;
    if (info->si_code == BUS_ADRERR)
        range = guard_find((uintptr_t)info->si_addr);
    if (!range || !guard_repair(range, (uintptr_t)info->si_addr))
        guard_chain(signal_number, info, context);
    errno = saved;
}

/* Makes us the first to get SIGBUS; again where someone (faulthandler, say) put itself before us. 0 or -errno. */
static int guard_install(void)
{
    struct sigaction now, ours;
    if (sigaction(SIGBUS, NULL, &now))
        return -errno;
    if ((now.sa_flags & SA_SIGINFO) && now.sa_sigaction == guard_handler)
        return 0;
    struct sigaction *previous = malloc(sizeof *previous);
    if (!previous)
        return -ENOMEM;
    *previous = now;
    atomic_store(&guard_previous, previous);
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = guard_handler;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, NULL) ? -errno : 0;
}

/* NULL when there is no memory for more. Under the GIL. */
static struct guard_range *guard_add(void *start, size_t length, size_t page, int protection)
{
    struct guard_chunk *chunk = &guard_first;
    for (;;) {
        for (int i = 0; i < GUARD_CHUNK; i++) {
            struct guard_range *range = &chunk->ranges[i];
            if (atomic_load(&range->start))
                continue;
            atomic_store(&range->end, (uintptr_t)start + length);
            atomic_store(&range->page, page);
            atomic_store(&range->protection, protection);
            atomic_store(&range->broken, 0);
            atomic_store(&range->start, (uintptr_t)start); /* last: from here on the handler sees it */
            return range;
        }
        struct guard_chunk *next = atomic_load(&chunk->next);
        if (!next) {
            next = calloc(1, sizeof *next);
            if (!next)
                return NULL;
            atomic_store(&chunk->next, next);
        }
        chunk = next;
    }
}

/* Before the munmap, so that the handler never touches what another mapping may have taken. Under the GIL. */
static void guard_remove(struct guard_range *range)
{
    atomic_store(&range->start, 0);
}

static const void *guard_broken_flag(struct guard_range *range)
{
    return &range->broken;
}

static int guard_is_broken(struct guard_range *range)
{
    return atomic_load(&range->broken);
}

/* What a mapping of this file is made of: the page size of hugetlbfs files is their own. */
static size_t guard_page_size(int fd)
{
    struct statfs filesystem;
    if (fstatfs(fd, &filesystem) == 0 && (unsigned long)filesystem.f_type == GUARD_HUGETLBFS_MAGIC)
        return (size_t)filesystem.f_bsize;
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void guard_touch(const volatile unsigned char *address)
{
    (void)*address;
}

#endif
