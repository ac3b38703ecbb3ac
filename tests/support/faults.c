/* Failing disks for tests: loaded with LD_PRELOAD, makes calls on files below some folders fail with EIO, or hang.
 *
 * The file FAULT_FLAGS is mapped and read at every call, so that a test switches faults on and off in a running node: byte 0 fails
 * writes and flushes, byte 1 reads, byte 2 makes everything that may have to ask a disk wait until the byte is zero again; from byte 16
 * on stand the folders, each ended by a zero, the last by two. What a kernel answers from its memory (the page cache by RWF_NOWAIT, an
 * open by RESOLVE_CACHED) does not hang, but is not in memory either. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES, READS, HANGS };

static volatile const unsigned char *flags;

__attribute__((constructor)) static void open_flags(void) {
    const char *name = getenv("FAULT_FLAGS");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) flags = at;
}

static int below(const char *path) {
    for (const char *folder = (const char *)flags + 16; *folder; folder += strlen(folder) + 1)
        if (strncmp(path, folder, strlen(folder)) == 0) return 1;
    return 0;
}

static int below_fd(int fd) {
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

static int fails(int which, int fd) {
    if (!flags || !flags[which] || !below_fd(fd)) return 0;
    errno = EIO;
    return 1;
}

static void hang_fd(int fd) {
    while (flags && flags[HANGS] && below_fd(fd)) usleep(2000);
}

static void hang(const char *path) {
    while (flags && flags[HANGS] && path && below(path)) usleep(2000);
}

#define REAL(type, name, parameters)                          \
    static type(*real) parameters;                            \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

#define ON_FILE(which, type, name, parameters, arguments)     \
    type name parameters {                                    \
        REAL(type, name, parameters);                         \
        hang_fd(fd);                                          \
        return fails(which, fd) ? -1 : real arguments;        \
    }

#define ON_NAME(type, name, parameters, arguments)            \
    type name parameters {                                    \
        REAL(type, name, parameters);                         \
        hang(path);                                           \
        return real arguments;                                \
    }

#define ON_CACHE(name, offset)                                                                      \
    ssize_t name(int fd, const struct iovec *pieces, int count, offset at, int how) {               \
        REAL(ssize_t, name, (int, const struct iovec *, int, offset, int));                         \
        if (how & RWF_NOWAIT && flags && flags[HANGS] && below_fd(fd)) return errno = EAGAIN, -1;   \
        hang_fd(fd);                                                                                \
        return fails(READS, fd) ? -1 : real(fd, pieces, count, at, how);                            \
    }

ON_FILE(WRITES, ssize_t, pwrite, (int fd, const void *data, size_t length, off_t at), (fd, data, length, at))
ON_FILE(WRITES, ssize_t, pwrite64, (int fd, const void *data, size_t length, off64_t at), (fd, data, length, at))
ON_FILE(WRITES, ssize_t, pwritev, (int fd, const struct iovec *pieces, int count, off_t at), (fd, pieces, count, at))
ON_FILE(WRITES, ssize_t, pwritev64, (int fd, const struct iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
ON_FILE(WRITES, int, fdatasync, (int fd), (fd))
ON_FILE(WRITES, int, fsync, (int fd), (fd))
ON_FILE(HANGS, int, posix_fallocate, (int fd, off_t at, off_t length), (fd, at, length))
ON_FILE(HANGS, int, ftruncate, (int fd, off_t length), (fd, length))
ON_FILE(HANGS, int, ftruncate64, (int fd, off64_t length), (fd, length))
ON_FILE(READS, ssize_t, pread, (int fd, void *data, size_t length, off_t at), (fd, data, length, at))
ON_FILE(READS, ssize_t, pread64, (int fd, void *data, size_t length, off64_t at), (fd, data, length, at))
ON_FILE(READS, ssize_t, preadv, (int fd, const struct iovec *pieces, int count, off_t at), (fd, pieces, count, at))
ON_FILE(READS, ssize_t, preadv64, (int fd, const struct iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
ON_CACHE(preadv2, off_t)
ON_CACHE(preadv64v2, off64_t)

ON_NAME(int, link, (const char *path, const char *to), (path, to))
ON_NAME(int, unlink, (const char *path), (path))
ON_NAME(int, mkdir, (const char *path, mode_t mode), (path, mode))
ON_NAME(int, rename, (const char *path, const char *to), (path, to))
ON_NAME(int, stat, (const char *path, struct stat *found), (path, found))
ON_NAME(int, stat64, (const char *path, struct stat64 *found), (path, found))
ON_NAME(int, statvfs, (const char *path, struct statvfs *found), (path, found))
ON_NAME(int, statvfs64, (const char *path, struct statvfs64 *found), (path, found))

#define OPEN(name)                                            \
    int name(const char *path, int how, ...) {                \
        REAL(int, name, (const char *, int, ...));            \
        va_list more;                                         \
        va_start(more, how);                                  \
        mode_t mode = va_arg(more, mode_t);                   \
        va_end(more);                                         \
        hang(path);                                           \
        return real(path, how, mode);                         \
    }

OPEN(open)
OPEN(open64)

long syscall(long number, ...) {
    REAL(long, syscall, (long, ...));
    va_list more;
    va_start(more, number);
    long a[6];
    for (int i = 0; i < 6; i++) a[i] = va_arg(more, long);
    va_end(more);
    if (number == SYS_openat2 && flags && flags[HANGS] && below((const char *)(uintptr_t)a[1])) return errno = EAGAIN, -1;
    return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}
