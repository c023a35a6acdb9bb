/* A stand-in for libedgetpu.so.1, the driver of the Edge TPU, for tests on machines without one.
 *
 * It exports the external delegate interface of TensorFlow Lite, so a test reaches it by the very call that production
 * makes: load_delegate("libedgetpu.so.1", {"device": ...}). Like the driver it takes over each node of the graph whose
 * custom operation is "edgetpu-custom-op"; unlike it, it does not run the model.
 *
 * Output. Let S be the sum of all bytes of all inputs of the node. In each output tensor of N elements, element S % N
 * gets the highest value of its type (uint8 255, int8 127, float32 1.0), all others the lowest (0, -128, 0.0).
 *
 * Devices. As with the driver, the option "device" is "", ":N", "usb", "usb:N", "pci" or "pci:N"; "" tries PCIe first.
 * There is one device, of both types, and N other than 0 or anything else is a device that does not exist. To have
 * several, or to see which one a process holds, EDGETPU_STANDIN_DEVICES names their nodes:
 *
 *   EDGETPU_STANDIN_DEVICES   TYPE=PATH,TYPE=PATH...  TYPE is usb or pci, PATH a file; ":N" counts in the order given.
 *                             A device's file is open while a delegate uses it, once per process. A device whose file
 *                             is away is unplugged: it cannot be opened, and its invokes fail.
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
 *     stuck                   the invoke never returns, and no delegate can be created
 *     abort                   SIGABRT, as the driver does on a USB fault
 *     segv                    SIGSEGV
 *     exclusive               while one process has the device open, no other can open it (flock on its file, or on
 *                             LIBRARY.lock where EDGETPU_STANDIN_DEVICES names none)
 *     absent                  there is no device: no delegate can be created, invokes fail
 *     mismatch_segv           it was built for another TensorFlow Lite: SIGSEGV when the tensors are allocated
 *     mismatch_unresolved     likewise, with the other outcome: "Encountered an unresolved custom op" at the invoke
 *   EDGETPU_STANDIN_AFTER     fail, unplug, hang, stuck, abort, segv and absent begin for invokes after so many good
 *                             ones (default: 0)
 *   EDGETPU_STANDIN_DELAY_MS  milliseconds, for slow and slow_open (default: 100)
 *   EDGETPU_STANDIN_STATE     path of a file. While it is there, the mode that it holds goes before the one above, for
 *                             each call anew and from the first invoke on. So a device can be unplugged and come back
 *                             while processes run.
 *   EDGETPU_STANDIN_LOG       path of a file that gets a line of JSON with "event", "pid" and "delegate" (a number that
 *                             starts from 1 in each process) when
 *     create                  a delegate was created; "options" are what it was given, "node" is the device's file
 *     refuse                  none could be created; there are "options", but no "delegate" and no "node"
 *     fail                    an invoke failed
 *     release                 an interpreter gave up a node that the delegate ran
 *     destroy                 a delegate was destroyed; "kernels" is how many nodes still hang on it: more than 0 is
 *                             the wrong order, which crashes the driver
 *
 * Where a delegate cannot be created, the driver gives no reason, and neither does the stand-in: the reported error is
 * the empty string. A wrong value of a variable above is told in words.
 *
 * No package ships the C headers of TensorFlow Lite, so the parts of its binary interface that are needed stand below,
 * as on 64-bit Linux. They were tried with ai-edge-litert 2.3 and tflite-runtime 2.14.
 *
 * The mismatch modes do what libedgetpu 16.0 of 2021 does under current runtimes. It passes a TfLiteRegistration of 64
 * bytes, they read 88, and take what happens to lie behind for a pointer to the operator that is to be used instead.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
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
    void *replacement; /* a TfLiteOperator, whose functions go before those above; TensorFlow 2.5 has none */
    char unused[16];
} Registration;

typedef struct {
    Delegate *delegate;
    char unused[24];
} DelegateParams;

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

typedef enum {
    OK, SLOW, SLOW_OPEN, FAIL, UNPLUG, HANG, STUCK, ABORT, SEGV, EXCLUSIVE, ABSENT, MISMATCH_SEGV, MISMATCH_UNRESOLVED,
    MODES
} Mode;

static const char *const MODE_NAMES[MODES] = {
    "ok", "slow", "slow_open", "fail", "unplug", "hang", "stuck", "abort", "segv", "exclusive", "absent",
    "mismatch_segv", "mismatch_unresolved",
};

static Mode set_mode;
static unsigned long set_after;
static unsigned long delay_ms;
static atomic_ulong invokes;
static atomic_bool unplugged;

typedef void (*ReportError)(const char *);

