/* What every call of the fake driver passes first: initialised, current context, injected failures, captures. */
#define _GNU_SOURCE
#include "machine.h"

#include <string.h>
#include <unistd.h>

int epoch, n_devices = 1, driver_version = 13000;

enum { MAX_NAMES = 128, MAX_FAILURES = 64 };

static struct { const char *name; uint64_t calls; } counted[MAX_NAMES];
static struct { char name[64]; int after, times, code; } failures[MAX_FAILURES];
static int n_failures, cleared_in, initialised_by;

static __thread struct { int epoch, mode, number; Context *context; } this_thread = {.epoch = -1};
static int threads_seen;

static void know_thread(void) {
    if (!this_thread.number) this_thread.number = __atomic_add_fetch(&threads_seen, 1, __ATOMIC_SEQ_CST);
    if (this_thread.epoch != epoch) {
        this_thread.epoch = epoch;
        this_thread.mode = 0;
        this_thread.context = NULL;
    }
}

int thread_number(void) { return know_thread(), this_thread.number; }
int *capture_mode_of_thread(void) { return know_thread(), &this_thread.mode; }
Context *current_context(void) { return know_thread(), this_thread.context; }
void set_current_context(Context *context) { know_thread(), this_thread.context = context; }

int initialise(void) {
    if (initialised_by && initialised_by != getpid()) return NOT_INITIALIZED; /* forked */
    initialised_by = getpid();
    return OK;
}

static void count(const char *name) {
    for (int i = 0; i < MAX_NAMES; i++) {
        if (!counted[i].name) counted[i].name = name;
        if (counted[i].name == name || !strcmp(counted[i].name, name)) {
            counted[i].calls++;
            return;
        }
    }
}

uint64_t calls_of(const char *name) {
    for (int i = 0; i < MAX_NAMES && counted[i].name; i++)
        if (!strcmp(counted[i].name, name)) return cleared_in == epoch ? counted[i].calls : 0;
    return 0;
}

static void forget_what_was_before_the_reset(void) {
    if (cleared_in == epoch) return;
    cleared_in = epoch;
    n_failures = 0;
    for (int i = 0; i < MAX_NAMES; i++) counted[i].calls = 0;
}

int fail_call(const char *name, int after, int times, int code) {
    forget_what_was_before_the_reset();
    if (n_failures == MAX_FAILURES || strlen(name) >= sizeof failures[0].name) return OUT_OF_MEMORY;
    strcpy(failures[n_failures].name, name);
    failures[n_failures].after = after;
    failures[n_failures].times = times;
    failures[n_failures++].code = code;
    return OK;
}

static int injected_failure(const char *name) {
    for (int i = 0; i < n_failures; i++) {
        if (strcmp(failures[i].name, name)) continue;
        if (failures[i].after > 0) {
            failures[i].after--;
        } else if (failures[i].times > 0) {
            failures[i].times--;
            return failures[i].code;
        }
    }
    return OK;
}

int enter(const char *name, int needs) {
    pthread_mutex_lock(&lock);
    forget_what_was_before_the_reset();
    count(name);
    int code = injected_failure(name);
    if (code) return code;
    if (!(needs & EVEN_UNINITIALISED) && initialised_by != getpid()) return NOT_INITIALIZED;
    if (needs & NEEDS_CONTEXT) {
        Context *context = current_context();
        if (!context) return INVALID_CONTEXT;
        if (!context->retained) return CONTEXT_IS_DESTROYED;
        if (context->sticky) return context->sticky;
    }
    if (needs & UNSAFE_IN_CAPTURE && forbidden_by_capture()) return CAPTURE_UNSUPPORTED;
    return OK;
}

int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}
