"""The CUDA driver as typed calls on plain integers: contexts, streams, events, copies, pinned memory.

It needs no torch, touches nothing before a :class:`Driver` is made, and frees nothing by itself: who creates a handle
destroys it. Calls come from any thread; those that may block or take the driver's lock run without the GIL.

Every call needs a context that is current on the calling thread, :meth:`Driver.bind`; else it fails with code 201.
Unless it says otherwise a method raises :class:`~asyncoffload.errors.DeviceError` with the driver's code, and reports
failures of earlier asynchronous work too; ``lost`` tells those after which the device takes no further work.

While a thread captures a CUDA graph, the driver's default is to refuse queries, allocations and more on every other
thread, and the attempt spoils the capture. The calls concerned therefore run in the relaxed mode, which exempts the
calling thread for their duration.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import CFUNCTYPE, byref, c_char_p, c_int, c_size_t, c_uint64, c_void_p
from typing import Any, Final

from asyncoffload.device.cuda import symbols
from asyncoffload.device.cuda.batched_copy import (
    FROM_THE_FIRST_COPY,
    NO_COPY_IN_PARTICULAR,
    SOURCE_FINAL,
    SOURCE_IN_ORDER,
    check_batch,
)
from asyncoffload.device.cuda.batched_copy import MAX_COPIES_PER_CALL as MAX_COPIES_PER_CALL
from asyncoffload.errors import DeviceError
from asyncoffload.types import Int64s

HOST_POINTER_USABLE: Final = 91
"""Attribute: registered host memory has the same address on the device."""


class Driver:
    """The driver library, loaded and initialised.

    Args:
        library: name or path of the shared library.

    Attributes:
        version: the CUDA version it implements, as 1000 times major plus 10 times minor.
        has_batched_copy: whether :meth:`copy_batch` can be used (CUDA 12.8).

    Raises:
        DeviceError: there is no such library, it is too old, or it finds no device.
    """

    def __init__(self, library: str = "libcuda.so.1") -> None:
        self._library = library
        self._functions = symbols.load(library)
        self._call("cuInit", 0)
        self.version = self._get(c_int, "cuDriverGetVersion")
        self.has_batched_copy = self._find_batched_copy()

    def __repr__(self) -> str:
        batched = "batched copies" if self.has_batched_copy else "no batched copies"
        return f"Driver({self._library}, CUDA {self.version // 1000}.{self.version % 1000 // 10}, {batched})"

    # Devices and contexts

    def device_count(self) -> int:
        """How many devices this process sees."""
        return self._get(c_int, "cuDeviceGetCount")

    def attribute(self, attribute: int, ordinal: int) -> int:
        """The value of a device attribute, by its number in the driver's interface."""
        return self._get(c_int, "cuDeviceGetAttribute", attribute, self._device(ordinal))

    def retain_primary_context(self, ordinal: int) -> int:
        """The context that the whole process shares, torch included, made if need be. Release it as often."""
        return self._get(c_void_p, "cuDevicePrimaryCtxRetain", self._device(ordinal))

    def release_primary_context(self, ordinal: int) -> None:
        """Give back one retained reference; the last one destroys the context and all that is in it."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._device(ordinal))

    def bind(self, context: int) -> int:
        """Make the context current on the calling thread; under a microsecond where it is.

        torch takes the current context for its current device: hand back on a caller's thread what was there.

        Returns:
            The context that was current, 0 for none; ``bind`` takes it back.
        """
        previous = self._get(c_void_p, "cuCtxGetCurrent")
        if previous != context:
            self._call("cuCtxSetCurrent", context)
        return previous

    # Streams

    def create_stream(self, priority: int = 0) -> int:
        """A stream that does not wait for the legacy stream; lower numbers go first, the driver clamps them.

        Priorities order kernels, not copies.
        """
        return self._get_relaxed(c_void_p, "cuStreamCreateWithPriority", symbols.STREAM_NON_BLOCKING, priority)

    def destroy_stream(self, stream: int) -> None:
        """Free the stream; work queued in it still runs to its end."""
        self._call_relaxed("cuStreamDestroy_v2", stream)

    def stream_wait_event(self, stream: int, event: int) -> None:
        """What is queued in the stream from now on starts after what the event marks now; nothing if not recorded."""
        self._call("cuStreamWaitEvent", stream, event, 0)

    def is_capturing(self, stream: int) -> bool:
        """Whether work given to the stream would go into a graph instead of to the device."""
        status = c_int()
        code = self._functions["cuStreamIsCapturing"](stream, byref(status))
        if code == symbols.CAPTURE_IMPLICIT:  # the legacy stream, while one that waits for it is captured
            return True
        if code:
            raise self._error("cuStreamIsCapturing", code)
        return status.value != 0

    def synchronize_stream(self, stream: int) -> None:
        """Block the thread until everything queued in the stream has ended."""
        self._call_relaxed("cuStreamSynchronize", stream)

    # Events

    def create_event(self) -> int:
        """An event without timing, at which a thread waits asleep. Good for any number of records."""
        flags = symbols.EVENT_BLOCKING_SYNC | symbols.EVENT_DISABLE_TIMING
        return self._get_relaxed(c_void_p, "cuEventCreate", flags)

    def destroy_event(self, event: int) -> None:
        """Free the event; streams that wait for it still do."""
        self._call_relaxed("cuEventDestroy_v2", event)

    def record_event(self, event: int, stream: int) -> None:
        """Let the event mark what is queued in the stream so far, in place of what it marked."""
        self._call("cuEventRecord", event, stream)

    def query_event(self, event: int) -> bool:
        """Whether what the event marks has ended; True when it was never recorded. Never blocks.

        False while a graph capture keeps the driver from answering.
        """
        code = self._relaxed("cuEventQuery", event)
        if code == 0:
            return True
        if code in (symbols.NOT_READY, symbols.CAPTURE_UNSUPPORTED, symbols.CAPTURED_EVENT):
            return False
        raise self._error("cuEventQuery", code)

    def synchronize_event(self, event: int) -> None:
        """Block the thread, asleep, until what the event marks has ended."""
        self._call_relaxed("cuEventSynchronize", event)

    # Copies

    def copy_batch(self, dst: Int64s, src: Int64s, nbytes: Int64s, stream: int, *, source_final: bool) -> None:
        """Queue copies between any two memories in one call. Within the call they have no order.

        All arrays may be reused when it returns. No copy may leave the registration or allocation it starts in.

        Args:
            dst, src: addresses, int64 of shape ``(n,)``, contiguous, at most :data:`MAX_COPIES_PER_CALL`.
            nbytes: length of each copy, int64 of shape ``(n,)``, contiguous; copies of no bytes are left out.
            stream: not the legacy stream.
            source_final: the source may be read at once, before what is queued ahead in the stream has ended. Else
                it is read in the order of the stream.

        Raises:
            InvalidArgument: the arrays are not as described; nothing was queued.
            DeviceError: the driver refuses the call, and there is no saying which of the copies were queued.
        """
        if not self.has_batched_copy:
            raise DeviceError(f"{self}: use copy_one, or update the NVIDIA driver to one of CUDA 12.8 or later")
        check_batch(dst, src, nbytes)
        if not nbytes.all():
            some = nbytes != 0
            dst, src, nbytes = dst[some], src[some], nbytes[some]
        count = len(nbytes)
        if not count:
            return
        bad = c_size_t(NO_COPY_IN_PARTICULAR)
        code = self._relaxed(
            symbols.MEMCPY_BATCH,
            dst.ctypes.data,
            src.ctypes.data,
            nbytes.ctypes.data,
            count,
            SOURCE_FINAL if source_final else SOURCE_IN_ORDER,
            FROM_THE_FIRST_COPY,
            1,
            byref(bad),
            stream,
        )
        if code:
            at = bad.value
            which = f"{count} copies, {int(nbytes.sum())} bytes"
            if at < count:
                which += f"; number {at}, {nbytes[at]} bytes from {src[at]:#x} to {dst[at]:#x}, is to blame"
            raise self._error(symbols.MEMCPY_BATCH, code, which)

    def copy_one(self, dst: int, src: int, nbytes: int, stream: int) -> None:
        """Queue one copy between any two memories; blocks until it is under way where host memory is pageable."""
        if nbytes:
            code = self._relaxed("cuMemcpyAsync", dst, src, nbytes, stream)
            if code:
                raise self._error("cuMemcpyAsync", code, f"{nbytes} bytes from {src:#x} to {dst:#x}")

    # Kernels

    def load_kernel(self, image: bytes, name: str) -> tuple[int, int]:
        """Load machine code for the current context's device, a ``cubin``; returns its module and the named kernel."""
        module = self._get_relaxed(c_void_p, "cuModuleLoadData", image)
        try:
            return module, self._get(c_void_p, "cuModuleGetFunction", module, name.encode())
        except DeviceError:
            self.unload_module(module)
            raise

    def unload_module(self, module: int) -> None:
        """Free the module, once none of its kernels runs."""
        self._call_relaxed("cuModuleUnload", module)

    def launch_kernel(
        self, kernel: int, grid: int, threads: int, shared_bytes: int, stream: int, parameters: Sequence[Any]
    ) -> None:
        """Queue a kernel on ``grid`` blocks of ``threads`` threads, with ctypes values of exactly its parameters'
        types; more values than it has parameters do no harm."""
        addresses = (c_void_p * len(parameters))(*map(ctypes.addressof, parameters))
        self._call_relaxed("cuLaunchKernel", kernel, grid, 1, 1, threads, 1, 1, shared_bytes, stream, addresses, None)

    # Memory

    def register(self, address: int, nbytes: int) -> None:
        """Pin host memory, page-aligned; blocks while its pages are locked, about 0.1 s per GiB if touched before."""
        self._call_relaxed("cuMemHostRegister_v2", address, nbytes, 0)

    def unregister(self, address: int) -> None:
        """Undo the registration that begins at the address. Nothing may be in flight on it."""
        self._call_relaxed("cuMemHostUnregister", address)

    def alloc_device(self, nbytes: int) -> int:
        """Memory of the current context's device, aligned to at least 256 bytes."""
        return self._get_relaxed(c_uint64, "cuMemAlloc_v2", nbytes)

    def free_device(self, address: int) -> None:
        """Free it; blocks until the device has come to rest."""
        self._call_relaxed("cuMemFree_v2", address)

    def alloc_pinned(self, nbytes: int) -> int:
        """Page-aligned, pinned host memory."""
        return self._get_relaxed(c_void_p, "cuMemHostAlloc", nbytes, 0)

    def free_pinned(self, address: int) -> None:
        """Free it. Nothing may be in flight on it."""
        self._call_relaxed("cuMemFreeHost", address)

    # Calls

    def _call(self, name: str, *arguments: Any) -> None:
        code = self._functions[name](*arguments)
        if code:
            raise self._error(name, code)

    def _call_relaxed(self, name: str, *arguments: Any) -> None:
        code = self._relaxed(name, *arguments)
        if code:
            raise self._error(name, code)

    def _get(self, kind: Any, name: str, *arguments: Any) -> int:
        """Call a function that takes the address of its result first."""
        result = kind()
        self._call(name, byref(result), *arguments)
        return result.value or 0

    def _get_relaxed(self, kind: Any, name: str, *arguments: Any) -> int:
        result = kind()
        self._call_relaxed(name, byref(result), *arguments)
        return result.value or 0

    def _relaxed(self, name: str, *arguments: Any) -> int:
        """The code of a call that other threads' captures do not forbid, and that does not spoil them."""
        mode = c_int(symbols.CAPTURE_MODE_RELAXED)
        exchange = self._functions["cuThreadExchangeStreamCaptureMode"]
        if exchange(byref(mode)):
            return self._functions[name](*arguments)  # whatever is wrong, it tells
        try:
            return self._functions[name](*arguments)
        finally:
            exchange(byref(mode))

    def _device(self, ordinal: int) -> int:
        return self._get(c_int, "cuDeviceGet", ordinal)

    def _find_batched_copy(self) -> bool:
        if "cuGetProcAddress_v2" not in self._functions:
            return False
        address, status = c_void_p(), c_int()
        code = self._functions["cuGetProcAddress_v2"](
            symbols.MEMCPY_BATCH.encode(), byref(address), symbols.MEMCPY_BATCH_VERSION, 0, byref(status)
        )
        if code or status.value or not address.value:
            return False
        self._functions[symbols.MEMCPY_BATCH] = CFUNCTYPE(c_int, *symbols.MEMCPY_BATCH_TYPES)(address.value)
        return True

    def _error(self, name: str, code: int, about: str = "") -> DeviceError:
        symbol, text = self._text("cuGetErrorName", code), self._text("cuGetErrorString", code)
        message = f"{name}{f' ({about})' if about else ''} failed with {code}, {symbol}: {text}"
        remedy = symbols.REMEDIES.get(code)
        return DeviceError(f"{message}; {remedy}" if remedy else message, code=code, lost=code in symbols.LOST)

    def _text(self, function: str, code: int) -> str:
        text = c_char_p()
        known = self._functions[function](code, byref(text)) == 0 and text.value
        return known.decode(errors="replace") if known else "no description"
