// A server on epoll(7) of which each start takes over from the one before: no client is refused, and never do two
// of them accept.
//
//     cc -O2 server.c -o server $(pkg-config --cflags --libs bindonce)
//     bindonce serve &
//     ./server web=127.0.0.1:8080 &
//     curl http://127.0.0.1:8080/
//     ./server web=127.0.0.1:8080       # takes over from the first, which ends

#define _GNU_SOURCE
#include <bindonce.h>
#include <errno.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    HEAD = 4096,  // bytes of a request's head
    PAUSE = 100,  // ms without accepting, after the process has reached its limit of descriptors
    DRAIN = 10,   // seconds for what is connected, once a newer generation accepts
};

// A client: what it has sent of its request's head.
struct client {
    int fd;
    size_t length;
    char head[HEAD];
};

static int epoll_fd, clients;

static void fail(const char *what) {
    fprintf(stderr, "server: %s: %s\n", what, bindonce_error());
    if (bindonce_hint()) fprintf(stderr, "hint: %s\n", bindonce_hint());
    exit(1);
}

static bool watch(int fd, void *data) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};
    return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &event) == 0;
}

static void leave(struct client *client) {
    close(client->fd);
    free(client);
    clients--;
}

// Reads what has come, and answers when the head is whole.
static void serve(struct client *client, unsigned long long number) {
    ssize_t got = recv(client->fd, client->head + client->length, HEAD - client->length, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
        leave(client);
        return;
    }
    client->length += (size_t)got;
    bool whole = memmem(client->head, client->length, "\r\n\r\n", 4) != NULL;
    if (whole) {
        char body[64], answer[256];
        int length = snprintf(body, sizeof body, "generation %llu, pid %d\n", number, getpid());
        length = snprintf(answer, sizeof answer,
                          "HTTP/1.1 200 OK\r\nX-Generation: %llu\r\nContent-Length: %d\r\n"
                          "Connection: close\r\n\r\n%s",
                          number, length, body);
        // So short an answer has room in the socket of a client that has read nothing yet.
        send(client->fd, answer, (size_t)length, MSG_NOSIGNAL);
    }
    if (whole || client->length == HEAD) leave(client);
}

// Accepts all that wait. False, with errno, where only time helps: a full table of descriptors, say.
static bool accept_all(int listener) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN) return true;
            // One client's affair.
            if (errno == ECONNABORTED || errno == EPROTO || errno == EINTR) continue;
            return false;
        }
        struct client *client = calloc(1, sizeof *client);
        if (client) client->fd = fd;
        if (!client || !watch(fd, client)) {
            free(client);
            close(fd);
            continue;
        }
        clients++;
    }
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: server [NAME=]ADDRESS\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    bindonce_generation *generation;
    if (bindonce_join(NULL, "example", &generation) < 0) fail("join");
    unsigned long long number = bindonce_number(generation);
    int listener = -1;
    if (bindonce_claim(generation, argv[1], &listener) < 0) fail("claim");
    if (!watch(bindonce_fd(generation), generation)) return 1;
    // Returns at once; BINDONCE_SERVE comes when the one before accepts no more.
    int ready = bindonce_ready(generation, 0);
    if (ready < 0 && ready != BINDONCE_TIMED_OUT) fail("ready");
    bool serves = ready == 0, told = false, accepts = false, told_pause = false;
    time_t end = 0;
    for (;;) {
        if (serves && !accepts && watch(listener, &listener)) {
            accepts = true;
            if (!told) {
                struct sockaddr_storage bound = {0};
                socklen_t size = sizeof bound;
                getsockname(listener, (struct sockaddr *)&bound, &size);
                unsigned char *raw = (unsigned char *)&bound;
                printf("generation %llu accepts on %d.%d.%d.%d:%d\n", number, raw[4], raw[5], raw[6], raw[7],
                       raw[2] << 8 | raw[3]);
                fflush(stdout);
                told = true;
            }
        }
        if (end && (clients == 0 || time(NULL) >= end)) break;
        struct epoll_event events[64];
        int count = epoll_wait(epoll_fd, events, 64, end ? 1000 : serves && !accepts ? PAUSE : -1);
        for (int i = 0; i < count; i++) {
            if (events[i].data.ptr == &listener) {
                if (!accept_all(listener)) {
                    if (!told_pause) fprintf(stderr, "clients wait: %s\n", strerror(errno));
                    told_pause = true;
                    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, listener, NULL);
                    accepts = false;
                }
            } else if (events[i].data.ptr != generation) {
                serve(events[i].data.ptr, number);
            }
        }
        // After the events: none of them is of a listener that is closed here.
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
    bindonce_drained(generation);
    return 0;
}
