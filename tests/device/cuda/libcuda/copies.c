/* The driver's copies, over the fake device of machine.h.
 *
 * A source that the driver may read out of order is read when the copy is submitted: the earliest moment allowed, at
 * which an ordering mistake shows. Copies of pageable memory block the caller until they are done.
 */
#define _GNU_SOURCE
#include "declarations.h"
#include "machine.h"

#include <stdlib.h>
#include <string.h>

enum { STREAM_ORDER = 1, DURING_CALL = 2, ANY_ORDER = 3, SYMBOL_NOT_FOUND = 1 };

#define RESULT(code) ((CUresult)leave(code))

static int check_attributes(const CUmemcpyAttributes *attrs, const size_t *starts, size_t n, size_t count) {
    if (!attrs || !starts || !n || n > count || starts[0]) return INVALID_VALUE;
    for (size_t k = 0; k < n; k++) {
        int order = (int)attrs[k].srcAccessOrder;
        if (order < STREAM_ORDER || order > ANY_ORDER || attrs[k].flags > 1) return INVALID_VALUE;
        if (k && (starts[k] <= starts[k - 1] || starts[k] >= count)) return INVALID_VALUE;
    }
    return OK;
}

static int add_copy(Op *op, size_t i, uint64_t dst, uint64_t src, uint64_t nbytes, int *pageable) {
    int on_device;
    if (!nbytes || check_operand(src, nbytes, pageable, &on_device)) return INVALID_VALUE;
    if (check_operand(dst, nbytes, pageable, &on_device)) return INVALID_VALUE;
    op->dst[i] = dst, op->src[i] = src, op->sizes[i] = nbytes;
    op->nbytes += nbytes;
    op->to_device = on_device;
    return OK;
}

static void abandon(Op *op) {
    for (size_t i = 0; i < op->n; i++) free(op->early[i]);
    free(op->dst), free(op->src), free(op->sizes), free(op->early), free(op);
}

static int batch(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count, CUmemcpyAttributes *attrs,
                 size_t *starts, size_t n_attrs, size_t *bad, CUstream handle) {
    *bad = SIZE_MAX;
    if ((uint64_t)handle <= 1) return INVALID_VALUE;
    Stream *stream = find_stream(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return CAPTURE_UNSUPPORTED;
    if (!count || !dsts || !srcs || !sizes) return INVALID_VALUE;
    int code = check_attributes(attrs, starts, n_attrs, count), pageable = 0;
    if (code) return code;
    Op *op = new_op(COPY, count);
    size_t k = 0;
    for (size_t i = 0; i < count && !code; i++) {
        if (k + 1 < n_attrs && i == starts[k + 1]) k++;
        code = add_copy(op, i, dsts[i], srcs[i], sizes[i], &pageable);
        if (code) *bad = i;
        else if ((int)attrs[k].srcAccessOrder != STREAM_ORDER) {
            op->early[i] = malloc(sizes[i]);
            if (read_bytes(op->early[i], srcs[i], sizes[i])) code = stream->context->sticky = ILLEGAL_ADDRESS;
        }
    }
    if (code) {
        abandon(op);
        return code;
    }
    submit(stream, op);
    return pageable ? drain_stream(stream) : OK;
}

CUresult cuMemcpyBatchAsync(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                            CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, size_t *failIdx,
                            CUstream hStream) {
    int code = enter("cuMemcpyBatchAsync", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) code = failIdx ? batch(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, failIdx, hStream) : INVALID_VALUE;
    return RESULT(code);
}

CUresult cuMemcpyBatchAsync_v2(CUdeviceptr *dsts, CUdeviceptr *srcs, size_t *sizes, size_t count,
                               CUmemcpyAttributes *attrs, size_t *attrsIdxs, size_t numAttrs, CUstream hStream) {
    size_t bad;
    int code = enter("cuMemcpyBatchAsync_v2", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) code = batch(dsts, srcs, sizes, count, attrs, attrsIdxs, numAttrs, &bad, hStream);
    return RESULT(code);
}

CUresult cuGetProcAddress_v2(const char *symbol, void **pfn, int cudaVersion, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *symbolStatus) {
    (void)flags;
    int code = enter("cuGetProcAddress_v2", EVEN_UNINITIALISED);
    if (!code) {
        int wanted = !strcmp(symbol, "cuMemcpyBatchAsync") && cudaVersion >= 12080 && cudaVersion <= driver_version;
        *pfn = !wanted ? NULL : cudaVersion >= 13000 ? (void *)cuMemcpyBatchAsync_v2 : (void *)cuMemcpyBatchAsync;
        *symbolStatus = (CUdriverProcAddressQueryResult)(wanted ? 0 : SYMBOL_NOT_FOUND);
    }
    return RESULT(code);
}

CUresult cuMemcpyAsync(CUdeviceptr dst, CUdeviceptr src, size_t ByteCount, CUstream hStream) {
    int code = enter("cuMemcpyAsync", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE), pageable = 0;
    Stream *stream = code ? NULL : find_stream(hStream);
    if (code || !ByteCount) return RESULT(code);
    if (!stream) return RESULT(INVALID_HANDLE);
    Op *op = new_op(COPY, 1);
    code = add_copy(op, 0, dst, src, ByteCount, &pageable);
    if (code) abandon(op);
    else {
        int captured = stream->capture;
        submit(stream, op);
        if (pageable && !captured) code = drain_stream(stream);
    }
    return RESULT(code);
}