static const char *variable(const char *name) {
    const char *text = getenv(name);
    return text == NULL || *text == '\0' ? NULL : text;
}

static Mode mode_named(const char *name) {
    Mode mode = OK;
    while (mode < MODES && strcmp(name, MODE_NAMES[mode]) != 0) mode++;
    return mode;
}

static bool read_mode(ReportError report_error) {
    const char *name = variable("EDGETPU_STANDIN_MODE");
    set_mode = name == NULL ? OK : mode_named(name);
    if (set_mode < MODES) return true;
    report_error("EDGETPU_STANDIN_MODE is none of the modes that edgetpu_standin.c knows");
    return false;
}

static bool read_number(const char *name, unsigned long preset, unsigned long *number, ReportError report_error) {
    const char *text = variable(name);
    *number = preset;
    if (text == NULL) return true;
    char *end;
    errno = 0;
    *number = strtoul(text, &end, 10);
    if (*text >= '0' && *text <= '9' && *end == '\0' && errno == 0) return true;
    report_error(name);
    report_error(" is not a whole number");
    return false;
}

static bool read_environment(ReportError report_error) {
    return read_mode(report_error) && read_number("EDGETPU_STANDIN_AFTER", 0, &set_after, report_error) &&
           read_number("EDGETPU_STANDIN_DELAY_MS", 100, &delay_ms, report_error);
}

/* The mode of this moment, and the number of good invokes before it begins. MODES: the file of the state holds none. */
static Mode mode_now(unsigned long *after) {
    *after = set_after;
    const char *path = variable("EDGETPU_STANDIN_STATE");
    FILE *file = path == NULL ? NULL : fopen(path, "re");
    if (file == NULL) return set_mode;
    char name[32] = "";
    int words = fscanf(file, "%31s", name);
    fclose(file);
    *after = 0;
    return words == 1 ? mode_named(name) : MODES;
}

static bool mode_is(Mode mode) {
    unsigned long after;
    return mode_now(&after) == mode;
}

static void wait_delay(void) {
    struct timespec left = {.tv_sec = (time_t)(delay_ms / 1000), .tv_nsec = (long)(delay_ms % 1000) * 1000000L};
    while (nanosleep(&left, &left) != 0 && errno == EINTR) continue;
}

/* ---- the devices ---- */

typedef struct Device Device;

struct Device {
    char node[PATH_MAX];
    int file;
    bool listed; /* in EDGETPU_STANDIN_DEVICES: then its file is the device itself */
    unsigned delegates;
    Device *next;
};

static Device *opened;

/* Splits "usb:1" into "usb" and 1; the index is -1 where there is none. */
static bool parse_device(const char *wanted, char type[4], long *index) {
    size_t length = strcspn(wanted, ":");
    if (length != 0 && length != 3) return false;
    memcpy(type, wanted, length);
    type[length] = '\0';
    if (length != 0 && strcmp(type, "usb") != 0 && strcmp(type, "pci") != 0) return false;
    *index = -1;
    if (wanted[length] == '\0') return true;
    const char *digits = wanted + length + 1;
    char *end;
    *index = strtol(digits, &end, 10);
    return *digits >= '0' && *digits <= '9' && *end == '\0';
}

/* Copies the node of the index-th device of this type ("": of any type) from the list of devices. */
static bool find_listed(const char *list, const char *type, long index, char node[PATH_MAX]) {
    for (const char *entry = list; *entry != '\0';) {
        size_t length = strcspn(entry, ",");
        bool fits = length > 4 && length - 4 < PATH_MAX && entry[3] == '=' &&
                    (*type == '\0' || strncmp(entry, type, 3) == 0);
        if (fits && index-- == 0) {
            memcpy(node, entry + 4, length - 4);
            node[length - 4] = '\0';
            return true;
        }
        entry += length + (entry[length] == ',');
    }
    return false;
}

/* Without a list there is one device, and a file beside the library stands for it. */
static bool find_node(const char *wanted, char node[PATH_MAX], bool *listed) {
    char type[4];
    long index;
    if (!parse_device(wanted, type, &index)) return false;
    const char *list = variable("EDGETPU_STANDIN_DEVICES");
    *listed = list != NULL;
    if (list == NULL) {
        Dl_info library;
        return index <= 0 && dladdr(&opened, &library) != 0 &&
               snprintf(node, PATH_MAX, "%s.lock", library.dli_fname) < PATH_MAX;
    }
    if (*wanted == '\0' && find_listed(list, "pci", 0, node)) return true;
    return find_listed(list, type, index < 0 ? 0 : index, node);
}

