/* Memory of the fake device: which addresses are device memory, pinned or registered, and copies between them. */
#define _GNU_SOURCE
#include "machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

Range *ranges;
uint64_t violations, register_limit, registered_limit;

enum { POISON_AT_MOST = 16 << 20 };

/* As a device does, survives addresses that are not mapped. */
int read_bytes(char *to, uint64_t from, size_t nbytes) {
    static int forbidden;
    while (nbytes && !forbidden) {
        struct iovec dst = {to, nbytes}, src = {(void *)from, nbytes};
        ssize_t n = process_vm_readv(getpid(), &dst, 1, &src, 1, 0);
        if (n < 0 && (errno == EPERM || errno == ENOSYS)) forbidden = 1;
        else if (n <= 0) return ILLEGAL_ADDRESS;
        else to += n, from += n, nbytes -= n;
    }
    memcpy(to, (void *)from, nbytes);
    return OK;
}

static int is_ours(MemoryKind kind) { return kind == DEVICE_MEMORY || kind == PINNED_MEMORY; }

static uint64_t whole_pages(uint64_t nbytes) { return (nbytes + PAGE - 1) / PAGE * PAGE; }

Range *range_of(uint64_t address) {
    for (Range *range = ranges; range; range = range->next)
        if (address - range->base < range->nbytes) return range;
    return NULL;
}

int check_operand(uint64_t address, uint64_t nbytes, int *pageable, int *on_device) {
    if (!address || address + nbytes < address) return INVALID_VALUE;
    Range *range = range_of(address);
    if (range) {
        *on_device = range->kind == DEVICE_MEMORY || range->kind == ADOPTED_MEMORY;
        return address - range->base + nbytes <= range->nbytes ? OK : INVALID_VALUE;
    }
    *pageable = 1;
    *on_device = 0;
    for (range = ranges; range; range = range->next)
        if (address < range->base + range->nbytes && range->base < address + nbytes) return INVALID_VALUE;
    return OK;
}

static int overlaps_pinned(uint64_t base, uint64_t end) {
    for (Range *range = ranges; range; range = range->next)
        if (range->kind == REGISTERED_MEMORY || range->kind == PINNED_MEMORY) {
            uint64_t first = range->base / PAGE * PAGE, last = whole_pages(range->base + range->nbytes);
            if (base < last && first < end) return 1;
        }
    return 0;
}

int add_range(Context *context, MemoryKind kind, uint64_t base, uint64_t nbytes) {
    if (!base || !nbytes) return INVALID_VALUE;
    if (kind == REGISTERED_MEMORY) {
        uint64_t first = base / PAGE * PAGE, end = whole_pages(base + nbytes), total = nbytes;
        for (Range *range = ranges; range; range = range->next)
            if (range->kind == REGISTERED_MEMORY) total += range->nbytes;
        if (register_limit && nbytes > register_limit) return OUT_OF_MEMORY;
        if (registered_limit && total > registered_limit) return OUT_OF_MEMORY;
        if (overlaps_pinned(first, end)) return ALREADY_REGISTERED;
        if (msync((void *)first, end - first, MS_ASYNC)) return INVALID_VALUE; /* not mapped */
    }
    Range *range = malloc(sizeof *range);
    *range = (Range){ranges, kind, base, nbytes, context};
    ranges = range;
    return OK;
}

int allocate(Context *context, MemoryKind kind, uint64_t nbytes, uint64_t *address) {
    if (!nbytes) return INVALID_VALUE;
    void *memory = mmap(NULL, whole_pages(nbytes), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return OUT_OF_MEMORY;
    if (nbytes <= POISON_AT_MOST) memset(memory, 0xCD, nbytes);
    *address = (uint64_t)memory;
    return add_range(context, kind, *address, nbytes);
}

static int touches(const Op *op, const Range *range) {
    for (size_t i = 0; op->kind != KERNEL_COPY && i < op->n; i++) {
        if (op->dst && op->dst[i] - range->base < range->nbytes) return 1;
        if (op->src && op->src[i] - range->base < range->nbytes) return 1;
    }
    if (op->kind == KERNEL_COPY) /* the arrays it will read */
        return (uint64_t)op->dst - range->base < range->nbytes || (uint64_t)op->src - range->base < range->nbytes ||
               (uint64_t)op->sizes - range->base < range->nbytes;
    return 0;
}

int remove_range(MemoryKind kind, uint64_t base) {
    for (Range **at = &ranges; *at; at = &(*at)->next) {
        Range *range = *at;
        if (range->kind != kind || range->base != base) continue;
        int used = 0;
        for (Stream *stream = streams; stream && !used; stream = stream->next)
            for (Op *op = stream->aborted || stream->context->sticky ? NULL : stream->head; op && !used; op = op->next)
                used = touches(op, range);
        violations += used;
        *at = range->next;
        if (is_ours(kind)) munmap((void *)range->base, whole_pages(range->nbytes));
        free(range);
        return OK;
    }
    return INVALID_VALUE;
}
