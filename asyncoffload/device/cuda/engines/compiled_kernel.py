"""The copy kernel on a device: compiled by Triton once per process, loaded and launched through the driver.

Triton is asked for machine code only. Its own launcher works on torch's current stream, looks up the arguments'
types at every call and compiles anew when they change; a call of the driver takes any stream, and microseconds.
"""

from __future__ import annotations

import ctypes
import functools
import threading
from collections.abc import Callable
from contextlib import ExitStack
from ctypes import c_int32, c_uint64
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Final

import numpy as np

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.descriptors import Descriptors
from asyncoffload.device.cuda.engines.kernel import WORD_BYTES
from asyncoffload.errors import DeviceError
from asyncoffload.types import Int64s

ROWS: Final = 8
WORDS: Final = 512
WARPS: Final = 16
"""Fragments of 4 KiB, eight at a time: 32 KiB of them are under way per block of threads while the next are asked for.
More would not fit into the registers."""

HOST_PROGRAMS: Final = 4
"""Blocks of threads that copy over the link; each may keep a multiprocessor from the model for as long. The link
needs about 100 KB under way."""

DEVICE_PROGRAMS: Final = 16
"""Blocks of threads that copy within device memory, where a few of them move a piece in tens of microseconds."""

_MAJOR, _MINOR = 75, 76  # attributes: the compute capability
_THREADS_PER_WARP: Final = 32
_KERNEL_MODULE: Final = "asyncoffload.device.cuda.engines.fragment_kernel"


@dataclass(frozen=True, slots=True)
class Code:
    """A compiled kernel.

    Attributes:
        image: machine code for one kind of device, a ``cubin``.
        name: of the kernel in it.
        shared_bytes: shared memory per block of threads.
        assembly: its PTX, to look at.
    """

    image: bytes
    name: str
    shared_bytes: int
    assembly: str


@functools.cache
def compile_kernel(capability: int, paired: bool) -> Code:
    """Compile the copy kernel; takes seconds, milliseconds where Triton has it in its cache. Needs no device.

    Args:
        capability: compute capability, 10 times major plus minor.
        paired: for addresses and lengths that are multiples of 16 bytes.

    Raises:
        DeviceError: Triton is not installed, or cannot compile it.
    """
    try:
        triton: Any = import_module("triton")
        compiler: Any = import_module("triton.compiler")
        backends: Any = import_module("triton.backends.compiler")
        function = import_module(_KERNEL_MODULE).copy_fragments
        pointers = dict.fromkeys(("dst", "src", "words"), "*i64")
        constants = {"ROWS": ROWS, "WORDS": WORDS, "PAIRS": paired}
        signature = {**pointers, "n": "i32", **dict.fromkeys(constants, "constexpr")}
        compiled = triton.compile(
            compiler.ASTSource(function, signature=signature, constexprs=constants),
            target=backends.GPUTarget("cuda", capability, _THREADS_PER_WARP),
            options={"num_warps": WARPS, "enable_fp_fusion": False},
        )
        metadata = compiled.metadata
        for scratch in ("global_scratch_size", "profile_scratch_size"):
            if getattr(metadata, scratch, 0):
                raise RuntimeError(f"it needs {scratch.replace('_', ' ')}")
        return Code(compiled.asm["cubin"], metadata.name, metadata.shared, compiled.asm["ptx"])
    except Exception as cause:
        raise DeviceError(
            f"the copy kernel cannot be compiled for compute capability {capability} "
            f"({type(cause).__name__}: {cause}): is a triton installed that fits the installed torch?"
        ) from cause


