"""The fake ``libcuda``: built once a session from ``libcuda/``, steered and examined through :class:`Fake`.

Its device memory is host memory and its streams are threads, so work is as asynchronous as on a device, and the
driver's laws hold where breaking them would go unnoticed otherwise. Use the fixtures by importing them into a
``conftest.py``: ``from tests.device.cuda.fake import driver, fake``.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import c_char_p, c_int, c_size_t, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pytest

from asyncoffload.device.cuda.driver import Driver

CaptureMode = Literal["global", "thread_local", "relaxed"]

_SOURCES = Path(__file__).parent / "libcuda"
_ALL_STREAMS: Final = 2**64 - 1
_CAPTURE_MODES: Final = {"global": 0, "thread_local": 1, "relaxed": 2}
_CONTROLS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "fake_reset": (None, ()),
    "fake_settle": (None, ()),
    "fake_hold": (c_int, (c_void_p,)),
    "fake_release": (c_int, (c_void_p,)),
    "fake_step": (c_int, (c_void_p, c_int)),
    "fake_hold_new": (None, (c_int,)),
    "fake_streams": (c_size_t, (c_void_p, c_void_p, c_size_t)),
    "fake_fail_call": (c_int, (c_char_p, c_int, c_int, c_int)),
    "fake_fail_copy_to": (c_int, (c_uint64, c_int)),
    "fake_begin_capture": (c_int, (c_void_p, c_int)),
    "fake_end_capture": (c_int, (c_void_p,)),
    "fake_adopt": (c_int, (c_uint64, c_uint64)),
    "fake_disown": (c_int, (c_uint64,)),
    "fake_launch_copies": (c_int, (c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)),
    "fake_launch_fill": (c_int, (c_void_p, c_uint64, c_uint64, c_int)),
    "fake_set_devices": (None, (c_int,)),
    "fake_set_driver_version": (None, (c_int,)),
    "fake_limit_registration": (None, (c_uint64, c_uint64)),
    "fake_count": (c_uint64, (c_char_p,)),
    "fake_calls": (c_uint64, (c_char_p,)),
    "fake_executed": (c_size_t, (c_void_p, c_size_t)),
}


def include_folders() -> list[Path]:
    """Where the real driver's header is; empty where it is not at hand, or older than the batched copy (12.8)."""
    roots = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    folders = [root / "include" for root in (*roots, Path("/usr/local/cuda"))]
    headers = [folder / "cuda.h" for folder in folders if (folder / "cuda.h").exists()]
    versions = {header: re.search(r"#define CUDA_VERSION (\d+)", header.read_text()) for header in headers}
    return [header.parent for header, version in versions.items() if version and int(version[1]) >= 12080]


