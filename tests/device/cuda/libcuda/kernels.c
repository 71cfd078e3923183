/* The driver's modules and launches. Any image will do; it holds one kernel, which copies fragments.
 *
 * ``copy_fragments(dst, src, words, n)`` takes the addresses of three int64 arrays, of addresses and of lengths in words
 * of eight bytes, and their length as an int32.
 */
#define _GNU_SOURCE
#include "declarations.h"
#include "machine.h"

#include <stdlib.h>
#include <string.h>

enum { WORD = 8, THREADS_OF_A_BLOCK = 1024 };

uint64_t n_modules;
static const char copy_fragments;

#define RESULT(code) ((CUresult)leave(code))

CUresult cuModuleLoadData(CUmodule *module, const void *image) {
    int code = enter("cuModuleLoadData", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code && !image) code = INVALID_VALUE;
    if (!code) *module = (CUmodule)(++n_modules * WORD);
    return RESULT(code);
}

CUresult cuModuleGetFunction(CUfunction *hfunc, CUmodule hmod, const char *name) {
    int code = enter("cuModuleGetFunction", NEEDS_CONTEXT);
    if (!code && (!hmod || !n_modules)) code = INVALID_HANDLE;
    if (!code && strcmp(name, "copy_fragments")) code = NOT_FOUND;
    if (!code) *hfunc = (CUfunction)&copy_fragments;
    return RESULT(code);
}

CUresult cuModuleUnload(CUmodule hmod) {
    int code = enter("cuModuleUnload", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code && (!hmod || !n_modules)) code = INVALID_HANDLE;
    if (!code) n_modules--;
    return RESULT(code);
}

CUresult cuLaunchKernel(CUfunction f, unsigned int gridDimX, unsigned int gridDimY, unsigned int gridDimZ,
                        unsigned int blockDimX, unsigned int blockDimY, unsigned int blockDimZ,
                        unsigned int sharedMemBytes, CUstream hStream, void **kernelParams, void **extra) {
    (void)sharedMemBytes;
    int code = enter("cuLaunchKernel", NEEDS_CONTEXT);
    Stream *stream = code ? NULL : find_stream(hStream);
    if (!code && (!stream || f != (CUfunction)&copy_fragments)) code = INVALID_HANDLE;
    if (!code && (!gridDimX || !gridDimY || !gridDimZ || !blockDimX || !blockDimY || !blockDimZ)) code = INVALID_VALUE;
    if (!code && (blockDimX * blockDimY * blockDimZ > THREADS_OF_A_BLOCK || !kernelParams || extra)) code = INVALID_VALUE;
    if (!code) {
        Op *op = new_op(KERNEL_COPY, (size_t)*(int32_t *)kernelParams[3]);
        op->dst = *(uint64_t **)kernelParams[0];
        op->src = *(uint64_t **)kernelParams[1];
        op->sizes = *(uint64_t **)kernelParams[2];
        op->unit = WORD;
        submit(stream, op);
    }
    return RESULT(code);
}
