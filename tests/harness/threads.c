/* Listens on 127.0.0.1 at the given port, in a thread other than its first one. The first thread
 * takes no signal meanwhile: it waits for a child of vfork(2), as it would for a disk; and the first
 * generation does not handle SIGTERM. For a signal to the process
 * the kernel prefers the first thread. */
#define _GNU_SOURCE
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int port;

static void *serve(void *unused)
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	(void)unused;
	/* Until its parent is there. */
	usleep(50000);
	if (fd < 0 || bind(fd, (struct sockaddr *)&at, sizeof at) || listen(fd, 5)) {
		perror("listen");
		exit(1);
	}
	dprintf(1, "past listen %s\n", getenv("BINDONCE_GENERATION"));
	for (;;)
		pause();
}

int main(int count, char **words)
{
	pthread_t thread;

	if (count < 2)
		return 2;
	port = atoi(words[1]);
	if (!strcmp(getenv("BINDONCE_GENERATION"), "1"))
		signal(SIGTERM, SIG_IGN);
	if (pthread_create(&thread, NULL, serve, NULL))
		return 1;
	if (vfork() == 0)
		for (;;)
			pause();
	return 0;
}
