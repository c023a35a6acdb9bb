/* A file system that fails when it is told to: preloaded (LD_PRELOAD), it stands before the C library's calls.
 *
 * Only files below the folder in FAULTIO_ROOT count. Each call on them that reads, writes or changes something is one
 * step. faultio_arm(after, times, fault) lets `times` steps fail, the first after `after` more steps; `fault` is an
 * errno, or FAULTIO_SHORT: a write takes half of what it is given, or FAULTIO_CRASH: the process ends at once, before
 * the step. faultio_steps() says how many steps there were since the last faultio_arm().
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define FAULTIO_SHORT (-1)
#define FAULTIO_CRASH (-2)
#define CRASH_STATUS 86
#define MAX_FILES 1024
#define EXPORT __attribute__((visibility("default")))
#define REAL(name, type) ((type)dlsym(RTLD_NEXT, name))

static atomic_char watched[MAX_FILES];
static atomic_long steps, after = LONG_MAX, times;
static atomic_int fault;

EXPORT void faultio_arm(long new_after, long new_times, int new_fault)
{
    times = new_times;
    fault = new_fault;
    steps = 0;
    after = new_after;
}

EXPORT long faultio_steps(void) { return steps; }

/* Counts a step. Returns 0 if it should be done as it is, FAULTIO_SHORT, or an errno. */
static int step(void)
{
    long number = steps++;
    if (number < after || number - after >= times)
        return 0;
    if (fault == FAULTIO_CRASH)
        _exit(CRASH_STATUS);
    return fault;
}

static int below_root(const char *path)
{
    const char *root = getenv("FAULTIO_ROOT");
    return root != NULL && strncmp(path, root, strlen(root)) == 0;
}

static int is_watched(int fd) { return fd >= 0 && fd < MAX_FILES && watched[fd]; }

/* Whether the call has to fail; errno says how then. A short write is for the caller to make. */
static int fails(int found)
{
    if (found > 0)
        errno = found;
    return found > 0;
}

static int opened(const char *path, int flags, int fd)
{
    (void)flags;
    if (fd >= 0 && fd < MAX_FILES)
        watched[fd] = below_root(path);
    return fd;
}

#define OPEN(name)                                                                       \
    EXPORT int name(const char *path, int flags, ...)                                    \
    {                                                                                    \
        mode_t mode = 0;                                                                 \
        if (flags & (O_CREAT | O_TMPFILE)) {                                             \
            va_list more;                                                                \
            va_start(more, flags);                                                       \
            mode = va_arg(more, mode_t);                                                 \
            va_end(more);                                                                \
        }                                                                                \
        if (below_root(path) && fails(step()))                                           \
            return -1;                                                                   \
        return opened(path, flags, REAL(#name, int (*)(const char *, int, ...))(path, flags, mode)); \
    }
OPEN(open)
OPEN(open64)

EXPORT ssize_t write(int fd, const void *data, size_t size)
{
    int found = is_watched(fd) ? step() : 0;
    if (fails(found))
        return -1;
    if (found == FAULTIO_SHORT)
        size = size / 2;
    return REAL("write", ssize_t (*)(int, const void *, size_t))(fd, data, size);
}

#define PWRITE(name, offset_type)                                                        \
    EXPORT ssize_t name(int fd, const void *data, size_t size, offset_type offset)       \
    {                                                                                    \
        int found = is_watched(fd) ? step() : 0;                                         \
        if (fails(found))                                                                \
            return -1;                                                                   \
        if (found == FAULTIO_SHORT)                                                      \
            size = size / 2;                                                             \
        return REAL(#name, ssize_t (*)(int, const void *, size_t, offset_type))(fd, data, size, offset); \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define ON_FILE(result, name, parameters, arguments)                                     \
    EXPORT result name parameters                                                        \
    {                                                                                    \
        if (is_watched(fd) && fails(step()))                                             \
            return -1;                                                                   \
        return REAL(#name, result(*) parameters) arguments;                              \
    }
ON_FILE(ssize_t, pread, (int fd, void *data, size_t size, off_t offset), (fd, data, size, offset))
ON_FILE(ssize_t, pread64, (int fd, void *data, size_t size, off64_t offset), (fd, data, size, offset))
ON_FILE(ssize_t, read, (int fd, void *data, size_t size), (fd, data, size))
ON_FILE(int, fsync, (int fd), (fd))
ON_FILE(int, fdatasync, (int fd), (fd))
ON_FILE(int, ftruncate, (int fd, off_t size), (fd, size))
ON_FILE(int, ftruncate64, (int fd, off64_t size), (fd, size))

EXPORT int unlink(const char *path)
{
    if (below_root(path) && fails(step()))
        return -1;
    return REAL("unlink", int (*)(const char *))(path);
}

EXPORT int rename(const char *from, const char *to)
{
    if (below_root(from) && fails(step()))
        return -1;
    return REAL("rename", int (*)(const char *, const char *))(from, to);
}
