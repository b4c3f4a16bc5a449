/*
 * iolane's guest agent. As /init of an initramfs it first sets the guest up (file systems, modules, a shell on
 * the console if the command line says so); then it serves requests on its own serial port, one at a time:
 * run a command, receive a file, send a file, power off. Its peer is agent.py, which documents the frames.
 * Static, no configuration, nothing allocated after start.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

enum { RUN = 1, DATA, PUSH, PULL, POWER, KILL };
enum { HELLO = 16, STDOUT, STDERR, EXIT, CREDIT, RESULT, CONTENT };
enum { MAGIC = 0xA9, VERSION = 1, INPUT = 16384, OUTPUT = 4096, MERGE = 1, TIMED_OUT = 1 };

struct header {
    uint8_t magic, type;
    uint16_t sequence;
    uint32_t length;
} __attribute__((packed));

static const char marker[] = "\n#iolane-agent#\n";
static char *const environment[] = {
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "TERM=linux", "USER=root", NULL};

static int tty = -1, signals = -1;
static uint16_t sequence;
static uint32_t crc_table[256];

static char pending[INPUT]; /* bytes for the command's standard input that its pipe has not taken */
static size_t pending_length;
static int pending_end;

static struct {
    pid_t pid;
    int in, out, err, status, exited, timed_out;
    int64_t deadline; /* ms, 0: none */
} command = {.in = -1, .out = -1, .err = -1};

static struct {
    int active, fd, error;
    uint32_t crc;
    uint64_t size;
} push = {.fd = -1};

static pid_t shell_pid;

static void say(const char *text) { if (write(2, text, strlen(text)) < 0) { } }

static int64_t now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static void make_crc_table(void) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t c = i;
        for (int k = 0; k < 8; k++) c = c & 1 ? 0xEDB88320u ^ (c >> 1) : c >> 1;
        crc_table[i] = c;
    }
}

