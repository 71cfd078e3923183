/* The driver's interface: the real header where it is at hand, else the few types that the fake needs.
 *
 * With the real header, definitions that differ from its prototypes do not compile. Definitions go by the names that
 * the library exports, which the header maps others to; asked for the internal version, it leaves that out.
 */
#pragma once

#if __has_include(<cuda.h>) && !defined WITHOUT_CUDA_HEADER
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#else

#include <stddef.h>
#include <stdint.h>

typedef int CUresult, CUdevice, CUdevice_attribute, CUstreamCaptureMode, CUstreamCaptureStatus;
typedef int CUdriverProcAddressQueryResult;
typedef struct Context *CUcontext;
typedef struct Stream *CUstream;
typedef struct Event *CUevent;
typedef struct Module *CUmodule;
typedef struct Function *CUfunction;
typedef unsigned long long CUdeviceptr;
typedef uint32_t cuuint32_t;
typedef uint64_t cuuint64_t;

typedef struct CUmemcpyAttributes {
    int srcAccessOrder;
    struct { int type, id; } srcLocHint, dstLocHint;
    unsigned int flags;
} CUmemcpyAttributes;

#endif
