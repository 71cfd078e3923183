/* The driver's entry points, over the fake device of machine.h. Strict where the real driver may be lenient.
 */
#define _GNU_SOURCE
#include "declarations.h"
#include "machine.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(sizeof(CUmemcpyAttributes) == 24, "six words");
_Static_assert(offsetof(CUmemcpyAttributes, flags) == 20, "flags last");

#define RESULT(code) ((CUresult)leave(code))

static int ordinal_ok(int ordinal) { return ordinal >= 0 && ordinal < n_devices ? OK : INVALID_DEVICE; }

/* Initialisation, errors, versions */

CUresult cuInit(unsigned int Flags) {
    int code = enter("cuInit", EVEN_UNINITIALISED);
    if (!code) code = Flags ? INVALID_VALUE : n_devices ? initialise() : 100;
    return RESULT(code);
}

CUresult cuDriverGetVersion(int *driverVersion) {
    int code = enter("cuDriverGetVersion", EVEN_UNINITIALISED);
    if (!code) *driverVersion = driver_version;
    return RESULT(code);
}

static const struct { int code; const char *name, *text; } known[] = {
    {0, "CUDA_SUCCESS", "no error"},
    {1, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {2, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {3, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {4, "CUDA_ERROR_DEINITIALIZED", "driver shutting down"},
    {100, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {101, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {201, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {214, "CUDA_ERROR_ECC_UNCORRECTABLE", "uncorrectable ECC error encountered"},
    {400, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {500, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {600, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {709, "CUDA_ERROR_CONTEXT_IS_DESTROYED", "context is destroyed"},
    {712, "CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED", "part or all of the requested memory range is already mapped"},
    {713, "CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED", "pointer does not correspond to a registered memory region"},
    {716, "CUDA_ERROR_MISALIGNED_ADDRESS", "misaligned address"},
    {719, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {900, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED", "operation not permitted when stream is capturing"},
    {901, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
    {905, "CUDA_ERROR_STREAM_CAPTURE_ISOLATION", "dependency created on uncaptured work in another stream"},
    {906, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "operation would make the legacy stream depend on a capturing blocking stream"},
    {907, "CUDA_ERROR_CAPTURED_EVENT", "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

static CUresult describe(CUresult error, const char **pStr, int name) {
    *pStr = NULL;
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (known[i].code == (int)error) *pStr = name ? known[i].name : known[i].text;
    return (CUresult)(*pStr ? OK : INVALID_VALUE);
}

CUresult cuGetErrorName(CUresult error, const char **pStr) { return describe(error, pStr, 1); }
CUresult cuGetErrorString(CUresult error, const char **pStr) { return describe(error, pStr, 0); }

/* Devices and contexts */

CUresult cuDeviceGetCount(int *count) {
    int code = enter("cuDeviceGetCount", 0);
    if (!code) *count = n_devices;
    return RESULT(code);
}

CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    int code = enter("cuDeviceGet", 0);
    if (!code && !(code = ordinal_ok(ordinal))) *device = ordinal;
    return RESULT(code);
}

CUresult cuDeviceGetAttribute(int *pi, CUdevice_attribute attrib, CUdevice dev) {
    int code = enter("cuDeviceGetAttribute", 0);
    if (!code && !(code = ordinal_ok(dev))) {
        int a = (int)attrib;
        /* multiprocessors; compute capability 9.0; unified addresses, also of host memory */
        *pi = a == 16 ? 132 : a == 75 ? 9 : a == 41 || a == 91;
    }
    return RESULT(code);
}

CUresult cuDevicePrimaryCtxRetain(CUcontext *pctx, CUdevice dev) {
    int code = enter("cuDevicePrimaryCtxRetain", 0);
    if (!code && !(code = ordinal_ok(dev))) {
        contexts[dev].retained++;
        *pctx = (CUcontext)&contexts[dev];
    }
    return RESULT(code);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice dev) {
    int code = enter("cuDevicePrimaryCtxRelease_v2", 0);
    if (!code && !(code = ordinal_ok(dev))) {
        if (!contexts[dev].retained) code = INVALID_CONTEXT;
        else if (--contexts[dev].retained == 0) destroy_context(&contexts[dev]);
    }
    return RESULT(code);
}

CUresult cuCtxSetCurrent(CUcontext ctx) {
    int code = enter("cuCtxSetCurrent", 0);
    if (!code) {
        Context *context = (Context *)ctx;
        if (context && (context < contexts || context >= contexts + MAX_DEVICES || !context->retained))
            code = INVALID_CONTEXT;
        else set_current_context(context);
    }
    return RESULT(code);
}

CUresult cuCtxGetCurrent(CUcontext *pctx) {
    int code = enter("cuCtxGetCurrent", 0);
    if (!code) *pctx = (CUcontext)current_context();
    return RESULT(code);
}

CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode) {
    int code = enter("cuThreadExchangeStreamCaptureMode", 0);
    if (!code) {
        int *own = capture_mode_of_thread(), previous = *own;
        if ((int)*mode < 0 || (int)*mode > 2) code = INVALID_VALUE;
        else *own = (int)*mode, *mode = (CUstreamCaptureMode)previous;
    }
    return RESULT(code);
}

/* Streams */

CUresult cuStreamCreateWithPriority(CUstream *phStream, unsigned int flags, int priority) {
    int code = enter("cuStreamCreateWithPriority", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code && flags > 1) code = INVALID_VALUE;
    if (!code) {
        Stream *stream = new_stream(current_context(), priority);
        if (stream) *phStream = (CUstream)stream;
        else code = OUT_OF_MEMORY;
    }
    return RESULT(code);
}

CUresult cuStreamDestroy_v2(CUstream hStream) {
    int code = enter("cuStreamDestroy_v2", NEEDS_CONTEXT);
    Stream *stream = (uint64_t)hStream <= 2 ? NULL : find_stream(hStream);
    if (!stream) code = code ? code : INVALID_HANDLE;
    else if (!code || current_context()) stream->destroyed = 1; /* after an asynchronous failure too */
    pthread_cond_broadcast(&changed);
    return RESULT(code);
}

CUresult cuStreamWaitEvent(CUstream hStream, CUevent hEvent, unsigned int Flags) {
    int code = enter("cuStreamWaitEvent", NEEDS_CONTEXT);
    Stream *stream = code ? NULL : find_stream(hStream);
    Event *event = code ? NULL : find_event(hEvent);
    if (code) return RESULT(code);
    if (!stream || !event) return RESULT(INVALID_HANDLE);
    if (Flags) return RESULT(INVALID_VALUE);
    Capture *capture = find_capture(stream->capture);
    if (find_capture(event->captured_in)) stream->capture = event->captured_in; /* drawn into the graph */
    else if (event->captured_in) return RESULT(CAPTURED_EVENT);
    else if (capture) {
        capture->invalidated = 1;
        return RESULT(CAPTURE_ISOLATION);
    } else if (event->mark && !event->mark->done) {
        Op *op = new_op(WAIT, 0);
        op->mark = event->mark;
        event->mark->refs++;
        submit(stream, op);
    }
    return RESULT(OK);
}

CUresult cuStreamIsCapturing(CUstream hStream, CUstreamCaptureStatus *captureStatus) {
    int code = enter("cuStreamIsCapturing", NEEDS_CONTEXT);
    if (!code) {
        Stream *stream = find_stream(hStream);
        Capture *capture = stream ? find_capture(stream->capture) : NULL;
        if (!stream) code = INVALID_HANDLE;
        else *captureStatus = (CUstreamCaptureStatus)(!capture ? 0 : capture->invalidated ? 2 : 1);
    }
    return RESULT(code);
}

CUresult cuStreamSynchronize(CUstream hStream) {
    int code = enter("cuStreamSynchronize", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) {
        Stream *stream = find_stream(hStream);
        Capture *capture = stream ? find_capture(stream->capture) : NULL;
        if (!stream) code = INVALID_HANDLE;
        else if (capture) capture->invalidated = 1, code = CAPTURE_UNSUPPORTED;
        else code = drain_stream(stream);
    }
    return RESULT(code);
}

/* Events */

CUresult cuEventCreate(CUevent *phEvent, unsigned int Flags) {
    int code = enter("cuEventCreate", NEEDS_CONTEXT);
    if (!code && Flags > 3) code = INVALID_VALUE;
    if (!code) {
        Event *event = malloc(sizeof *event);
        *event = (Event){events, current_context(), NULL, 0};
        events = event;
        *phEvent = (CUevent)event;
    }
    return RESULT(code);
}

CUresult cuEventDestroy_v2(CUevent hEvent) {
    int code = enter("cuEventDestroy_v2", NEEDS_CONTEXT);
    if (code && !current_context()) return RESULT(code);
    Event **at = &events;
    while (*at && *at != (Event *)hEvent) at = &(*at)->next;
    if (!*at) return RESULT(code ? code : INVALID_HANDLE);
    Event *event = *at;
    *at = event->next;
    drop_mark(event->mark);
    free(event);
    return RESULT(code);
}

CUresult cuEventRecord(CUevent hEvent, CUstream hStream) {
    int code = enter("cuEventRecord", NEEDS_CONTEXT);
    Stream *stream = code ? NULL : find_stream(hStream);
    Event *event = code ? NULL : find_event(hEvent);
    if (code) return RESULT(code);
    if (!stream || !event || stream->context != event->context) return RESULT(INVALID_HANDLE);
    event->captured_in = stream->capture;
    drop_mark(event->mark);
    event->mark = new_mark();
    Op *op = new_op(RECORD, 0);
    op->mark = event->mark;
    event->mark->refs++;
    submit(stream, op);
    return RESULT(OK);
}

CUresult cuEventQuery(CUevent hEvent) {
    int code = enter("cuEventQuery", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) {
        Event *event = find_event(hEvent);
        if (!event) code = INVALID_HANDLE;
        else if (event->captured_in) code = CAPTURED_EVENT;
        else if (event->mark && !event->mark->done) code = NOT_READY;
    }
    return RESULT(code);
}

CUresult cuEventSynchronize(CUevent hEvent) {
    int code = enter("cuEventSynchronize", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) {
        Event *event = find_event(hEvent);
        if (!event) code = INVALID_HANDLE;
        else if (event->captured_in) code = CAPTURED_EVENT;
        else if (event->mark) code = wait_for_mark(event->context, event->mark);
    }
    return RESULT(code);
}

/* Memory */

CUresult cuMemHostRegister_v2(void *p, size_t bytesize, unsigned int Flags) {
    int code = enter("cuMemHostRegister_v2", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) code = Flags & ~3u ? INVALID_VALUE : add_range(current_context(), REGISTERED_MEMORY, (uint64_t)p, bytesize);
    return RESULT(code);
}

CUresult cuMemHostUnregister(void *p) {
    int code = enter("cuMemHostUnregister", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code && remove_range(REGISTERED_MEMORY, (uint64_t)p)) code = NOT_REGISTERED;
    return RESULT(code);
}

CUresult cuMemAlloc_v2(CUdeviceptr *dptr, size_t bytesize) {
    int code = enter("cuMemAlloc_v2", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    uint64_t address = 0;
    if (!code) code = allocate(current_context(), DEVICE_MEMORY, bytesize, &address);
    if (!code) *dptr = address;
    return RESULT(code);
}

CUresult cuMemFree_v2(CUdeviceptr dptr) {
    int code = enter("cuMemFree_v2", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) code = remove_range(DEVICE_MEMORY, dptr);
    return RESULT(code);
}

CUresult cuMemHostAlloc(void **pp, size_t bytesize, unsigned int Flags) {
    int code = enter("cuMemHostAlloc", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    uint64_t address = 0;
    if (!code) code = Flags & ~7u ? INVALID_VALUE : allocate(current_context(), PINNED_MEMORY, bytesize, &address);
    if (!code) *pp = (void *)address;
    return RESULT(code);
}

CUresult cuMemFreeHost(void *p) {
    int code = enter("cuMemFreeHost", NEEDS_CONTEXT | UNSAFE_IN_CAPTURE);
    if (!code) code = remove_range(PINNED_MEMORY, (uint64_t)p);
    return RESULT(code);
}
