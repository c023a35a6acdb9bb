/* A wall clock that a test sets, for one process and its children: LD_PRELOAD it.

   $WALLCLOCK is a file with two numbers of 64 bits that may change at any time: nanoseconds to be added to
   CLOCK_REALTIME, and what adjtimex(2) has to say of the greatest error in microseconds, or -1: ask the kernel.
   CLOCK_MONOTONIC and everything that waits for it stay as they are, as on a board that gets the time from the
   network. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

struct control {
    int64_t offset_ns;
    int64_t max_error_us;
};

static const struct control real = {0, -1};
static const volatile struct control *control = &real;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static int (*real_adjtimex)(struct timex *);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_adjtimex = (int (*)(struct timex *))dlsym(RTLD_NEXT, "adjtimex");
    const char *path = getenv("WALLCLOCK");
    int file = path == NULL ? -1 : open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return;
    void *mapped = mmap(NULL, sizeof *control, PROT_READ, MAP_SHARED, file, 0);
    if (mapped != MAP_FAILED)
        control = mapped;
    close(file);
}

int clock_gettime(clockid_t id, struct timespec *now) {
    if (real_clock_gettime == NULL) /* called by another library's constructor */
        begin();
    int status = real_clock_gettime(id, now);
    if (status == 0 && (id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE)) {
        int64_t ns = now->tv_sec * SECOND + now->tv_nsec + control->offset_ns;
        now->tv_sec = ns / SECOND;
        now->tv_nsec = ns % SECOND;
    }
    return status;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec precise;
    int status = clock_gettime(CLOCK_REALTIME, &precise);
    if (status == 0 && now != NULL) {
        now->tv_sec = precise.tv_sec;
        now->tv_usec = precise.tv_nsec / 1000;
    }
    return status;
}

time_t time(time_t *seconds) {
    struct timespec now = {0, 0};
    clock_gettime(CLOCK_REALTIME, &now);
    if (seconds != NULL)
        *seconds = now.tv_sec;
    return now.tv_sec;
}

int adjtimex(struct timex *answer) {
    if (control->max_error_us < 0)
        return real_adjtimex(answer);
    *answer = (struct timex){.maxerror = control->max_error_us, .status = STA_UNSYNC};
    return TIME_ERROR;
}
