// A TCP proxy on epoll(7) of which each start takes over from the one before: no client is refused, and never do two
// of them accept. Each connection is copied both ways to one backend, until both have ended; an end of either direction
// (FIN) is passed on.
//
//     cc -O2 proxy.c -o proxy $(pkg-config --cflags --libs bindonce)
//     bindonce serve &
//     python3 -m http.server 9000 --bind 127.0.0.1 &
//     ./proxy web=127.0.0.1:8080 127.0.0.1:9000 &
//     curl http://127.0.0.1:8080/
//     ./proxy web=127.0.0.1:8080 127.0.0.1:9000     # takes over from the first, which ends when its clients have

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <bindonce.h>
#include <errno.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    ROOM = 16384, // bytes of one direction that were read and not written yet
    PAUSE = 100,  // ms without accepting, after the process has reached its limit of descriptors
    DRAIN = 10,   // seconds for what is connected, once a newer generation accepts
};

struct pair;

// One end of a proxied connection, and what it has sent that the other has not taken yet.
struct end {
    struct pair *pair;
    struct end *other;
    int fd;
    uint32_t events;    // what epoll watches it for
    bool connecting;    // to the backend
    bool ended, passed; // it sends no more (FIN); the other end was told
    size_t start, length;
    char bytes[ROOM];
};

struct pair {
    struct end client, backend;
    struct pair *next, *previous; // of all that are connected
    bool gone;                    // closed; freed after the events of this turn
};

static int epoll_fd;
static struct sockaddr_in backend;
static struct pair *pairs, *closed;

static void fail(const char *what) {
    fprintf(stderr, "proxy: %s: %s\n", what, bindonce_error());
    if (bindonce_hint()) fprintf(stderr, "hint: %s\n", bindonce_hint());
    exit(1);
}

static bool watch(int fd, uint32_t events, void *data) {
    struct epoll_event event = {.events = events, .data.ptr = data};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

// Ends both. With a reset where one was cut, so that the other does not take what it has for all there is.
static void leave(struct pair *pair, bool cut) {
    if (pair->gone) return;
    struct linger reset = {.l_onoff = 1, .l_linger = 0};
    for (int i = 0; i < 2; i++) {
        int fd = i ? pair->backend.fd : pair->client.fd;
        if (cut) setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
        close(fd);
    }
    if (pair->next) pair->next->previous = pair->previous;
    if (pair->previous) pair->previous->next = pair->next;
    else pairs = pair->next;
    pair->gone = true;
    pair->next = closed;
    closed = pair;
}

static void free_closed(void) {
    while (closed) {
        struct pair *pair = closed;
        closed = pair->next;
        free(pair);
    }
}

// What this end can do next: read while there is room, write what the other has sent.
static bool rewatch(struct end *end) {
    uint32_t events = 0;
    if (end->connecting) {
        events = EPOLLOUT;
    } else {
        if (!end->ended && end->length < ROOM) events |= EPOLLIN;
        if (end->other->length > 0) events |= EPOLLOUT;
    }
    if (events == end->events) return true;
    // Nothing to wait for is no watch at all: epoll would tell of a hang-up again and again.
    int change = events == 0 ? EPOLL_CTL_DEL : end->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
    struct epoll_event event = {.events = events, .data.ptr = end};
    end->events = events;
    return epoll_ctl(epoll_fd, change, end->fd, &event) == 0;
}

// Copies what there is from one end to the other. False if the connection is cut.
static bool copy(struct end *from) {
    struct end *to = from->other;
    while (!from->ended && !from->connecting && from->length < ROOM) {
        if (from->start > 0) {
            memmove(from->bytes, from->bytes + from->start, from->length);
            from->start = 0;
        }
        ssize_t got = recv(from->fd, from->bytes + from->length, ROOM - from->length, 0);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0 && errno == EAGAIN) break;
        if (got < 0) return false;
        if (got == 0) from->ended = true;
        from->length += (size_t)got;
    }
    while (from->length > 0 && !to->connecting) {
        ssize_t sent = send(to->fd, from->bytes + from->start, from->length, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR) continue;
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) return false;
        from->start += (size_t)sent;
        from->length -= (size_t)sent;
    }
    if (from->ended && from->length == 0 && !from->passed && !to->connecting) {
        from->passed = true;
        // A connection's socket, which nobody shares.
        return shutdown(to->fd, SHUT_WR) == 0 || errno == ENOTCONN;
    }
    return true;
}

static void serve(struct end *end, uint32_t events) {
    struct pair *pair = end->pair;
    if (pair->gone) return;
    if (end->connecting && events & (EPOLLOUT | EPOLLERR | EPOLLHUP)) {
        int error = 0;
        socklen_t size = sizeof error;
        if (getsockopt(end->fd, SOL_SOCKET, SO_ERROR, &error, &size) < 0 || error != 0) {
            leave(pair, true);
            return;
        }
        end->connecting = false;
    }
    if (!copy(&pair->client) || !copy(&pair->backend)) {
        leave(pair, true);
    } else if (pair->client.passed && pair->backend.passed) {
        leave(pair, false);
    } else if (events & EPOLLERR || !rewatch(&pair->client) || !rewatch(&pair->backend)) {
        leave(pair, true);
    }
}

