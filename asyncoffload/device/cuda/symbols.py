"""The entry points of the CUDA driver library that are used here, with their C types, and the numbers they speak.

Names are those the library exports: where the driver's header maps a name to a later version, the version is spelt
out. Source: the CUDA driver API reference, versions 12.8 to 13.0.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from ctypes import c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from typing import Any, Final

from asyncoffload.errors import DeviceError

EntryPoint = Callable[..., int]
"""A function of the driver; returns its error code, 0 for success."""

_OUT: Final = c_void_p
"""Where a result is to be written."""

REQUIRED: Final[Mapping[str, Sequence[Any]]] = {
    "cuInit": (c_uint,),
    "cuDriverGetVersion": (_OUT,),
    "cuDeviceGetCount": (_OUT,),
    "cuDeviceGet": (_OUT, c_int),
    "cuDeviceGetAttribute": (_OUT, c_int, c_int),
    "cuDevicePrimaryCtxRetain": (_OUT, c_int),
    "cuDevicePrimaryCtxRelease_v2": (c_int,),
    "cuCtxSetCurrent": (c_void_p,),
    "cuStreamCreateWithPriority": (_OUT, c_uint, c_int),
    "cuStreamDestroy_v2": (c_void_p,),
    "cuStreamWaitEvent": (c_void_p, c_void_p, c_uint),
    "cuStreamIsCapturing": (c_void_p, _OUT),
    "cuStreamSynchronize": (c_void_p,),
    "cuEventCreate": (_OUT, c_uint),
    "cuEventDestroy_v2": (c_void_p,),
    "cuEventRecord": (c_void_p, c_void_p),
    "cuEventQuery": (c_void_p,),
    "cuEventSynchronize": (c_void_p,),
    "cuMemcpyAsync": (c_uint64, c_uint64, c_size_t, c_void_p),
    "cuMemHostRegister_v2": (c_void_p, c_size_t, c_uint),
    "cuMemHostUnregister": (c_void_p,),
    "cuMemAlloc_v2": (_OUT, c_size_t),
    "cuMemFree_v2": (c_uint64,),
    "cuMemHostAlloc": (_OUT, c_size_t, c_uint),
    "cuMemFreeHost": (c_void_p,),
    "cuModuleLoadData": (_OUT, c_char_p),
    "cuModuleGetFunction": (_OUT, c_void_p, c_char_p),
    "cuModuleUnload": (c_void_p,),
    "cuLaunchKernel": (c_void_p, *[c_uint] * 7, c_void_p, c_void_p, c_void_p),
}
"""Without these the driver is of no use."""

THREAD_LOCAL: Final[Mapping[str, Sequence[Any]]] = {
    "cuCtxGetCurrent": (_OUT,),
    "cuThreadExchangeStreamCaptureMode": (_OUT,),
    "cuGetErrorName": (c_int, _OUT),
    "cuGetErrorString": (c_int, _OUT),
}
"""These only read or swap a word, and are called with the GIL held: beside a thread that computes in Python, giving
the GIL up costs a switch interval (5 ms), and some of them are called around every query."""

OPTIONAL: Final[Mapping[str, Sequence[Any]]] = {
    "cuGetProcAddress_v2": (c_char_p, _OUT, c_int, c_uint64, _OUT),
}
"""Older drivers lack these."""

MEMCPY_BATCH: Final = "cuMemcpyBatchAsync"
MEMCPY_BATCH_VERSION: Final = 12080
"""The version under which every driver that has the batched copy takes it with the same nine arguments. The bare
symbol is no safe way to it: a second form, with eight, goes by the same name in the headers of CUDA 13."""
MEMCPY_BATCH_TYPES: Final = (c_void_p, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p, c_size_t, _OUT, c_void_p)

STREAM_NON_BLOCKING: Final = 1
EVENT_BLOCKING_SYNC: Final = 1
EVENT_DISABLE_TIMING: Final = 2
CAPTURE_MODE_RELAXED: Final = 2
SOURCE_ORDER_STREAM: Final = 1
SOURCE_ORDER_ANY: Final = 3
COPY_OVERLAPS_COMPUTE: Final = 1

NOT_INITIALIZED: Final = 3
OUT_OF_MEMORY: Final = 2
NO_DEVICE: Final = 100
INVALID_CONTEXT: Final = 201
NOT_READY: Final = 600
CAPTURE_UNSUPPORTED: Final = 900
CAPTURE_IMPLICIT: Final = 906
CAPTURED_EVENT: Final = 907

LOST: Final = frozenset(
    {
        NOT_INITIALIZED,  # the process was forked after the driver had been initialised
        4,  # the driver is shutting down
        214,  # uncorrectable ECC error
        220,  # uncorrectable NVLink error
        226,  # contained memory error
        700,  # illegal address
        702,  # launch timeout
        709,  # the context is destroyed
        710,  # assertion in a kernel
        714,  # hardware stack error
        715,  # illegal instruction
        716,  # misaligned address
        717,  # invalid address space
        718,  # invalid program counter
        719,  # launch failed
        721,  # tensor memory leak
        810,  # the multi-process server ended this client
        999,  # unknown
    }
)
"""Codes after which every later call in this process fails too."""

REMEDIES: Final[Mapping[int, str]] = {
    OUT_OF_MEMORY: "free some memory of the kind asked for, or ask for less",
    NOT_INITIALIZED: "start processes that use the device with spawn, not with fork",
    NO_DEVICE: "check nvidia-smi and CUDA_VISIBLE_DEVICES, or use the CPU device",
    INVALID_CONTEXT: "bind a context to the calling thread first",
    CAPTURE_UNSUPPORTED: "call it after the graph capture has ended",
    CAPTURED_EVENT: "record the event outside a graph capture",
}


def load(library: str) -> dict[str, EntryPoint]:
    """Open the library and find its entry points; the process keeps it open for good.

    Returns:
        The entry points by name.

    Raises:
        DeviceError: there is no such library, or a required symbol is missing from it.
    """
    try:
        releasing, holding = ctypes.CDLL(library), ctypes.PyDLL(library)
    except OSError as error:
        raise DeviceError(
            f"the CUDA driver library {library!r} cannot be loaded ({error}): install the NVIDIA driver, "
            "or use the CPU device"
        ) from error
    entry_points: dict[str, EntryPoint] = {}
    for opened, types in ((releasing, {**REQUIRED, **OPTIONAL}), (holding, THREAD_LOCAL)):
        for name, argument_types in types.items():
            try:
                function = getattr(opened, name)
            except AttributeError as error:
                if name in OPTIONAL:
                    continue
                raise DeviceError(
                    f"{library!r} does not export {name}: it is no CUDA driver library, or one older than 12.0; "
                    "update the NVIDIA driver"
                ) from error
            function.restype, function.argtypes = c_int, tuple(argument_types)
            entry_points[name] = function
    return entry_points
