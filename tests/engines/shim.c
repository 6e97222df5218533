/* Loaded before the C library (LD_PRELOAD): a wall clock that is wrong, and a disk that is slow.
 *
 * SHIM_CLOCK names a file that holds the seconds by which the wall clock is off. SHIM_SLOW names a file that
 * holds the milliseconds that a write below the folder SHIM_SLOW_BELOW takes. Both may come, change and go
 * at any time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long number_in(const char *variable) {
    const char *path = getenv(variable);
    char text[32];
    if (path == NULL) return 0;
    int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return 0;
    long size = syscall(SYS_read, fd, text, sizeof text - 1);
    syscall(SYS_close, fd);
    if (size <= 0) return 0;
    text[size] = 0;
    return atol(text);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (!failed && clock == CLOCK_REALTIME) now->tv_sec += number_in("SHIM_CLOCK");
    return failed;
}

int gettimeofday(struct timeval *now, void *zone) {
    int failed = syscall(SYS_gettimeofday, now, zone);
    if (!failed) now->tv_sec += number_in("SHIM_CLOCK");
    return failed;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where != NULL) *where = now.tv_sec;
    return now.tv_sec;
}

ssize_t write(int fd, const void *data, size_t size) {
    const char *below = getenv("SHIM_SLOW_BELOW");
    if (below != NULL) {
        long wait = number_in("SHIM_SLOW");
        char link[64], path[4096];
        snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
        ssize_t length = wait > 0 ? readlink(link, path, sizeof path - 1) : 0;
        if (length > 0) {
            path[length] = 0;
            if (strncmp(path, below, strlen(below)) == 0) {
                struct timespec pause = {wait / 1000, wait % 1000 * 1000000};
                nanosleep(&pause, NULL);
            }
        }
    }
    return syscall(SYS_write, fd, data, size);
}
