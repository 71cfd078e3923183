/* What tests may do to the fake device and ask of it. None of this has a counterpart in the driver. */
#define _GNU_SOURCE
#include "machine.h"

#include <string.h>

#define EXCLUSIVELY(statement) (pthread_mutex_lock(&lock), (statement), leave(OK))

static int with_stream(void *handle, void (*change)(Stream *, int), int argument) {
    pthread_mutex_lock(&lock);
    Stream *found = handle == (void *)-1 ? NULL : find_stream(handle);
    for (Stream *stream = streams; stream; stream = stream->next)
        if (stream == found || (handle == (void *)-1 && !stream->is_legacy)) change(stream, argument);
    pthread_cond_broadcast(&changed);
    return leave(found || handle == (void *)-1 ? OK : INVALID_HANDLE);
}

static void set_held(Stream *stream, int held) { stream->held = held, stream->grants = 0; }
static void add_grants(Stream *stream, int n) { stream->grants += n; }

/* Streams by handle; -1: all that were created */
int fake_hold(void *stream) { return with_stream(stream, set_held, 1); }
int fake_release(void *stream) { return with_stream(stream, set_held, 0); }
int fake_step(void *stream, int n) { return with_stream(stream, add_grants, n); }
void fake_hold_new(int held) { EXCLUSIVELY(hold_new = held); }

size_t fake_streams(uint64_t *handles, int *priorities, size_t n) {
    size_t found = 0;
    pthread_mutex_lock(&lock);
    for (Stream *stream = streams; stream; stream = stream->next)
        if (!stream->is_legacy && !stream->destroyed) {
            if (found < n) handles[found] = (uint64_t)stream, priorities[found] = stream->priority;
            found++;
        }
    leave(OK);
    return found;
}

int fake_fail_call(const char *name, int after, int times, int code) {
    pthread_mutex_lock(&lock);
    return leave(fail_call(name, after, times, code));
}

int fake_fail_copy_to(uint64_t address, int code) {
    pthread_mutex_lock(&lock);
    return leave(fail_copy_to(address, code));
}

int fake_begin_capture(void *stream, int mode) {
    pthread_mutex_lock(&lock);
    return leave(begin_capture(find_stream(stream), mode));
}

int fake_end_capture(void *stream) {
    pthread_mutex_lock(&lock);
    return leave(end_capture(find_stream(stream)));
}

/* Let memory that exists count as device memory, or no longer. */
int fake_adopt(uint64_t address, uint64_t nbytes) {
    pthread_mutex_lock(&lock);
    Context *context = current_context();
    return leave(add_range(context ? context : &contexts[0], ADOPTED_MEMORY, address, nbytes));
}

int fake_disown(uint64_t address) {
    pthread_mutex_lock(&lock);
    return leave(remove_range(ADOPTED_MEMORY, address));
}

/* A kernel that copies as the descriptor arrays say when it runs; one that fills memory with a byte. */
int fake_launch_copies(void *handle, uint64_t dsts, uint64_t srcs, uint64_t sizes, size_t n) {
    pthread_mutex_lock(&lock);
    Stream *stream = find_stream(handle);
    if (!stream || !n) return leave(stream ? INVALID_VALUE : INVALID_HANDLE);
    Op *op = new_op(KERNEL_COPY, n);
    op->dst = (uint64_t *)dsts, op->src = (uint64_t *)srcs, op->sizes = (uint64_t *)sizes;
    op->unit = 1;
    submit(stream, op);
    return leave(OK);
}

int fake_launch_fill(void *handle, uint64_t address, uint64_t nbytes, int value) {
    pthread_mutex_lock(&lock);
    Stream *stream = find_stream(handle);
    if (!stream) return leave(INVALID_HANDLE);
    Op *op = new_op(FILL, 1);
    op->dst[0] = address, op->sizes[0] = nbytes, op->value = (uint32_t)value;
    submit(stream, op);
    return leave(OK);
}

