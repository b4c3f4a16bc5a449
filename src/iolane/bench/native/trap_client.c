/* Measures the accesses of an established session.
 *
 * Usage: trap_client SOCKET REGION OFFSET SIZE KIND COUNT
 * KIND is read, write (waits for the reply) or posted (waits only for one read behind the last write).
 * Prints: COUNT WALL_NS P50_NS P99_NS. The percentiles of posted writes are those of sending them.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "protocol.h"

static int server;

static int64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void fail(const char *what)
{
    perror(what);
    exit(1);
}

static void receive(void *into, size_t size)
{
    while (size) {
        ssize_t got = recv(server, into, size, 0);
        if (got <= 0)
            fail("recv");
        into = (char *)into + got;
        size -= got;
    }
}

static void put(const void *message, size_t size)
{
    if (send(server, message, size, MSG_NOSIGNAL) != (ssize_t)size)
        fail("send");
}

static void negotiate(void)
{
    static const char proposal[] = "{\"capabilities\":{\"max_msg_fds\":8}}";
    struct { struct header header; uint16_t major, minor; char data[sizeof proposal]; } __attribute__((packed)) request = {0};
    struct header reply;
    char rest[4096];
    request.header = (struct header){1, COMMAND_VERSION, sizeof request, 0, 0};
    memcpy(request.data, proposal, sizeof proposal);
    put(&request, sizeof request);
    receive(&reply, sizeof reply);
    if (reply.flags & FLAG_ERROR || reply.size < sizeof reply || reply.size - sizeof reply > sizeof rest)
        fail("version");
    receive(rest, reply.size - sizeof reply);
}

static void access_once(uint16_t id, uint16_t command, uint32_t flags, uint32_t region, uint64_t offset, uint32_t size)
{
    struct access request = {{id, command, ACCESS_SIZE + (command == COMMAND_WRITE ? size : 0), flags, 0}, offset, region, size, {0}};
    struct access reply;
    size_t expected = ACCESS_SIZE + (command == COMMAND_READ ? size : 0);
    memcpy(request.data, &id, sizeof id);
    put(&request, request.header.size);
    if (flags & FLAG_NO_REPLY)
        return;
    receive(&reply, expected);
    if (reply.header.id != id || reply.header.flags != FLAG_REPLY || reply.header.size != expected) {
        fprintf(stderr, "an unexpected reply\n");
        exit(1);
    }
}

static int compare(const void *left, const void *right)
{
    int64_t a = *(const int64_t *)left, b = *(const int64_t *)right;
    return (a > b) - (a < b);
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (argc != 7 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: trap_client SOCKET REGION OFFSET SIZE read|write|posted COUNT\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    uint32_t region = atoi(argv[2]), size = atoi(argv[4]);
    uint64_t offset = strtoull(argv[3], NULL, 0);
    long count = atol(argv[6]), warm = count / 10 + 1;
    int posted = !strcmp(argv[5], "posted");
    uint16_t command = strcmp(argv[5], "read") ? COMMAND_WRITE : COMMAND_READ;
    int64_t *times = malloc(count * sizeof *times), start = 0;
    if (size < 1 || size > 8 || count < 1 || !times) {
        fprintf(stderr, "SIZE is 1 to 8, COUNT at least 1\n");
        return 2;
    }
    server = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(server, (struct sockaddr *)&address, sizeof address))
        fail(argv[1]);
    negotiate();
    for (long i = -warm; i < count; i++) {
        if (i == 0) {
            access_once(0, COMMAND_READ, 0, region, offset, size); /* nothing of the warm-up is left in the socket */
            start = now();
        }
        int64_t before = now();
        access_once(i & 0xffff, command, posted ? FLAG_NO_REPLY : 0, region, offset, size);
        if (i >= 0)
            times[i] = now() - before;
    }
    if (posted)
        access_once(1, COMMAND_READ, 0, region, offset, size);
    int64_t wall = now() - start;
    qsort(times, count, sizeof *times, compare);
    printf("%ld %lld %lld %lld\n", count, (long long)wall, (long long)times[count / 2], (long long)times[count - 1 - count / 100]);
    return 0;
}
