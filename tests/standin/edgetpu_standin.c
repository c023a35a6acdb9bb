/* A stand-in for libedgetpu.so.1, the driver of the Edge TPU, for tests on machines without one.
 *
 * It exports the external delegate interface of TensorFlow Lite, so a test reaches it by the very call that production
 * makes: load_delegate("libedgetpu.so.1", {"device": ...}). Like the driver it takes over each node of the graph whose
 * custom operation is "edgetpu-custom-op"; unlike it, it does not run the model.
 *
 * Output. Let S be the sum of all bytes of all inputs of the node. In each output tensor of N elements, element S % N
 * gets the highest value of its type (uint8 255, int8 127, float32 1.0), all others the lowest (0, -128, 0.0).
 *
 * Device. As with the driver, the option "device" is "", ":N", "usb", "usb:N", "pci" or "pci:N". There is one device,
 * of both types: N other than 0, or anything else, is a device that does not exist.
 *
 * Behaviour is set by environment variables. They are read when a delegate is created; the latest reading holds for all
 * delegates of the process. Invokes are counted per process.
 *
 *   EDGETPU_STANDIN_MODE      what it does (default: ok)
 *     ok                      answers
 *     slow                    every invoke takes EDGETPU_STANDIN_DELAY_MS
 *     slow_open               creating a delegate takes EDGETPU_STANDIN_DELAY_MS
 *     fail                    invokes fail; a new delegate can be created
 *     unplug                  invokes fail, and from the first failure on no delegate can be created in this process
 *     hang                    the invoke never returns
 *     abort                   SIGABRT, as the driver does on a USB fault
 *     segv                    SIGSEGV
 *     exclusive               while one process has the device open, no other can open it (flock on LIBRARY.lock)
 *     absent                  there is no device: no delegate can be created
 *   EDGETPU_STANDIN_AFTER     fail, unplug, hang, abort and segv begin after so many good invokes (default: 0)
 *   EDGETPU_STANDIN_DELAY_MS  milliseconds, for slow and slow_open (default: 100)
 *
 * Where a delegate cannot be created, the driver gives no reason, and neither does the stand-in: the reported error is
 * the empty string. A wrong value of a variable above is told in words.
 *
 * No package ships the C headers of TensorFlow Lite, so the parts of its binary interface that are needed stand below,
 * as on 64-bit Linux. They were tried with ai-edge-litert 2.3 and tflite-runtime 2.14.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

/* ---- TensorFlow Lite's binary interface ---- */

enum { STATUS_OK = 0, STATUS_ERROR = 1 };
enum { TYPE_FLOAT32 = 1, TYPE_UINT8 = 3, TYPE_INT8 = 9 };
enum { ALLOW_DYNAMIC_TENSORS = 1 };

typedef struct {
    int size;
    int data[];
} IntArray;

typedef struct {
    int type;
    void *data;
    void *dims;
    char quantization[8];
    int allocation_type;
    size_t bytes;
    char unused[64];
} Tensor;

typedef struct Delegate Delegate;

typedef struct {
    IntArray *inputs;
    IntArray *outputs;
    char unused[48];
    Delegate *delegate;
} Node;

typedef struct Context Context;

typedef struct {
    void *(*init)(Context *, const char *buffer, size_t length);
    void (*free)(Context *, void *user_data);
    int (*prepare)(Context *, Node *);
    int (*invoke)(Context *, Node *);
    void *profiling_string;
    int32_t builtin_code;
    const char *custom_name;
    int version;
    char unused[24];
} Registration;

struct Context {
    size_t tensors_size;
    int (*get_execution_plan)(Context *, IntArray **plan);
    Tensor *tensors;
    void *implementation;
    void *resize_tensor;
    void (*report_error)(Context *, const char *format, ...);
    void *add_tensors;
    int (*get_node_and_registration)(Context *, int index, Node **, Registration **);
    int (*replace_node_subsets)(Context *, Registration, const IntArray *nodes, Delegate *);
};

struct Delegate {
    void *data;
    int (*prepare)(Context *, Delegate *);
    void *copy_from_buffer_handle;
    void *copy_to_buffer_handle;
    void *free_buffer_handle;
    int64_t flags;
    void *opaque_delegate_builder;
};

