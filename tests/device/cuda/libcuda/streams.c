/* Streams of the fake device: threads that work off queues, marks that streams and threads wait for, and captures. */
#define _GNU_SOURCE
#include "machine.h"

#include <stdlib.h>
#include <string.h>

pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
Context contexts[MAX_DEVICES];
Stream *streams;
Event *events;
int hold_new;
uint64_t bytes_in_flight[2], peak_bytes_in_flight[2], captured_operations;

enum { KEPT = 1 << 16, MAX_FAULTS = 64, MAX_CAPTURES = 8 };

static Executed kept[KEPT];
static size_t n_kept;
static struct { uint64_t address; int code; } faults[MAX_FAULTS];
static int n_faults;
static Capture captures[MAX_CAPTURES];
static int last_capture;

/* Marks */

Mark *new_mark(void) {
    Mark *mark = calloc(1, sizeof *mark);
    mark->refs = 1;
    return mark;
}

void drop_mark(Mark *mark) {
    if (mark && --mark->refs == 0) free(mark);
}

int wait_for_mark(Context *context, Mark *mark) {
    int began_in = epoch;
    mark->refs++;
    while (!mark->done && !context->sticky && epoch == began_in) pthread_cond_wait(&changed, &lock);
    drop_mark(mark);
    return epoch == began_in ? context->sticky : DEINITIALIZED;
}

int drain_stream(Stream *stream) {
    Context *context = stream->context;
    Op *op = new_op(RECORD, 0);
    Mark *mark = op->mark = new_mark();
    mark->refs++;
    submit(stream, op);
    int code = wait_for_mark(context, mark);
    drop_mark(mark);
    return code;
}

/* Operations */

Op *new_op(Kind kind, size_t n) {
    Op *op = calloc(1, sizeof *op);
    op->kind = kind;
    op->n = n;
    if (n && kind != KERNEL_COPY) {
        op->dst = calloc(n, sizeof *op->dst);
        op->src = calloc(n, sizeof *op->src);
        op->sizes = calloc(n, sizeof *op->sizes);
        op->early = calloc(n, sizeof *op->early);
    }
    return op;
}

static void free_op(Op *op) {
    drop_mark(op->mark);
    if (op->kind != KERNEL_COPY) {
        for (size_t i = 0; i < op->n; i++) free(op->early[i]);
        free(op->dst), free(op->src), free(op->sizes), free(op->early);
    }
    free(op);
}

void submit(Stream *stream, Op *op) {
    if (stream->capture) { /* it goes into the graph, and does not run */
        captured_operations++;
        if (op->mark) op->mark->done = 1;
        free_op(op);
        return;
    }
    uint64_t *in_flight = &bytes_in_flight[op->to_device], *peak = &peak_bytes_in_flight[op->to_device];
    *in_flight += op->nbytes;
    if (*in_flight > *peak) *peak = *in_flight;
    *(stream->head ? &stream->tail->next : &stream->head) = op;
    stream->tail = op;
    pthread_cond_broadcast(&changed);
}

static int kernel_may_use(uint64_t address, uint64_t nbytes) {
    int pageable = 0, on_device;
    pthread_mutex_lock(&lock);
    int code = check_operand(address, nbytes, &pageable, &on_device);
    pthread_mutex_unlock(&lock);
    return !code && !pageable;
}

static int kernel_copy(uint64_t dst, uint64_t src, uint64_t nbytes, uint64_t unit) {
    if (dst % unit || src % unit) return MISALIGNED_ADDRESS;
    if (nbytes && !(kernel_may_use(dst, nbytes) && kernel_may_use(src, nbytes))) return ILLEGAL_ADDRESS;
    return read_bytes((char *)dst, src, nbytes);
}

static int perform(const Op *op) {
    int code = OK;
    for (size_t i = 0; i < op->n && !code; i++) {
        if (op->kind == FILL) memset((void *)op->dst[i], (int)op->value, op->sizes[i]);
        else if (op->kind == COPY && op->early[i]) memcpy((void *)op->dst[i], op->early[i], op->sizes[i]);
        else if (op->kind == KERNEL_COPY) code = kernel_copy(op->dst[i], op->src[i], op->sizes[i] * op->unit, op->unit);
        else code = read_bytes((char *)op->dst[i], op->src[i], op->sizes[i]);
    }
    return code;
}

static int injected_fault(const Op *op) {
    for (size_t i = 0; i < op->n; i++)
        for (int k = 0; k < n_faults; k++)
            if (faults[k].address - op->dst[i] < op->sizes[i] * (op->kind == KERNEL_COPY ? op->unit : 1)) return faults[k].code;
    return OK;
}

int fail_copy_to(uint64_t address, int code) {
    if (n_faults == MAX_FAULTS) return OUT_OF_MEMORY;
    faults[n_faults].address = address;
    faults[n_faults++].code = code;
    return OK;
}

static void keep(const Stream *stream, const Op *op) {
    if (op->n && n_kept < KEPT) {
        uint64_t handle = stream->is_legacy ? 0 : (uint64_t)stream;
        uint64_t nbytes = 0, unit = op->kind == KERNEL_COPY ? op->unit : 1;
        for (size_t i = 0; i < op->n; i++) nbytes += op->sizes[i] * unit;
        kept[n_kept++] = (Executed){handle, op->dst[0], op->src[0], op->n, nbytes};
    }
}

size_t executed(Executed *out, size_t n) {
    if (out) memcpy(out, kept, (n < n_kept ? n : n_kept) * sizeof *out);
    return n_kept;
}