static bool open_file(Device *device, bool exclusive) {
    if (device->file < 0 && (device->listed || exclusive))
        device->file = open(device->node, O_RDWR | O_CLOEXEC | (device->listed ? 0 : O_CREAT), 0600);
    if (device->file < 0) return !device->listed && !exclusive;
    return !exclusive || flock(device->file, LOCK_EX | LOCK_NB) == 0;
}

/* Lets go of a device that no delegate uses any more. */
static void close_device(Device *device) {
    if (device->delegates > 0) return;
    Device **place = &opened;
    while (*place != device) place = &(*place)->next;
    *place = device->next;
    if (device->file >= 0) close(device->file);
    free(device);
}

/* Within a process a device is shared: its file is opened once, and closed with the last delegate. */
static Device *open_device(const char *wanted, bool exclusive) {
    char node[PATH_MAX];
    bool listed;
    if (!find_node(wanted, node, &listed)) return NULL;
    Device *device = opened;
    while (device != NULL && strcmp(device->node, node) != 0) device = device->next;
    if (device == NULL) {
        device = calloc(1, sizeof *device);
        if (device == NULL) return NULL;
        strcpy(device->node, node);
        device->listed = listed;
        device->file = -1;
        device->next = opened;
        opened = device;
    }
    bool there = !listed || access(node, F_OK) == 0;
    if (there && open_file(device, exclusive)) return device;
    close_device(device);
    return NULL;
}

/* ---- the log ---- */

typedef struct {
    char **keys;
    char **values;
    int count;
} Options;

typedef struct {
    Delegate delegate; /* comes first: a pointer to it is one to the whole */
    Device *device;
    unsigned number;
    atomic_uint kernels;
} Opening;

static void write_text(FILE *out, const char *text) {
    fputc('"', out);
    for (; *text != '\0'; text++)
        if ((unsigned char)*text < ' ' || *text == '"' || *text == '\\')
            fprintf(out, "\\u%04x", (unsigned char)*text);
        else
            fputc(*text, out);
    fputc('"', out);
}

static void write_options(FILE *out, const Options *options) {
    fputs(", \"options\": {", out);
    for (int i = 0; i < options->count; i++) {
        if (i > 0) fputs(", ", out);
        write_text(out, options->keys[i]);
        fputs(": ", out);
        write_text(out, options->values[i]);
    }
    fputc('}', out);
}

/* `options` and `opening` may be NULL. A line is written at once, so those of several processes do not mix. */
static void log_event(const char *event, const Opening *opening, const Options *options) {
    const char *path = variable("EDGETPU_STANDIN_LOG");
    if (path == NULL) return;
    char *line = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&line, &length);
    if (out == NULL) return;
    fprintf(out, "{\"event\": \"%s\", \"pid\": %d", event, (int)getpid());
    if (opening != NULL) fprintf(out, ", \"delegate\": %u", opening->number);
    if (options != NULL) write_options(out, options);
    if (options != NULL && opening != NULL) {
        fputs(", \"node\": ", out);
        write_text(out, opening->device->node);
    }
    if (strcmp(event, "destroy") == 0) fprintf(out, ", \"kernels\": %u", opening->kernels);
    fputs("}\n", out);
    fclose(out);
    int file = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || write(file, line, length) != (ssize_t)length) perror("edgetpu stand-in: EDGETPU_STANDIN_LOG");
    if (file >= 0) close(file);
    free(line);
}

/* ---- the kernel that takes the place of each custom operation ---- */

static void without_core_file(void) { setrlimit(RLIMIT_CORE, &(struct rlimit){0, 0}); }

static int failure(Context *context, const char *reason) {
    context->report_error(context, "edgetpu stand-in: %s", reason);
    return STATUS_ERROR;
}

static void crash(void) {
    without_core_file();
    signal(SIGSEGV, SIG_DFL);
    raise(SIGSEGV);
}

