// bindonce for C: a server of which each start takes over from the one before, on sockets that the broker
// has bound once. Made by cbindgen from crates/capi; docs/library.md tells how a generation lives.
//
// Every function but those that give text returns 0 or more if it has done what it says, and one of the negative
// codes if not; bindonce_error() then says why. A handle is for one thread at a time. No thread is started, no
// signal is touched, and nothing is written anywhere.
//
// A broker that does not answer holds up a call: 30 seconds for connecting, and 30 seconds for each request. In an
// attempt to reach the broker that follows a lost one it is one second for each.

#ifndef BINDONCE_H
#define BINDONCE_H

#include <stddef.h>
#include <stdint.h>

// An argument is NULL, no UTF-8, or no name of a service.
#define BINDONCE_INVALID -1

// No broker answers at the path.
#define BINDONCE_NO_BROKER -2

// It was not done in time. The call may be made again.
#define BINDONCE_TIMED_OUT -3

// The connection to the broker was lost during the call, or is of no use. The call may be made again.
#define BINDONCE_LOST -4

// The broker has refused: bindonce_refusal() gives its code (docs/protocol.md).
#define BINDONCE_REFUSED -5

// A newer generation is ready or serves. This process must not accept: it ends.
#define BINDONCE_SUPERSEDED -6

// The claims give more listeners than there is room for. None was bound or given.
#define BINDONCE_NO_ROOM -7

// Without a broker: this process cannot bind the address itself, and no socket for it was passed.
#define BINDONCE_CANNOT_BIND -8

// Nothing has changed.
#define BINDONCE_NOTHING 0

// This generation may accept from now on.
#define BINDONCE_SERVE 1

// A newer generation is ready: stop accepting, close every listener, and call bindonce_stopped().
#define BINDONCE_RETIRE 2

// This generation accepts no more. It finishes what is connected, and ends.
#define BINDONCE_RETIRED 0

// The newer generation has ended before it was let in: claim the listeners again, the same sockets, and serve on.
#define BINDONCE_RECALLED 1

// This process as one generation of a service.
typedef struct bindonce_generation bindonce_generation;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// The version of this library, as in "0.1.0".
const char *bindonce_version(void);

// What went wrong in the last call of this thread that failed, for a person. Valid until the next call that fails.
const char *bindonce_error(void);

// What a person can do about it, or NULL. Valid until the next call that fails.
const char *bindonce_hint(void);

// The broker's code of the last BINDONCE_REFUSED of this thread (docs/protocol.md).
int bindonce_refusal(void);

// Becomes the next generation of a service, at the broker's socket; where that is NULL, at $BINDONCE_SOCKET or the
// default path. Gives the handle in *generation.
//
// # Safety
// `socket` is NULL or a string, `service` a string, and `generation` has room for a pointer.
int bindonce_join(const char *socket,
                  const char *service,
                  struct bindonce_generation **generation);

// As bindonce_join() without a path, for a program that runs in any way: takes the sockets that its starter has passed
// (LISTEN_FDS: systemd, `bindonce run`); else joins at the broker; else, where there is none and $BINDONCE_SOCKET names
// none, binds by itself. What was passed is claimed by name or by address. bindonce_ready() also says READY=1 to
// $NOTIFY_SOCKET. Without a broker BINDONCE_RETIRE never comes: a signal (SIGTERM) tells the program to close its listeners
// and to call bindonce_stopped().
//
// # Safety
// As of bindonce_join(). Only the first call of a process finds what was passed.
int bindonce_join_or_bind(const char *service, struct bindonce_generation **generation);

// The number of the generation, larger than that of any before; 0 for NULL, and where nobody gave one.
//
// # Safety
// `generation` is NULL or a handle.
uint64_t bindonce_number(const struct bindonce_generation *generation);

// Claims one listener, "[NAME=]ADDR[,OPTION]...", as in "web=0.0.0.0:80,backlog=4096", "unix@/run/app.sock" or
// "udp4@:53"; BINDONCE_NO_ROOM for a range of ports. *fd is the caller's: non-blocking unless the claim says
// otherwise, and close-on-exec. Never call shutdown(2) on it, nor change its blocking mode: it is shared.
//
// # Safety
// `generation` is a handle, `claim` a string, and `fd` has room for a number.
int bindonce_claim(struct bindonce_generation *generation,
                   const char *claim,
                   int *fd);

// Claims listeners, all or none, and gives how many: a range of ports is several. Their descriptors, in the order of
// the claims, are the caller's, as those of bindonce_claim(). With too little room it claims none.
//
// # Safety
// `generation` is a handle, `claims` has `count` strings, and `fds` has room for `room` numbers.
int bindonce_claim_all(struct bindonce_generation *generation,
                       const char *const *claims,
                       size_t count,
                       int *fds,
                       size_t room);

// Says that this generation is ready, and waits until it may accept, for as long as that takes where timeout_ms is
// negative. With 0 it waits only for the broker's reply: where an older generation has to stop first, it gives
// BINDONCE_TIMED_OUT, and bindonce_next() says BINDONCE_SERVE later.
//
// # Safety
// `generation` is a handle.
int bindonce_ready(struct bindonce_generation *generation,
                   int timeout_ms);

// A descriptor that is readable when bindonce_next() has something to do, the same one for the life of the handle. It is
// the library's: do not close it.
//
// # Safety
// `generation` is a handle.
int bindonce_fd(const struct bindonce_generation *generation);

// What has happened: BINDONCE_NOTHING, BINDONCE_SERVE or BINDONCE_RETIRE. Does not wait, but that an attempt to
// reach the broker that follows a lost one may take a second for connecting and for each request (to take back 253
// listeners, or to join). An error here ends nothing: the process serves on, and the next call tries again.
//
// # Safety
// `generation` is a handle.
int bindonce_next(struct bindonce_generation *generation);

// Says that this process accepts no more: it has closed every listener. Gives BINDONCE_RETIRED or BINDONCE_RECALLED.
// The newer generation waits for this for 5 seconds, unless the broker is told otherwise.
//
// # Safety
// `generation` is a handle.
int bindonce_stopped(struct bindonce_generation *generation);

// What was connected is finished. The handle is gone.
//
// # Safety
// `generation` is NULL or a handle, and is not used any more.
void bindonce_drained(struct bindonce_generation *generation);

// Gives the handle up. To the broker that is the end of the generation; NULL is nothing.
//
// # Safety
// As of bindonce_drained().
void bindonce_free(struct bindonce_generation *generation);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* BINDONCE_H */