class CompiledKernel:
    """:class:`~asyncoffload.device.cuda.engines.kernel.FragmentKernel` for one device. Safe on any thread.

    Args:
        host_programs, device_programs: blocks of threads for copies over the link, and within device memory.
        compiler: see :func:`compile_kernel`.
    """

    max_fragment_bytes = WORDS * WORD_BYTES

    def __init__(
        self,
        driver: Driver,
        ordinal: int,
        *,
        host_programs: int = HOST_PROGRAMS,
        device_programs: int = DEVICE_PROGRAMS,
        compiler: Callable[[int, bool], Code] | None = None,
    ) -> None:
        self._driver = driver
        self._ordinal = ordinal
        self._host_programs = host_programs
        self._device_programs = device_programs
        self._compile = compiler or compile_kernel
        self._lock = threading.Lock()
        self._modules: list[int] = []
        self._loaded: dict[bool, tuple[int, int]] = {}  # paired or not: handle, bytes of shared memory
        self._ready = False

    def warm_up(self) -> None:
        """See :meth:`FragmentKernel.warm_up`; the trial copies a few pages both ways and compares them."""
        if self._ready:
            return
        with self._lock:
            if self._ready:
                return
            major, minor = (self._driver.attribute(which, self._ordinal) for which in (_MAJOR, _MINOR))
            for paired in (False, True):
                if paired not in self._loaded:
                    code = self._compile(10 * major + minor, paired)
                    module, kernel = self._driver.load_kernel(code.image, code.name)
                    self._modules.append(module)
                    self._loaded[paired] = kernel, code.shared_bytes
            for paired in (False, True):
                try_kernel(self._driver, self._launch, paired=paired)
            self._ready = True

    def launch(self, descriptors: Descriptors, stream: int, *, paired: bool, in_device_memory: bool) -> None:
        """See :meth:`FragmentKernel.launch`."""
        self.warm_up()
        dst, src, words = (array.ctypes.data for array in (descriptors.dst, descriptors.src, descriptors.words))
        programs = self._device_programs if in_device_memory else self._host_programs
        self._launch(dst, src, words, descriptors.n, stream, paired=paired, programs=programs)

    def close(self) -> None:
        """See :meth:`FragmentKernel.close`."""
        with self._lock:
            self._ready = False
            self._loaded.clear()
            while self._modules:
                self._driver.unload_module(self._modules.pop())

    def __repr__(self) -> str:
        state = "ready" if self._ready else "not compiled yet"
        return f"CompiledKernel({state}, {self._host_programs} and {self._device_programs} blocks of threads)"

    def _launch(
        self, dst: int, src: int, words: int, n: int, stream: int, *, paired: bool, programs: int = HOST_PROGRAMS
    ) -> None:
        kernel, shared_bytes = self._loaded[paired]
        # Behind its own parameters Triton adds up to two, for scratch memory that this kernel does not use.
        parameters = (c_uint64(dst), c_uint64(src), c_uint64(words), c_int32(n), c_uint64(0), c_uint64(0))
        grid = min(programs, -(-n // ROWS))
        self._driver.launch_kernel(kernel, grid, WARPS * _THREADS_PER_WARP, shared_bytes, stream, parameters)


def try_kernel(driver: Driver, launch: Any, *, paired: bool) -> None:
    """Copy some fragments to the device and back with a kernel, in a shuffled order, and compare; blocks.

    Args:
        launch: queues the kernel: ``launch(dst, src, words, n, stream, paired=...)`` with addresses of int64 arrays.

    Raises:
        DeviceError: the driver refuses, or what came back is not what was sent.
    """
    n, fragment = 3 * ROWS + 1, WORDS * WORD_BYTES
    half = n * fragment
    rng = np.random.default_rng(1)
    with ExitStack() as freeing:
        stream = driver.create_stream()
        freeing.callback(driver.destroy_stream, stream)
        host_bytes = 2 * half + 6 * n * WORD_BYTES
        host = driver.alloc_pinned(host_bytes)
        freeing.callback(driver.free_pinned, host)
        device = driver.alloc_device(half)
        freeing.callback(driver.free_device, device)
        freeing.callback(driver.synchronize_stream, stream)

        memory = np.ctypeslib.as_array((ctypes.c_uint8 * host_bytes).from_address(host))
        memory[:half] = rng.integers(0, 256, half, dtype=np.uint8)
        memory[half : 2 * half] = 0
        descriptors: Int64s = memory[2 * half :].view(np.int64).reshape(2, 3, n)
        place, step = np.arange(n) * fragment, WORD_BYTES * (2 if paired else 1)
        length = rng.integers(0, fragment // step + 1, n) * step
        length[0] = fragment
        there, back = descriptors
        there[:] = device + rng.permutation(place), host + place, length // WORD_BYTES
        back[:] = host + half + place, there[0], there[2]
        for dst, src, words in (there, back):
            launch(dst.ctypes.data, src.ctypes.data, words.ctypes.data, n, stream, paired=paired)
        driver.synchronize_stream(stream)
        inside = np.arange(fragment) < length[:, np.newaxis]
        sent, got = memory[: 2 * half].reshape(2, n, fragment)
        if not np.array_equal(np.where(inside, sent, 0), got):
            raise DeviceError("the copy kernel does not copy on this device: use another triton, or driver copies")
