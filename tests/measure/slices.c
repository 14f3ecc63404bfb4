/* A load in slices, for `intercept.py --throughput`: slices PORT... A line `INDEX SECONDS MODE` on
 * standard input asks the server at that port for SECONDS, on connections that stay open (mode `k`)
 * or on a new one for each request (`c`). The answer is a line with the number of requests and the
 * nanoseconds that they took. It asks on all connections and then reads all answers: it needs less
 * processor time than the server. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define CONNECTIONS 16
static uint32_t sources;

static int64_t now(void)
{
	struct timespec at;
	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * INT64_C(1000000000) + at.tv_nsec;
}

static int connected(int port)
{
	int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in at = {.sin_family = AF_INET};
	/* Many source addresses: with few, ports that were just used would run out. */
	at.sin_addr.s_addr = htonl(0x7f010001 + ++sources % 0x3fff);
	setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
	if (bind(fd, (struct sockaddr *)&at, sizeof at))
		err(1, "bind");
	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	at.sin_port = htons(port);
	if (connect(fd, (struct sockaddr *)&at, sizeof at))
		err(1, "connect");
	return fd;
}

static void ask(int fd, const char *connection)
{
	char text[128];
	int length = snprintf(text, sizeof text, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: %s\r\n\r\n", connection);
	if (write(fd, text, length) != length)
		err(1, "write");
}

/* Reads to the end of the answer, which ends in ok. */
static void answered(int fd)
{
	char text[4096];
	ssize_t length = 0, part;
	while (length < 2 || memcmp(text + length - 2, "ok", 2)) {
		part = read(fd, text + length, sizeof text - length);
		if (part <= 0)
			errx(1, "no answer: %.*s", (int)length, text);
		length += part;
	}
	if (length < 12 || memcmp(text + 8, " 200", 4))
		errx(1, "no 200: %.*s", (int)length, text);
}

int main(int count, char **ports)
{
	int open[8][CONNECTIONS], index;
	double seconds;
	char mode;
	for (index = 0; index < count - 1 && index < 8; index++)
		for (int at = 0; at < CONNECTIONS; at++)
			open[index][at] = connected(atoi(ports[index + 1]));
	while (scanf("%d %lf %c", &index, &seconds, &mode) == 3) {
		int port = atoi(ports[index + 1]), *all = open[index], fresh[CONNECTIONS];
		int64_t begun = now(), until = begun + (int64_t)(seconds * 1e9), requests = 0, end;
		do {
			for (int at = 0; at < CONNECTIONS && mode == 'c'; at++)
				(all = fresh)[at] = connected(port);
			for (int at = 0; at < CONNECTIONS; at++)
				ask(all[at], mode == 'c' ? "close" : "keep-alive");
			for (int at = 0; at < CONNECTIONS; at++)
				answered(all[at]);
			for (int at = 0; at < CONNECTIONS && mode == 'c'; at++)
				close(all[at]);
			requests += CONNECTIONS;
			end = now();
		} while (end < until);
		printf("%lld %lld\n", (long long)requests, (long long)(end - begun));
		fflush(stdout);
	}
	return 0;
}