_Static_assert(sizeof(void *) == 8, "the layouts are those of 64-bit systems");
_Static_assert(sizeof(Tensor) == 112, "TfLiteTensor");
_Static_assert(offsetof(Tensor, bytes) == 40, "TfLiteTensor.bytes");
_Static_assert(offsetof(Node, delegate) == 64, "TfLiteNode.delegate");
_Static_assert(sizeof(Registration) == 88, "TfLiteRegistration");
_Static_assert(offsetof(Context, replace_node_subsets) == 64, "TfLiteContext.ReplaceNodeSubsetsWithDelegateKernels");
_Static_assert(sizeof(Delegate) == 56, "TfLiteDelegate");
_Static_assert(offsetof(Delegate, flags) == 40, "TfLiteDelegate.flags");

/* ---- what the environment asks for ---- */

typedef enum { OK, SLOW, SLOW_OPEN, FAIL, UNPLUG, HANG, ABORT, SEGV, EXCLUSIVE, ABSENT, MODES } Mode;

static const char *const MODE_NAMES[MODES] = {
    "ok", "slow", "slow_open", "fail", "unplug", "hang", "abort", "segv", "exclusive", "absent",
};

static Mode mode;
static unsigned long after;
static unsigned long delay_ms;
static atomic_ulong invokes;
static atomic_bool unplugged;

typedef void (*ReportError)(const char *);

static bool read_mode(ReportError report_error) {
    const char *name = getenv("EDGETPU_STANDIN_MODE");
    if (name == NULL || *name == '\0') name = MODE_NAMES[OK];
    for (mode = OK; mode < MODES; mode++)
        if (strcmp(name, MODE_NAMES[mode]) == 0) return true;
    report_error("EDGETPU_STANDIN_MODE is none of the modes that edgetpu_standin.c knows");
    return false;
}

static bool read_number(const char *variable, unsigned long preset, unsigned long *number, ReportError report_error) {
    const char *text = getenv(variable);
    *number = preset;
    if (text == NULL || *text == '\0') return true;
    char *end;
    errno = 0;
    *number = strtoul(text, &end, 10);
    if (*text >= '0' && *text <= '9' && *end == '\0' && errno == 0) return true;
    report_error(variable);
    report_error(" is not a whole number");
    return false;
}

static bool read_environment(ReportError report_error) {
    return read_mode(report_error) && read_number("EDGETPU_STANDIN_AFTER", 0, &after, report_error) &&
           read_number("EDGETPU_STANDIN_DELAY_MS", 100, &delay_ms, report_error);
}

