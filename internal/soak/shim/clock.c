// Sets the clock of the server that it is preloaded into by the seconds in a file, which may change at any time.
// (libfaketime does more, and does not work with a server that brings jemalloc, as Redis does.)
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static volatile long *offset;

__attribute__((constructor)) static void init(void) {
	const char *path = getenv("LOCKER_SOAK_CLOCK");
	int fd = path ? open(path, O_RDONLY) : -1;
	void *map = fd < 0 ? MAP_FAILED : mmap(0, sizeof *offset, PROT_READ, MAP_SHARED, fd, 0);
	if (map != MAP_FAILED) offset = map;
}

int gettimeofday(struct timeval *t, void *zone) {
	int r = syscall(SYS_gettimeofday, t, zone);
	if (r == 0 && offset) t->tv_sec += *offset;
	return r;
}

int clock_gettime(clockid_t clock, struct timespec *t) {
	int r = syscall(SYS_clock_gettime, clock, t);
	if (r == 0 && offset && clock == CLOCK_REALTIME) t->tv_sec += *offset;
	return r;
}

time_t time(time_t *out) {
	struct timeval t;
	gettimeofday(&t, 0);
	if (out) *out = t.tv_sec;
	return t.tv_sec;
}
