/* Failing disks for tests: loaded with LD_PRELOAD, makes reads, writes and flushes of files below a folder fail with EIO.
 *
 * The file FAULT_FLAGS is mapped and read at every call, so that a test switches faults on and off in a running node: byte 0 fails
 * writes and flushes, byte 1 reads; from byte 16 on stands the folder. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

static volatile const unsigned char *flags;

__attribute__((constructor)) static void open_flags(void) {
    const char *name = getenv("FAULT_FLAGS");
    int fd = name ? open(name, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *at = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (at != MAP_FAILED) flags = at;
}

static int fails(int which, int fd) {
    if (!flags || !flags[which]) return 0;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    const char *folder = (const char *)flags + 16;
    if (length <= 0) return 0;
    path[length] = 0;
    if (strncmp(path, folder, strlen(folder)) != 0) return 0;
    errno = EIO;
    return 1;
}

#define FAULTY(which, type, name, parameters, arguments)                           \
    type name parameters {                                                         \
        static type(*real) parameters;                                             \
        if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name);                      \
        return fails(which, fd) ? -1 : real arguments;                             \
    }

FAULTY(0, ssize_t, pwrite, (int fd, const void *data, size_t length, off_t at), (fd, data, length, at))
FAULTY(0, ssize_t, pwrite64, (int fd, const void *data, size_t length, off64_t at), (fd, data, length, at))
FAULTY(0, ssize_t, pwritev, (int fd, const struct iovec *pieces, int count, off_t at), (fd, pieces, count, at))
FAULTY(0, ssize_t, pwritev64, (int fd, const struct iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
FAULTY(0, int, fdatasync, (int fd), (fd))
FAULTY(0, int, fsync, (int fd), (fd))
FAULTY(1, ssize_t, pread, (int fd, void *data, size_t length, off_t at), (fd, data, length, at))
FAULTY(1, ssize_t, pread64, (int fd, void *data, size_t length, off64_t at), (fd, data, length, at))
FAULTY(1, ssize_t, preadv, (int fd, const struct iovec *pieces, int count, off_t at), (fd, pieces, count, at))
FAULTY(1, ssize_t, preadv64, (int fd, const struct iovec *pieces, int count, off64_t at), (fd, pieces, count, at))
FAULTY(1, ssize_t, preadv2, (int fd, const struct iovec *pieces, int count, off_t at, int how), (fd, pieces, count, at, how))
FAULTY(1, ssize_t, preadv64v2, (int fd, const struct iovec *pieces, int count, off64_t at, int how), (fd, pieces, count, at, how))