@functools.cache
def fake_library() -> Path:
    """The built library. Skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("the fake CUDA driver needs a C compiler")
    folder = tempfile.mkdtemp(prefix="fake-libcuda-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = Path(folder, "libfakecuda.so")
    include = [f"-I{folder}" for folder in include_folders()] or ["-DWITHOUT_CUDA_HEADER"]
    flags = ["-std=gnu11", "-O2", "-shared", "-fPIC", "-pthread", "-Wl,-Bsymbolic"]
    command = [compiler, *flags, *include, "-o", str(library)]
    built = subprocess.run([*command, *map(str, sorted(_SOURCES.glob("*.c")))], capture_output=True, text=True)
    if built.returncode:
        pytest.fail(f"the fake CUDA driver does not compile:\n{built.stderr}", pytrace=False)
    return library


@dataclass(frozen=True, slots=True)
class Executed:
    """One operation that has run on the device: its stream, first addresses, copies and bytes."""

    stream: int
    dst: int
    src: int
    copies: int
    nbytes: int


@dataclass(slots=True)
class CaptureOutcome:
    """What became of a capture, once ended: 0, or 901 where something spoilt it."""

    code: int = 0


class Fake:
    """The controls of the fake device. Streams are handles of the driver; None means all that were created."""

    def __init__(self) -> None:
        self.library = str(fake_library())
        self._lib = ctypes.CDLL(self.library)
        for name, (restype, argtypes) in _CONTROLS.items():
            function = getattr(self._lib, name)
            function.restype, function.argtypes = restype, argtypes

    def reset(self) -> None:
        """Drop everything queued, destroy and free everything, forget every setting below."""
        self._lib.fake_reset()

    # Time

    def hold(self, stream: int | None = None) -> None:
        """Start nothing more of what is queued; None: also in streams that are created from now on."""
        if stream is None:
            self._lib.fake_hold_new(1)
        self._check(self._lib.fake_hold(_ALL_STREAMS if stream is None else stream))

    def release(self, stream: int | None = None) -> None:
        """Undo a hold."""
        if stream is None:
            self._lib.fake_hold_new(0)
        self._check(self._lib.fake_release(_ALL_STREAMS if stream is None else stream))

    def step(self, stream: int | None = None, operations: int = 1) -> None:
        """Let some operations of a held stream run: copies, batches, waits and records count one each."""
        self._check(self._lib.fake_step(_ALL_STREAMS if stream is None else stream, operations))

    def settle(self) -> None:
        """Block until no stream can do anything more."""
        self._lib.fake_settle()

    # Work that stands for the model's kernels

    def fill(self, stream: int, address: int, nbytes: int, value: int) -> None:
        """Queue a kernel that writes a byte everywhere."""
        self._check(self._lib.fake_launch_fill(stream, address, nbytes, value))

    def launch_copies(self, stream: int, dsts: int, srcs: int, sizes: int, n: int) -> None:
        """Queue a kernel that copies; it reads its three descriptor arrays (addresses of int64s) when it runs."""
        self._check(self._lib.fake_launch_copies(stream, dsts, srcs, sizes, n))

    @contextmanager
    def device_memory(self, array: npt.NDArray[Any] | tuple[int, int]) -> Iterator[int]:
        """Let host memory, an array or (address, bytes), count as device memory. Yields the address."""
        address, nbytes = array if isinstance(array, tuple) else (array.ctypes.data, array.nbytes)
        self._check(self._lib.fake_adopt(address, nbytes))
        try:
            yield address
        finally:
            self._lib.fake_disown(address)

    def adopt(self, address: int, nbytes: int) -> None:
        """Let host memory count as device memory until the reset or :meth:`disown`."""
        self._check(self._lib.fake_adopt(address, nbytes))

    def disown(self, address: int) -> None:
        """Undo :meth:`adopt`."""
        self._check(self._lib.fake_disown(address))

    # Trouble

    def fail_next(self, symbol: str, code: int, *, after: int = 0, times: int = 1) -> None:
        """Let calls of a function fail without an effect, after some that do not."""
        self._check(self._lib.fake_fail_call(symbol.encode(), after, times, code))

    def fail_copy_to(self, address: int, code: int = 719) -> None:
        """Let the device fail for good when it runs a copy or a kernel that writes this address."""
        self._check(self._lib.fake_fail_copy_to(address, code))

    @contextmanager
    def capture(self, stream: int, mode: CaptureMode = "global") -> Iterator[CaptureOutcome]:
        """Capture a graph in the stream, on this thread."""
        outcome = CaptureOutcome()
        self._check(self._lib.fake_begin_capture(stream, _CAPTURE_MODES[mode]))
        try:
            yield outcome
        finally:
            outcome.code = self._lib.fake_end_capture(stream)

    def limit_registration(self, *, one_call: int = 0, total: int = 0) -> None:
        """Let registrations of more bytes fail with 2; 0: no limit."""
        self._lib.fake_limit_registration(one_call, total)

    def set_driver_version(self, version: int) -> None:
        """Pretend another version, for drivers made from now on."""
        self._lib.fake_set_driver_version(version)

    def set_devices(self, n: int) -> None:
        """Show this many devices, at most 8."""
        self._lib.fake_set_devices(n)

    # Findings

    def count(self, what: str) -> int:
        """How many there are now of: streams, stream_threads, events, contexts, registrations, registered_bytes,
        pinned_allocations, pinned_bytes, device_allocations, device_bytes, modules, queued_operations,
        captured_operations, load_bytes_in_flight, store_bytes_in_flight, the same two with peak_ before them, and
        violations (memory freed or unregistered while something queued still used it)."""
        n = int(self._lib.fake_count(what.encode()))
        assert n != 2**64 - 1, f"the fake counts no {what}"
        return n

    def calls(self, symbol: str) -> int:
        """How often a function of the driver was called since the reset."""
        return int(self._lib.fake_calls(symbol.encode()))

    def streams(self) -> dict[int, int]:
        """Priority by handle of the streams that exist."""
        handles, priorities = (c_uint64 * 256)(), (c_int * 256)()
        n = self._lib.fake_streams(handles, priorities, 256)
        return dict(zip(handles[:n], priorities[:n], strict=True))

    def executed(self) -> list[Executed]:
        """What has run, in the order in which it ended; the first 65,536 only."""
        rows = np.zeros((self._lib.fake_executed(None, 0), 5), dtype=np.uint64)
        n = self._lib.fake_executed(rows.ctypes.data, len(rows))
        return [Executed(*row) for row in rows[:n].tolist()]

    @staticmethod
    def _check(code: int) -> None:
        assert code == 0, f"the fake device refuses its control with {code}"


def memory(address: int, nbytes: int) -> npt.NDArray[np.uint8]:
    """The bytes at an address of host memory, or of the fake's device memory, as an array over them."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * nbytes).from_address(address))


@pytest.fixture
def fake() -> Iterator[Fake]:
    """The fake device, fresh; afterwards nothing may have been freed under something queued."""
    fake = Fake()
    fake.reset()
    yield fake
    violations = fake.count("violations")
    fake.reset()
    assert violations == 0, "memory was freed or unregistered while something queued on the device still used it"


@pytest.fixture
def driver(fake: Fake) -> Driver:
    """A driver over the fake device, whose context is current on this thread."""
    driver = Driver(fake.library)
    driver.bind(driver.retain_primary_context(0))
    return driver