static int misbehave(Context *context, Mode mode) {
    switch (mode) {
    case HANG:
    case STUCK:
        for (;;) pause();
    case ABORT:
        without_core_file();
        fputs("edgetpu stand-in: aborts, as the driver does on a USB fault\n", stderr);
        abort();
    case SEGV:
        crash();
        return STATUS_ERROR;
    case UNPLUG:
        unplugged = true;
        return failure(context, "the device was unplugged");
    case ABSENT:
        return failure(context, "there is no device");
    case FAIL:
        return failure(context, "this invoke fails");
    case MODES:
        return failure(context, "EDGETPU_STANDIN_STATE holds none of the modes that edgetpu_standin.c knows");
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

/* For a delegate's kernel the buffer is what the runtime knows of the nodes that it replaces. */
static void *kernel_init(Context *context, const char *buffer, size_t length) {
    (void)context;
    (void)length;
    Opening *opening = ((const DelegateParams *)(const void *)buffer)->delegate->data;
    opening->kernels++;
    return opening;
}

static void kernel_free(Context *context, void *user_data) {
    (void)context;
    Opening *opening = user_data;
    opening->kernels--;
    log_event("release", opening, NULL);
}

static int kernel_prepare(Context *context, Node *node) {
    if (mode_is(MISMATCH_SEGV)) crash();
    for (int i = 0; i < node->outputs->size; i++) {
        int type = context->tensors[node->outputs->data[i]].type;
        if (type == TYPE_UINT8 || type == TYPE_INT8 || type == TYPE_FLOAT32) continue;
        context->report_error(context, "edgetpu stand-in: output %d has type %d, which it cannot fill", i, type);
        return STATUS_ERROR;
    }
    return STATUS_OK;
}

static int check_device(Context *context, const Opening *opening) {
    const Device *device = opening->device;
    if (device->listed && access(device->node, F_OK) != 0) return failure(context, "the device was unplugged");
    unsigned long after;
    Mode mode = mode_now(&after);
    if (mode == SLOW) wait_delay();
    return atomic_fetch_add(&invokes, 1) >= after ? misbehave(context, mode) : STATUS_OK;
}

static int kernel_invoke(Context *context, Node *node) {
    const Opening *opening = node->delegate->data;
    int status = check_device(context, opening);
    if (status != STATUS_OK) {
        log_event("fail", opening, NULL);
        return status;
    }
    uint64_t sum = 0;
    for (int i = 0; i < node->inputs->size; i++) sum += sum_of_bytes(&context->tensors[node->inputs->data[i]]);
    for (int i = 0; i < node->outputs->size; i++) answer(&context->tensors[node->outputs->data[i]], sum);
    return STATUS_OK;
}

/* ---- the delegate ---- */

static int replace_node(Context *context, Delegate *delegate, int index) {
    Registration kernel = {
        .init = kernel_init,
        .free = kernel_free,
        .prepare = kernel_prepare,
        .invoke = kernel_invoke,
        .custom_name = "EdgeTpuDelegateForCustomOp",
        .version = 1,
    };
    static char nothing[4096];
    if (mode_is(MISMATCH_UNRESOLVED)) kernel.replacement = nothing;
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

static const char *find_option(const Options *options, const char *key) {
    const char *value = "";
    for (int i = 0; i < options->count; i++)
        if (strcmp(options->keys[i], key) == 0) value = options->values[i];
    return value;
}

/* NULL where there is no such device, or it cannot be opened now. */
static Device *reach_device(const Options *options, ReportError report_error) {
    unsigned long after;
    Mode mode = mode_now(&after);
    if (mode == MODES) report_error("EDGETPU_STANDIN_STATE holds none of the modes that edgetpu_standin.c knows");
    if (mode == SLOW_OPEN) wait_delay();
    if (mode == MODES || mode == ABSENT || mode == STUCK || unplugged) return NULL;
    return open_device(find_option(options, "device"), mode == EXCLUSIVE);
}

static Opening *make_delegate(Device *device) {
    static unsigned made;
    Opening *opening = calloc(1, sizeof *opening);
    if (opening == NULL) abort();
    opening->delegate.data = opening;
    opening->delegate.prepare = delegate_prepare;
    opening->delegate.flags = ALLOW_DYNAMIC_TENSORS;
    opening->device = device;
    opening->number = ++made;
    device->delegates++;
    return opening;
}

/* The runtime declares the count as size_t, its Python side passes an int: only the lower half is sure. */
EXPORT Delegate *tflite_plugin_create_delegate(char **keys, char **values, size_t count, ReportError report_error) {
    if (!read_environment(report_error)) return NULL;
    Options options = {keys, values, (int)count};
    Device *device = reach_device(&options, report_error);
    if (device == NULL) {
        log_event("refuse", NULL, &options);
        report_error("");
        return NULL;
    }
    Opening *opening = make_delegate(device);
    log_event("create", opening, &options);
    return &opening->delegate;
}

/* Python calls this with NULL where no delegate could be created. */
EXPORT void tflite_plugin_destroy_delegate(Delegate *delegate) {
    if (delegate == NULL) return;
    Opening *opening = delegate->data;
    log_event("destroy", opening, NULL);
    opening->device->delegates--;
    close_device(opening->device);
    opening->device = NULL;
    if (opening->kernels == 0) free(opening); /* else an interpreter is still going to release them */
}