void fake_set_devices(int n) { EXCLUSIVELY(n_devices = n); }
void fake_set_driver_version(int version) { EXCLUSIVELY(driver_version = version); }
void fake_limit_registration(uint64_t one_call, uint64_t total) {
    EXCLUSIVELY((register_limit = one_call, registered_limit = total));
}

static uint64_t sum(MemoryKind kind, int bytes) {
    uint64_t total = 0;
    for (Range *range = ranges; range; range = range->next)
        if (range->kind == kind) total += bytes ? range->nbytes : 1;
    return total;
}

static uint64_t count_of(const char *what) {
    uint64_t total = 0;
    if (!strcmp(what, "registrations")) return sum(REGISTERED_MEMORY, 0);
    if (!strcmp(what, "registered_bytes")) return sum(REGISTERED_MEMORY, 1);
    if (!strcmp(what, "pinned_allocations")) return sum(PINNED_MEMORY, 0);
    if (!strcmp(what, "pinned_bytes")) return sum(PINNED_MEMORY, 1);
    if (!strcmp(what, "device_allocations")) return sum(DEVICE_MEMORY, 0);
    if (!strcmp(what, "device_bytes")) return sum(DEVICE_MEMORY, 1);
    if (!strcmp(what, "modules")) return n_modules;
    if (!strcmp(what, "violations")) return violations;
    if (!strcmp(what, "captured_operations")) return captured_operations;
    if (!strcmp(what, "store_bytes_in_flight")) return bytes_in_flight[0];
    if (!strcmp(what, "load_bytes_in_flight")) return bytes_in_flight[1];
    if (!strcmp(what, "peak_store_bytes_in_flight")) return peak_bytes_in_flight[0];
    if (!strcmp(what, "peak_load_bytes_in_flight")) return peak_bytes_in_flight[1];
    if (!strcmp(what, "events")) {
        for (Event *event = events; event; event = event->next) total++;
        return total;
    }
    if (!strcmp(what, "contexts")) {
        for (int i = 0; i < MAX_DEVICES; i++) total += contexts[i].retained > 0;
        return total;
    }
    int of_streams = !strcmp(what, "streams"), of_threads = !strcmp(what, "stream_threads");
    if (!of_streams && !of_threads && strcmp(what, "queued_operations")) return UINT64_MAX;
    for (Stream *stream = streams; stream; stream = stream->next) {
        if (of_threads) total++;
        else if (of_streams) total += !stream->destroyed && !stream->is_legacy;
        else for (Op *op = stream->head; op; op = op->next) total++;
    }
    return total;
}

uint64_t fake_count(const char *what) {
    pthread_mutex_lock(&lock);
    uint64_t total = count_of(what);
    leave(OK);
    return total;
}

uint64_t fake_calls(const char *name) {
    pthread_mutex_lock(&lock);
    uint64_t total = calls_of(name);
    leave(OK);
    return total;
}

size_t fake_executed(Executed *out, size_t n) {
    pthread_mutex_lock(&lock);
    size_t total = executed(out, n);
    leave(OK);
    return total;
}

/* Wait until no stream has anything that it could do now. */
void fake_settle(void) {
    pthread_mutex_lock(&lock);
    for (int busy = 1; busy;) {
        busy = 0;
        for (Stream *stream = streams; stream && !busy; stream = stream->next) {
            Op *op = stream->head;
            int dropping = stream->aborted || stream->context->sticky;
            busy = op && (dropping || ((!stream->held || stream->grants) && (op->kind != WAIT || op->mark->done)));
            busy |= op && op->running;
        }
        if (busy) pthread_cond_wait(&changed, &lock);
    }
    leave(OK);
}

void fake_reset(void) {
    pthread_mutex_lock(&lock);
    reset_everything();
    n_devices = 1;
    driver_version = 13000;
    leave(OK);
}