static uint32_t crc32_of(uint32_t crc, const uint8_t *data, size_t n) {
    crc = ~crc;
    while (n--) crc = crc_table[(crc ^ *data++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

static void write_all(int fd, const void *data, size_t n) {
    const char *at = data;
    while (n) {
        ssize_t done = write(fd, at, n);
        if (done > 0) { at += done; n -= (size_t)done; }
        else if (done < 0 && errno == EAGAIN) { struct pollfd p = {fd, POLLOUT, 0}; poll(&p, 1, -1); }
        else if (done < 0 && errno != EINTR) return;
    }
}

static void send_frame(uint8_t type, const void *data, size_t n) {
    struct header h = {MAGIC, type, sequence++, (uint32_t)n};
    write_all(tty, &h, sizeof h);
    write_all(tty, data, n);
}

static void send_credit(uint32_t n) { if (n) send_frame(CREDIT, &n, sizeof n); }

static void send_result(int error, uint32_t crc, uint64_t size) {
    struct { int32_t error; uint32_t crc; uint64_t size; } __attribute__((packed)) r = {error, crc, size};
    send_frame(RESULT, &r, sizeof r);
}

static void close_fd(int *fd) { if (*fd >= 0) close(*fd); *fd = -1; }

/* --- run a command ------------------------------------------------------------------------------------- */

static void child_exec(const char *text, int in, int out, int err) {
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    signal(SIGPIPE, SIG_DFL);
    setsid();
    dup2(in, 0); dup2(out, 1); dup2(err, 2);
    if (chdir("/root") < 0) { }
    execle("/bin/sh", "sh", "-c", text, (char *)NULL, environment);
    say("iolane-agent: /bin/sh cannot be run\n");
    _exit(127);
}

static void start_command(char *data, size_t n) {
    uint32_t timeout, flags;
    memcpy(&timeout, data, 4); memcpy(&flags, data + 4, 4);
    data[n] = 0;
    int in[2], out[2], err[2] = {-1, -1};
    if (pipe2(in, O_CLOEXEC) || pipe2(out, O_CLOEXEC) || (!(flags & MERGE) && pipe2(err, O_CLOEXEC))) {
        int32_t failure[2] = {126, 0};
        send_frame(EXIT, failure, sizeof failure);
        return;
    }
    command.exited = command.timed_out = pending_end = 0;
    pending_length = 0;
    command.deadline = timeout ? now_ms() + timeout : 0;
    command.pid = fork();
    if (command.pid == 0) child_exec(data + 8, in[0], out[1], flags & MERGE ? out[1] : err[1]);
    close(in[0]); close(out[1]); close_fd(&err[1]);
    command.in = in[1]; command.out = out[0]; command.err = err[0];
    fcntl(command.in, F_SETFL, O_NONBLOCK);
    fcntl(command.out, F_SETFL, O_NONBLOCK);
    if (command.err >= 0) fcntl(command.err, F_SETFL, O_NONBLOCK);
    if (command.pid < 0) { command.exited = 1; command.status = 126; }
}

/* One piece of output; 0 when there is no more for now. */
static int forward(int *fd, uint8_t type) {
    static char buffer[OUTPUT];
    ssize_t n = read(*fd, buffer, sizeof buffer);
    if (n > 0) { send_frame(type, buffer, (size_t)n); return 1; }
    if (n == 0 || (errno != EAGAIN && errno != EINTR)) close_fd(fd);
    return 0;
}

static void feed(void) {
    uint32_t taken = 0;
    if (pending_length) {
        ssize_t n = command.in < 0 ? (ssize_t)pending_length : write(command.in, pending, pending_length);
        if (n < 0 && errno != EAGAIN && errno != EINTR) { close_fd(&command.in); n = (ssize_t)pending_length; }
        if (n > 0) {
            taken = (uint32_t)n;
            memmove(pending, pending + n, pending_length - (size_t)n);
            pending_length -= (size_t)n;
        }
    }
    if (pending_end && !pending_length) close_fd(&command.in);
    send_credit(taken);
}

/* What the command wrote is in its pipes (64 KiB at most); a child it left behind may go on writing for ever. */
static void finish_command(void) {
    for (int i = 0; i < 64 && command.out >= 0 && forward(&command.out, STDOUT); i++) { }
    for (int i = 0; i < 64 && command.err >= 0 && forward(&command.err, STDERR); i++) { }
    close_fd(&command.in); close_fd(&command.out); close_fd(&command.err);
    int32_t result[2] = {command.status, command.timed_out ? TIMED_OUT : 0};
    command.pid = 0;
    send_frame(EXIT, result, sizeof result);
}

/* --- files ---------------------------------------------------------------------------------------------- */

static void make_parents(char *path) {
    for (char *at = path + 1; *at; at++)
        if (*at == '/') { *at = 0; mkdir(path, 0755); *at = '/'; }
}

static void start_push(char *data, size_t n) {
    uint32_t mode;
    memcpy(&mode, data, 4);
    data[n] = 0;
    make_parents(data + 4);
    push.active = 1; push.crc = 0; push.size = 0; push.error = 0;
    push.fd = open(data + 4, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (push.fd < 0) push.error = errno;
    else if (fchmod(push.fd, mode & 07777) < 0 && errno != EPERM) push.error = errno;
}

static void push_data(const char *data, size_t n) {
    if (n == 0) {
        if (push.fd >= 0 && close(push.fd) < 0 && !push.error) push.error = errno;
        push.fd = -1; push.active = 0;
        send_result(push.error, push.crc, push.size);
        return;
    }
    for (size_t at = 0; at < n && !push.error;) {
        ssize_t done = write(push.fd, data + at, n - at);
        if (done > 0) at += (size_t)done;
        else if (errno != EINTR) push.error = errno;
    }
    push.crc = crc32_of(push.crc, (const uint8_t *)data, n);
    push.size += n;
    send_credit((uint32_t)n);
}

static void pull(char *data, size_t n) {
    static char buffer[OUTPUT];
    uint32_t crc = 0;
    uint64_t size = 0;
    ssize_t got = 0;
    data[n] = 0;
    int fd = open(data, O_RDONLY | O_CLOEXEC), error = fd < 0 ? errno : 0;
    while (fd >= 0 && (got = read(fd, buffer, sizeof buffer)) > 0) {
        crc = crc32_of(crc, (const uint8_t *)buffer, (size_t)got);
        size += (uint64_t)got;
        send_frame(CONTENT, buffer, (size_t)got);
    }
    if (got < 0) error = errno;
    if (fd >= 0) close(fd);
    send_result(error, crc, size);
}

/* --- requests ------------------------------------------------------------------------------------------- */

static void power(int how) {
    sync();
    reboot(how ? RB_AUTOBOOT : RB_POWER_OFF);
}

static void take_data(const char *data, size_t n) {
    if (push.active) { push_data(data, n); return; }
    if (command.pid <= 0) { send_credit((uint32_t)n); return; }
    if (n == 0) pending_end = 1;
    else if (pending_length + n <= sizeof pending) { memcpy(pending + pending_length, data, n); pending_length += n; }
    feed();
}

static void handle(uint8_t type, char *data, size_t n) {
    int idle = command.pid == 0 && !push.active;
    if (type == DATA) take_data(data, n);
    else if (type == KILL) { if (command.pid > 0) kill(-command.pid, SIGKILL); }
    else if (type == RUN && idle && n >= 8) start_command(data, n);
    else if (type == PUSH && idle && n > 4) start_push(data, n);
    else if (type == PULL && idle && n > 0) pull(data, n);
    else if (type == POWER && n == 1) power(data[0]);
    else send_result(EBUSY, 0, 0);
}

static void read_requests(void) {
    static char buffer[INPUT + sizeof(struct header) + 1];
    static size_t have;
    ssize_t n = read(tty, buffer + have, sizeof buffer - 1 - have);
    if (n <= 0) return;
    have += (size_t)n;
    size_t at = 0;
    while (have - at >= sizeof(struct header)) {
        struct header h;
        memcpy(&h, buffer + at, sizeof h);
        if (h.magic != MAGIC || h.length > INPUT) { at++; continue; } /* out of step: look for the next frame */
        if (have - at < sizeof h + h.length) break;
        char *data = buffer + at + sizeof h, after = data[h.length];
        handle(h.type, data, h.length); /* may end its data with a NUL */
        data[h.length] = after;
        at += sizeof h + h.length;
    }
    memmove(buffer, buffer + at, have - at);
    have -= at;
}

/* --- set-up --------------------------------------------------------------------------------------------- */

static void start_shell(void) {
    shell_pid = fork();
    if (shell_pid) return;
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    int fd = open("/dev/ttyS0", O_RDWR);
    if (fd < 0) _exit(1);
    ioctl(fd, TIOCSCTTY, 0);
    dup2(fd, 0); dup2(fd, 1); dup2(fd, 2);
    if (chdir("/root") < 0) { }
    execle("/bin/sh", "-sh", (char *)NULL, environment);
    _exit(127);
}

static void reap(void) {
    struct signalfd_siginfo info;
    int status;
    pid_t pid;
    while (read(signals, &info, sizeof info) > 0) { }
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        if (pid == shell_pid) start_shell();
        if (pid != command.pid) continue;
        command.exited = 1;
        command.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    }
}

static void load_modules(void) {
    static char list[16384];
    int fd = open("/lib/modules/order", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return;
    ssize_t n = read(fd, list, sizeof list - 1);
    close(fd);
    list[n > 0 ? n : 0] = 0;
    for (char *name = list, *end; (end = strchr(name, '\n')); name = end + 1) {
        *end = 0;
        int module = open(name, O_RDONLY | O_CLOEXEC);
        if (module < 0 || (syscall(SYS_finit_module, module, "", 0) < 0 && errno != EEXIST)) {
            say("iolane-agent: module "); say(name); say(": "); say(strerror(errno)); say("\n");
        }
        close(module);
    }
}

static int word_in_file(const char *path, const char *word) {
    static char text[8192];
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? 0 : read(fd, text, sizeof text - 1);
    if (fd >= 0) close(fd);
    text[n > 0 ? n : 0] = 0;
    return strstr(text, word) != NULL;
}

static void run_and_wait(const char *program) {
    if (access(program, X_OK)) return;
    pid_t pid = fork();
    if (pid == 0) { execle(program, program, (char *)NULL, environment); _exit(127); }
    waitpid(pid, NULL, 0);
}

/* The set-up script may have mounted another root: it becomes the root of everything from here on. Moved and not
 * merely entered: a process that looks chrooted may not make user namespaces. */
static void switch_root(const char *path) {
    struct stat here, root;
    if (stat(path, &root) || stat("/", &here) || root.st_dev == here.st_dev) return;
    if (chdir(path) || mount(".", "/", NULL, MS_MOVE, NULL) || chroot(".") || chdir("/")) {
        say("iolane-agent: "); say(path); say(": "); say(strerror(errno)); say("\n");
    }
}

static void set_up(void) {
    mkdir("/proc", 0755); mkdir("/sys", 0755); mkdir("/dev", 0755); mkdir("/tmp", 01777); mkdir("/root", 0700);
    mkdir("/run", 0755); mkdir("/mnt", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("sysfs", "/sys", "sysfs", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/console", O_RDWR | O_NOCTTY);
    if (console >= 0) { dup2(console, 0); dup2(console, 1); dup2(console, 2); if (console > 2) close(console); }
    mkdir("/dev/pts", 0755);
    mount("devpts", "/dev/pts", "devpts", 0, NULL);
    load_modules();
    run_and_wait("/iolane/setup");
    switch_root("/iolane/root");
    if (word_in_file("/proc/cmdline", "iolane.shell")) start_shell();
}

static void open_port(const char *path) {
    struct termios raw;
    tty = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (tty < 0) { say("iolane-agent: no serial port for the agent\n"); for (;;) pause(); }
    tcgetattr(tty, &raw);
    cfmakeraw(&raw);
    cfsetspeed(&raw, B115200);
    raw.c_cflag |= CLOCAL | CREAD;
    raw.c_cc[VMIN] = 1; raw.c_cc[VTIME] = 0;
    tcsetattr(tty, TCSANOW, &raw);
    fcntl(tty, F_SETFL, O_NONBLOCK);
}

static void serve(void) {
    struct pollfd p[5] = {
        {tty, POLLIN, 0}, {signals, POLLIN, 0}, {command.out, POLLIN, 0}, {command.err, POLLIN, 0},
        {pending_length ? command.in : -1, POLLOUT, 0}};
    int64_t left = command.pid > 0 && command.deadline ? command.deadline - now_ms() : -1;
    if (command.pid > 0 && command.deadline && left <= 0) {
        command.timed_out = 1;
        command.deadline = 0;
        kill(-command.pid, SIGKILL);
        left = -1;
    }
    poll(p, 5, left > 0x7fffffff ? 0x7fffffff : (int)left);
    if (p[1].revents) reap();
    if (p[0].revents) read_requests();
    if (p[2].revents && command.out >= 0) forward(&command.out, STDOUT);
    if (p[3].revents && command.err >= 0) forward(&command.err, STDERR);
    if (p[4].revents) feed();
    if (command.pid != 0 && command.exited) finish_command();
}

int main(int argc, char **argv) {
    sigset_t child;
    struct utsname name;
    char hello[4 + sizeof name.release] = {VERSION};
    make_crc_table();
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(&child);
    sigaddset(&child, SIGCHLD);
    if (getpid() == 1) set_up();
    sigprocmask(SIG_BLOCK, &child, NULL);
    signals = signalfd(-1, &child, SFD_NONBLOCK | SFD_CLOEXEC);
    open_port(argc > 1 && argv[1][0] == '/' ? argv[1] : "/dev/ttyS1");
    uname(&name);
    strcpy(hello + 4, name.release);
    write_all(tty, marker, sizeof marker - 1);
    send_frame(HELLO, hello, 4 + strlen(name.release));
    for (;;) serve();
}