static void wait_delay(void) {
    struct timespec left = {.tv_sec = (time_t)(delay_ms / 1000), .tv_nsec = (long)(delay_ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

/* ---- the device ---- */

static int lock_file = -1;
static unsigned delegates;

static bool device_exists(char **keys, char **values, int count) {
    const char *known[] = {"", ":0", "usb", "usb:0", "pci", "pci:0"};
    for (int i = 0; i < count; i++) {
        if (strcmp(keys[i], "device") != 0) continue;
        bool found = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++) found |= strcmp(values[i], known[k]) == 0;
        if (!found) return false;
    }
    return true;
}

/* Within a process the device is shared: the lock is taken once, and let go with the last delegate. */
static bool lock_device(void) {
    if (lock_file >= 0) return true;
    Dl_info library;
    char path[4096];
    if (dladdr(&lock_file, &library) == 0) return false;
    if (snprintf(path, sizeof path, "%s.lock", library.dli_fname) >= (int)sizeof path) return false;
    int opened = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (opened < 0) return false;
    if (flock(opened, LOCK_EX | LOCK_NB) != 0) {
        close(opened);
        return false;
    }
    lock_file = opened;
    return true;
}

static void unlock_device(void) {
    if (lock_file >= 0) close(lock_file);
    lock_file = -1;
}

/* ---- the kernel that takes the place of each custom operation ---- */

static void without_core_file(void) { setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); }

static int misbehave(Context *context) {
    switch (mode) {
    case HANG:
        for (;;) pause();
    case ABORT:
        without_core_file();
        fputs("edgetpu stand-in: aborts, as the driver does on a USB fault\n", stderr);
        abort();
    case SEGV:
        without_core_file();
        signal(SIGSEGV, SIG_DFL);
        raise(SIGSEGV);
        return STATUS_ERROR;
    case UNPLUG:
        unplugged = true;
        context->report_error(context, "edgetpu stand-in: the device was unplugged");
        return STATUS_ERROR;
    case FAIL:
        context->report_error(context, "edgetpu stand-in: this invoke fails");
        return STATUS_ERROR;
    default:
        return STATUS_OK;
    }
}

static size_t size_of_element(const Tensor *tensor) { return tensor->type == TYPE_FLOAT32 ? sizeof(float) : 1; }

static void answer(Tensor *output, uint64_t sum) {
    size_t count = output->bytes / size_of_element(output);
    if (count == 0) return;
    size_t best = (size_t)(sum % count);
    memset(output->data, output->type == TYPE_INT8 ? INT8_MIN : 0, output->bytes);
    if (output->type == TYPE_FLOAT32)
        ((float *)output->data)[best] = 1.0F;
    else
        ((uint8_t *)output->data)[best] = output->type == TYPE_INT8 ? INT8_MAX : UINT8_MAX;
}

static uint64_t sum_of_bytes(const Tensor *input) {
    uint64_t sum = 0;
    for (size_t i = 0; i < input->bytes; i++) sum += ((const uint8_t *)input->data)[i];
    return sum;
}

static int kernel_prepare(Context *context, Node *node) {
    for (int i = 0; i < node->outputs->size; i++) {
        int type = context->tensors[node->outputs->data[i]].type;
        if (type == TYPE_UINT8 || type == TYPE_INT8 || type == TYPE_FLOAT32) continue;
        context->report_error(context, "edgetpu stand-in: output %d has type %d, which it cannot fill", i, type);
        return STATUS_ERROR;
    }
    return STATUS_OK;
}

static int kernel_invoke(Context *context, Node *node) {
    if (mode == SLOW) wait_delay();
    if (atomic_fetch_add(&invokes, 1) >= after) {
        int status = misbehave(context);
        if (status != STATUS_OK) return status;
    }
    uint64_t sum = 0;
    for (int i = 0; i < node->inputs->size; i++) sum += sum_of_bytes(&context->tensors[node->inputs->data[i]]);
    for (int i = 0; i < node->outputs->size; i++) answer(&context->tensors[node->outputs->data[i]], sum);
    return STATUS_OK;
}

/* ---- the delegate ---- */

static int replace_node(Context *context, Delegate *delegate, int index) {
    Registration kernel = {
        .prepare = kernel_prepare,
        .invoke = kernel_invoke,
        .custom_name = "EdgeTpuDelegateForCustomOp",
        .version = 1,
    };
    struct {
        int size;
        int index;
    } nodes = {1, index};
    return context->replace_node_subsets(context, kernel, (const IntArray *)&nodes, delegate);
}

static bool is_for_edgetpu(Context *context, int index) {
    Node *node;
    Registration *registration;
    return context->get_node_and_registration(context, index, &node, &registration) == STATUS_OK &&
           registration->custom_name != NULL && strcmp(registration->custom_name, "edgetpu-custom-op") == 0;
}

static int delegate_prepare(Context *context, Delegate *delegate) {
    IntArray *plan;
    if (context->get_execution_plan(context, &plan) != STATUS_OK) return STATUS_ERROR;
    /* Replacing a node makes the runtime throw the plan away, so the nodes are noted first. */
    int *nodes = malloc(sizeof(int) * (size_t)(plan->size + 1));
    if (nodes == NULL) return STATUS_ERROR;
    int count = 0;
    for (int i = 0; i < plan->size; i++)
        if (is_for_edgetpu(context, plan->data[i])) nodes[count++] = plan->data[i];
    int status = STATUS_OK;
    for (int i = 0; i < count && status == STATUS_OK; i++) status = replace_node(context, delegate, nodes[i]);
    free(nodes);
    return status;
}

/* The runtime declares the count as size_t, its Python side passes an int: only the lower half is sure. */
EXPORT Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, ReportError report_error) {
    if (!read_environment(report_error)) return NULL;
    if (mode == SLOW_OPEN) wait_delay();
    if (mode == ABSENT || unplugged || !device_exists(keys, values, (int)count) ||
        (mode == EXCLUSIVE && !lock_device())) {
        report_error("");
        return NULL;
    }
    Delegate *delegate = calloc(1, sizeof *delegate);
    if (delegate == NULL) return NULL;
    delegate->prepare = delegate_prepare;
    delegate->flags = ALLOW_DYNAMIC_TENSORS;
    delegates++;
    return delegate;
}

/* Python calls this with NULL where no delegate could be created. */
EXPORT void tflite_plugin_destroy_delegate(Delegate *delegate) {
    if (delegate == NULL) return;
    free(delegate);
    if (--delegates == 0) unlock_device();
}
