/* A device made of host memory and threads: what the fake driver's entry points and the tests' controls share.
 *
 * One lock guards everything. A stream is a thread with a queue of operations; bytes are moved without the lock.
 */
#pragma once

#include <pthread.h>
#include <stddef.h>
#include <stdint.h>

enum { MAX_DEVICES = 8, PAGE = 4096, NO_INDEX = -1 };

enum {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEINITIALIZED = 4,
    INVALID_DEVICE = 101,
    INVALID_CONTEXT = 201,
    INVALID_HANDLE = 400,
    NOT_READY = 600,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    ALREADY_REGISTERED = 712,
    NOT_REGISTERED = 713,
    MISALIGNED_ADDRESS = 716,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
};

typedef struct Stream Stream;

typedef struct Context {
    int retained;
    int sticky; /* the code of an asynchronous failure; every later call returns it */
    Stream *legacy;
} Context;

/* What one record of an event stands for; outlives the event while streams or threads wait for it. */
typedef struct Mark {
    int refs, done;
} Mark;

typedef struct Event {
    struct Event *next;
    Context *context;
    Mark *mark;      /* NULL: never recorded */
    int captured_in; /* the capture in which it was recorded last, 0: none */
} Event;

typedef enum { COPY, KERNEL_COPY, FILL, RECORD, WAIT } Kind;

typedef struct Op {
    struct Op *next;
    Kind kind;
    size_t n;                    /* copies */
    uint64_t *dst, *src, *sizes; /* of a KERNEL_COPY: arrays of the caller, read when it runs */
    char **early;                /* per copy: its source bytes if they were read at submission */
    uint64_t nbytes;
    uint64_t unit; /* of a KERNEL_COPY: bytes that its sizes count */
    int to_device; /* direction, for the bytes in flight */
    int running;   /* taken up by its stream: a hold comes too late for it */
    uint32_t value;
    Mark *mark;
} Op;

struct Stream {
    Stream *next;
    Context *context;
    int priority, capture, is_legacy;
    int held, grants;        /* held: no operation starts without a grant */
    int destroyed, aborted;  /* destroyed: ends when empty; aborted: what is queued is dropped */
    Op *head, *tail;         /* the head may be running */
};

typedef enum { DEVICE_MEMORY, ADOPTED_MEMORY, PINNED_MEMORY, REGISTERED_MEMORY } MemoryKind;

typedef struct Range {
    struct Range *next;
    MemoryKind kind;
    uint64_t base, nbytes;
    Context *context;
} Range;

typedef struct Capture {
    int id, mode, thread, invalidated;
} Capture;

typedef struct Executed {
    uint64_t stream, dst, src, n, nbytes;
} Executed;

extern pthread_mutex_t lock;
extern pthread_cond_t changed;
extern Context contexts[MAX_DEVICES];
extern Stream *streams;
extern Event *events;
extern Range *ranges;
extern int epoch, n_devices, driver_version, hold_new;
extern uint64_t n_modules, violations, bytes_in_flight[2], peak_bytes_in_flight[2], captured_operations;
extern uint64_t register_limit, registered_limit; /* bytes of one call, and of all registrations */

enum { NEEDS_CONTEXT = 1, UNSAFE_IN_CAPTURE = 2, EVEN_UNINITIALISED = 4 };

/* Take the lock, count the call, and tell the code that keeps it from having an effect, 0 if none does. */
int enter(const char *name, int needs);
int leave(int code);
uint64_t calls_of(const char *name);
int fail_call(const char *name, int after, int times, int code);
int fail_copy_to(uint64_t address, int code);

int initialise(void);
Context *current_context(void);
void set_current_context(Context *context);
int *capture_mode_of_thread(void);
int thread_number(void);

Stream *new_stream(Context *context, int priority);
Stream *find_stream(void *handle); /* NULL: there is none; 0, 1 and 2 are the current context's legacy stream */
Event *find_event(void *handle);
Op *new_op(Kind kind, size_t n);
void submit(Stream *stream, Op *op);
int wait_for_mark(Context *context, Mark *mark);
int drain_stream(Stream *stream);
Mark *new_mark(void);
void drop_mark(Mark *mark);
void destroy_context(Context *context);
void reset_everything(void);
size_t executed(Executed *out, size_t n);

int read_bytes(char *to, uint64_t from, size_t nbytes); /* 0, or ILLEGAL_ADDRESS */
int allocate(Context *context, MemoryKind kind, uint64_t nbytes, uint64_t *address);
int add_range(Context *context, MemoryKind kind, uint64_t base, uint64_t nbytes);
int remove_range(MemoryKind kind, uint64_t base); /* 0, or INVALID_VALUE; memory that copies still use is noted */
Range *range_of(uint64_t address);
int check_operand(uint64_t address, uint64_t nbytes, int *pageable, int *on_device);

Capture *find_capture(int id);
int forbidden_by_capture(void); /* whether this thread's call is; spoils the captures that forbid it */
int begin_capture(Stream *stream, int mode);
int end_capture(Stream *stream);
