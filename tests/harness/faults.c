/* Preloaded into a program under test: makes it ignore signals, or receive them twice.
 *
 * FAULT is a list of words: "deaf:SIGNAL:COUNT" ignores the first COUNT of a
 * signal (0: all), "twice:SIGNAL" calls its handler twice, "dies" ends the program
 * once it has sent a SIGUSR1, as haproxy ends that cannot become its user: its
 * sockets are closed a moment before. A signal is given by its number. Everything
 * else passes through. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIGNALS 65

typedef void (*handler_of)(int, siginfo_t *, void *);

static handler_of handlers[SIGNALS];
static long deaf[SIGNALS]; /* how many are left to swallow; negative: all */
static int twice[SIGNALS];
static int dies;

static int (*real_sigaction(void))(int, const struct sigaction *, struct sigaction *) {
    return (int (*)(int, const struct sigaction *, struct sigaction *))dlsym(RTLD_NEXT, "sigaction");
}

static void set(int number, void (*handler)(int), handler_of with_info) {
    struct sigaction act;
    memset(&act, 0, sizeof act);
    act.sa_flags = SA_RESTART;
    if (with_info != NULL) {
        act.sa_sigaction = with_info;
        act.sa_flags |= SA_SIGINFO;
    } else {
        act.sa_handler = handler;
    }
    real_sigaction()(number, &act, NULL);
}

static void between(int number, siginfo_t *info, void *context) {
    handler_of handler = handlers[number];
    if (deaf[number] != 0) {
        if (deaf[number] > 0)
            deaf[number]--;
        return;
    }
    if (handler == NULL) { /* the program has left it as it was */
        set(number, SIG_DFL, NULL);
        raise(number);
        return;
    }
    /* a handler that takes only the number ignores the other arguments */
    handler(number, info, context);
    if (twice[number])
        handler(number, info, context);
}

__attribute__((constructor)) static void read_faults(void) {
    const char *words = getenv("FAULT");
    char copy[256] = "", *rest = copy, *word;
    if (words != NULL)
        strncpy(copy, words, sizeof copy - 1);
    while ((word = strsep(&rest, " ")) != NULL) {
        int number;
        long count;
        if (sscanf(word, "deaf:%d:%ld", &number, &count) == 2 && number > 0 && number < SIGNALS) {
            deaf[number] = count == 0 ? -1 : count;
            set(number, NULL, between);
        } else if (strcmp(word, "dies") == 0) {
            dies = 1;
        } else if (sscanf(word, "twice:%d", &number) == 1 && number > 0 && number < SIGNALS) {
            twice[number] = 1;
        }
    }
}

int sigaction(int number, const struct sigaction *act, struct sigaction *old) {
    if (act == NULL || number <= 0 || number >= SIGNALS || act->sa_handler == SIG_DFL ||
        act->sa_handler == SIG_IGN || (!deaf[number] && !twice[number]))
        return real_sigaction()(number, act, old);
    struct sigaction ours = *act;
    handlers[number] = act->sa_sigaction; /* the same place as sa_handler */
    ours.sa_sigaction = between;
    ours.sa_flags |= SA_SIGINFO;
    return real_sigaction()(number, &ours, old);
}

void (*signal(int number, void (*handler)(int)))(int) {
    struct sigaction act, old;
    memset(&act, 0, sizeof act);
    act.sa_handler = handler;
    act.sa_flags = SA_RESTART;
    return sigaction(number, &act, &old) == 0 ? old.sa_handler : SIG_ERR;
}

int kill(pid_t pid, int number) {
    int sent = ((int (*)(pid_t, int))dlsym(RTLD_NEXT, "kill"))(pid, number);
    if (dies && number == SIGUSR1) {
        for (int fd = 3; fd < 1024; fd++)
            close(fd);
        usleep(100 * 1000);
        _exit(1);
    }
    return sent;
}