// Joins a client to a connection to the backend, which begins here.
static void begin(int client, int fd) {
    struct pair *pair = calloc(1, sizeof *pair);
    if (!pair) {
        close(client);
        close(fd);
        return;
    }
    pair->client = (struct end){.pair = pair, .other = &pair->backend, .fd = client, .events = EPOLLIN};
    pair->backend = (struct end){.pair = pair, .other = &pair->client, .fd = fd, .events = EPOLLOUT, .connecting = true};
    pair->next = pairs;
    if (pairs) pairs->previous = pair;
    pairs = pair;
    bool begun = connect(fd, (struct sockaddr *)&backend, sizeof backend) == 0 || errno == EINPROGRESS;
    if (!begun || !watch(client, EPOLLIN, &pair->client) || !watch(fd, EPOLLOUT, &pair->backend)) leave(pair, true);
}

// Accepts all that wait. False, with errno, where only time helps: a full table of descriptors, say. The socket for the
// backend comes first, so that no client is accepted that cannot be served; *spare is one that no client has come for.
static bool accept_all(int listener, int *spare) {
    for (;;) {
        if (*spare < 0) *spare = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (*spare < 0) return false;
        int client = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (client >= 0) {
            begin(client, *spare);
            *spare = -1;
        } else if (errno == EAGAIN) {
            return true;
        } else if (errno != ECONNABORTED && errno != EPROTO && errno != EINTR) { // those are one client's affair
            return false;
        }
    }
}

// An IPv4 address and port, as in 127.0.0.1:9000.
static bool parse(const char *text, struct sockaddr_in *address) {
    char host[INET_ADDRSTRLEN];
    int port, read = 0;
    *address = (struct sockaddr_in){.sin_family = AF_INET};
    if (sscanf(text, "%15[0-9.]:%d%n", host, &port, &read) != 2 || text[read] || port < 1 || port > 65535) return false;
    address->sin_port = htons((uint16_t)port);
    return inet_pton(AF_INET, host, &address->sin_addr) == 1;
}

int main(int argc, char **argv) {
    if (argc != 3 || !parse(argv[2], &backend)) {
        fprintf(stderr, "usage: proxy [NAME=]ADDRESS BACKEND:PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bindonce_generation *generation;
    if (bindonce_join(NULL, "example", &generation) < 0) fail("join");
    unsigned long long number = bindonce_number(generation);
    int listener = -1, spare = -1;
    if (bindonce_claim(generation, argv[1], &listener) < 0) fail("claim");
    if (!watch(bindonce_fd(generation), EPOLLIN, generation)) return 1;
    // Returns at once; BINDONCE_SERVE comes when the one before accepts no more.
    int ready = bindonce_ready(generation, 0);
    if (ready < 0 && ready != BINDONCE_TIMED_OUT) fail("ready");
    bool serves = ready == 0, told = false, accepts = false, told_pause = false;
    time_t end = 0;
    for (;;) {
        if (serves && !accepts && watch(listener, EPOLLIN, &listener)) {
            accepts = true;
            if (!told) {
                struct sockaddr_in bound = {0};
                socklen_t size = sizeof bound;
                getsockname(listener, (struct sockaddr *)&bound, &size);
                char host[INET_ADDRSTRLEN] = "?";
                inet_ntop(AF_INET, &bound.sin_addr, host, sizeof host);
                printf("generation %llu accepts on %s:%d\n", number, host, ntohs(bound.sin_port));
                fflush(stdout);
                told = true;
            }
        }
        if (end && (!pairs || time(NULL) >= end)) break;
        struct epoll_event events[64];
        int count = epoll_wait(epoll_fd, events, 64, end ? 1000 : serves && !accepts ? PAUSE : -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &listener) {
                if (!accept_all(listener, &spare)) {
                    if (!told_pause) fprintf(stderr, "clients wait: %s\n", strerror(errno));
                    told_pause = true;
                    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listener, NULL);
                    accepts = false;
                }
            } else if (events[i].data.ptr != generation) {
                serve(events[i].data.ptr, events[i].events);
            }
        }
        // After the events: none of them is of a listener or of a connection that is closed by now.
        free_closed();
        int next = bindonce_next(generation);
        if (next == BINDONCE_SUPERSEDED) fail("ready");
        if (next == BINDONCE_SERVE) serves = true;
        if (next == BINDONCE_RETIRE && !end) {
            // Closed first: at this word the next generation begins to accept.
            if (accepts) epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listener, NULL);
            close(listener);
            accepts = serves = false;
            if (bindonce_stopped(generation) == BINDONCE_RECALLED) {
                if (bindonce_claim(generation, argv[1], &listener) < 0) fail("claim");
                serves = true;
            } else {
                end = time(NULL) + DRAIN;
            }
        }
    }
    while (pairs) leave(pairs, true);
    free_closed();
    bindonce_drained(generation);
    return 0;
}