/* Streams */

static void *work(void *argument) {
    Stream *stream = argument;
    pthread_mutex_lock(&lock);
    while (stream->head || !stream->destroyed) {
        Op *op = stream->head;
        int dropping = stream->aborted || stream->context->sticky;
        int blocked = !op || (!dropping && ((stream->held && !stream->grants) || (op->kind == WAIT && !op->mark->done)));
        if (blocked) {
            pthread_cond_wait(&changed, &lock);
            continue;
        }
        if (!dropping) {
            if (stream->held) stream->grants--;
            int code = injected_fault(op);
            op->running = 1;
            if (!code && op->n) {
                pthread_mutex_unlock(&lock);
                code = perform(op);
                pthread_mutex_lock(&lock);
            }
            if (code) stream->context->sticky = code;
            else keep(stream, op);
        }
        if (op->kind == RECORD) op->mark->done = 1;
        bytes_in_flight[op->to_device] -= op->nbytes;
        stream->head = op->next;
        free_op(op);
        pthread_cond_broadcast(&changed);
    }
    for (Stream **at = &streams; *at; at = &(*at)->next)
        if (*at == stream) {
            *at = stream->next;
            break;
        }
    free(stream);
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    return NULL;
}

Stream *new_stream(Context *context, int priority) {
    Stream *stream = calloc(1, sizeof *stream);
    stream->context = context;
    stream->priority = priority < -5 ? -5 : priority > 0 ? 0 : priority;
    stream->held = hold_new;
    pthread_t thread;
    pthread_attr_t detached;
    pthread_attr_init(&detached);
    pthread_attr_setdetachstate(&detached, PTHREAD_CREATE_DETACHED);
    pthread_attr_setstacksize(&detached, 256 << 10);
    int failed = pthread_create(&thread, &detached, work, stream);
    pthread_attr_destroy(&detached);
    if (failed) {
        free(stream);
        return NULL;
    }
    stream->next = streams;
    streams = stream;
    return stream;
}

Stream *find_stream(void *handle) {
    if ((uint64_t)handle <= 2) {
        Context *context = current_context();
        if (!context) context = &contexts[0]; /* the tests' controls may come from a thread without one */
        if (!context->legacy && (context->legacy = new_stream(context, 0))) {
            context->legacy->is_legacy = 1;
            context->legacy->held = 0;
        }
        return context->legacy;
    }
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream == handle && !stream->destroyed) return stream;
    return NULL;
}

Event *find_event(void *handle) {
    for (Event *event = events; event; event = event->next)
        if (event == handle) return event;
    return NULL;
}

/* Captures */

Capture *find_capture(int id) {
    for (int i = 0; i < MAX_CAPTURES; i++)
        if (id && captures[i].id == id) return &captures[i];
    return NULL;
}

int begin_capture(Stream *stream, int mode) {
    if (!stream || stream->capture || stream->is_legacy || mode < 0 || mode > 2) return INVALID_VALUE;
    for (int i = 0; i < MAX_CAPTURES; i++)
        if (!captures[i].id) {
            captures[i] = (Capture){++last_capture, mode, thread_number(), 0};
            stream->capture = last_capture;
            return OK;
        }
    return OUT_OF_MEMORY;
}

int end_capture(Stream *stream) {
    Capture *capture = stream ? find_capture(stream->capture) : NULL;
    if (!capture) return INVALID_VALUE;
    for (Stream *other = streams; other; other = other->next)
        if (other->capture == capture->id) other->capture = 0;
    capture->id = 0;
    return capture->invalidated ? CAPTURE_INVALIDATED : OK;
}

int forbidden_by_capture(void) {
    int mode = *capture_mode_of_thread(), forbidden = 0;
    for (int i = 0; i < MAX_CAPTURES && mode != 2; i++) {
        Capture *capture = &captures[i];
        if (!capture->id || capture->mode == 2) continue;
        if (capture->thread == thread_number() || (mode == 0 && capture->mode == 0)) {
            capture->invalidated = 1;
            forbidden = 1;
        }
    }
    return forbidden;
}

/* The end of it all */

static void end_streams(Context *context) {
    int left;
    do {
        left = 0;
        for (Stream *stream = streams; stream; stream = stream->next)
            if (!context || stream->context == context) {
                stream->destroyed = stream->aborted = 1;
                left = 1;
            }
        pthread_cond_broadcast(&changed);
        if (left) pthread_cond_wait(&changed, &lock);
    } while (left);
}

void destroy_context(Context *context) {
    end_streams(context);
    for (Event **at = &events; *at;) {
        Event *event = *at;
        if (event->context != context) {
            at = &event->next;
            continue;
        }
        *at = event->next;
        drop_mark(event->mark);
        free(event);
    }
    for (Range **at = &ranges, *range = ranges; range; range = *at) {
        if (range->context == context) remove_range(range->kind, range->base);
        else at = &range->next;
    }
    *context = (Context){0};
}

void reset_everything(void) {
    epoch++;
    pthread_cond_broadcast(&changed);
    for (int i = 0; i < MAX_DEVICES; i++) destroy_context(&contexts[i]);
    memset(captures, 0, sizeof captures);
    memset(peak_bytes_in_flight, 0, sizeof peak_bytes_in_flight);
    n_faults = hold_new = 0;
    n_kept = n_modules = captured_operations = violations = register_limit = registered_limit = 0;
}
