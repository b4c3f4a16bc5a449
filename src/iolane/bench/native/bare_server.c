/* A server with nothing in it: 4 KiB of registers, the messages of a real one. What C costs here, a trap costs at least.
 *
 * Usage: bare_server SOCKET. Serves one client after another until killed.
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "protocol.h"

static uint8_t registers[4096];
static uint8_t buffer[LONGEST];

static int send_whole(int client, const void *message, size_t size)
{
    return send(client, message, size, MSG_NOSIGNAL) == (ssize_t)size ? 0 : -1;
}

static int reply_error(int client, const struct header *request)
{
    struct header reply = {request->id, request->command, sizeof reply, FLAG_REPLY | FLAG_ERROR, 22};
    return send_whole(client, &reply, sizeof reply);
}

static int handle_version(int client, const struct header *request)
{
    static const char capabilities[] = "{\"capabilities\":{}}";
    uint8_t reply[sizeof *request + 4 + sizeof capabilities] = {0};
    struct header header = {request->id, request->command, sizeof reply, FLAG_REPLY, 0};
    memcpy(reply, &header, sizeof header);
    memcpy(reply + sizeof header + 4, capabilities, sizeof capabilities);
    return send_whole(client, reply, sizeof reply);
}

static int handle_access(int client, const struct access *request)
{
    struct access reply = *request;
    size_t size = ACCESS_SIZE;
    if (request->count > sizeof reply.data || request->offset > sizeof registers - sizeof reply.data)
        return reply_error(client, &request->header);
    if (request->header.command == COMMAND_READ) {
        memcpy(reply.data, registers + request->offset, request->count);
        size += request->count;
    } else {
        memcpy(registers + request->offset, request->data, request->count);
        if (request->header.flags & FLAG_NO_REPLY)
            return 0;
    }
    reply.header.size = size;
    reply.header.flags = FLAG_REPLY;
    return send_whole(client, &reply, size);
}

static void serve(int client)
{
    size_t have = 0;
    for (;;) {
        char control[256]; /* room for descriptors, as a real server keeps it */
        struct iovec vector = {buffer + have, sizeof buffer - have};
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        ssize_t got = recvmsg(client, &message, MSG_CMSG_CLOEXEC);
        size_t at = 0;
        if (got <= 0)
            return;
        have += got;
        while (have - at >= sizeof(struct header)) {
            struct access request;
            int failed;
            memcpy(&request, buffer + at, have - at < sizeof request ? have - at : sizeof request);
            if (request.header.size < sizeof(struct header) || request.header.size > sizeof buffer)
                return;
            if (have - at < request.header.size)
                break;
            if (request.header.command == COMMAND_READ || request.header.command == COMMAND_WRITE)
                failed = handle_access(client, &request);
            else if (request.header.command == COMMAND_VERSION)
                failed = handle_version(client, &request.header);
            else
                failed = reply_error(client, &request.header);
            if (failed)
                return;
            at += request.header.size;
        }
        memmove(buffer, buffer + at, have - at);
        have -= at;
    }
}

int main(int argc, char **argv)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (argc != 2 || strlen(argv[1]) >= sizeof address.sun_path) {
        fprintf(stderr, "usage: bare_server SOCKET\n");
        return 2;
    }
    strcpy(address.sun_path, argv[1]);
    if (listener < 0 || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4)) {
        perror(argv[1]);
        return 1;
    }
    puts("ready");
    fflush(stdout);
    for (;;) {
        int client = accept(listener, NULL, NULL);
        if (client < 0)
            return 1;
        serve(client);
        close(client);
    }
}
