// Joins and claims as many times as its argument says, and prints the microseconds of each.
#include <bindonce.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv) {
    int rounds = argc > 1 ? atoi(argv[1]) : 1;
    for (int i = 0; i < rounds; i++) {
        struct timespec from, to;
        bindonce_generation *generation;
        int fd;
        clock_gettime(CLOCK_MONOTONIC, &from);
        if (bindonce_join(NULL, "joining", &generation) < 0 || bindonce_claim(generation, "web=127.0.0.1:0", &fd) < 0) {
            fprintf(stderr, "joining: %s\n", bindonce_error());
            return 1;
        }
        clock_gettime(CLOCK_MONOTONIC, &to);
        close(fd);
        bindonce_free(generation);
        printf("%.1f\n", (to.tv_sec - from.tv_sec) * 1e6 + (to.tv_nsec - from.tv_nsec) / 1e3);
    }
    return 0;
}
