"""The CPU as the device: its blocks lie in host memory, and threads copy them."""

from __future__ import annotations

import ctypes
import os
import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from asyncoffload.cli.device_bench.side import Compute, Ends, RawCopies
from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import CopyDevice, Direction
from asyncoffload.device.batch_copy import BatchCopy, best_batch_copy, copy_one_by_one, copy_vectored
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import InvalidArgument
from asyncoffload.memory.region import HostRegion, PinReport

_WAYS: dict[str, BatchCopy] = {"copy_vectored": copy_vectored, "copy_one_by_one": copy_one_by_one}


class CPUSide:
    """Measures on the processor and its memory.

    Args:
        copy_threads: threads of each device.
    """

    kind = "cpu"
    raw_name = "memcpy"

    def __init__(self, copy_threads: int = 2) -> None:
        self._copy_threads = copy_threads

    def facts(self) -> Mapping[str, str]:
        return {
            "device": f"CPU, {os.cpu_count()} processors, {self._copy_threads} copy threads",
            "processor": _processor_name(),
            "engines": ", ".join(self.engine_names()),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.uint8)

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        region = HostRegion(n_slots, slot_bytes)
        region.tensor.fill_(1)
        return region

    def copy_device(
        self,
        engine: str | None = None,
        *,
        caches: Sequence[torch.Tensor] = (),  # noqa: ARG002
        region: HostRegion | None = None,  # noqa: ARG002
    ) -> CopyDevice:
        return CPUDevice(self._copy_threads, batch_copy=_WAYS[engine] if engine else None)

    def engine_names(self) -> Sequence[str]:
        return tuple(_WAYS) if best_batch_copy() is copy_vectored else ("copy_one_by_one",)

    def reason(self, device: CopyDevice, direction: Direction, engine: str) -> str:  # noqa: ARG002
        may = best_batch_copy() is copy_vectored
        return f"process_vm_readv {'may' if may else 'must not'} be used here"

    def settle(self) -> None:
        pass

    @contextmanager
    def raw(self, nbytes: int) -> Iterator[RawCopies]:
        with ThreadPoolExecutor(2) as threads:
            yield _Memcpy(nbytes, threads)

    @contextmanager
    def compute(self, size: int) -> Iterator[Compute]:
        before = torch.get_num_threads()
        torch.set_num_threads(1)  # the copies need a processor, too
        try:
            yield _Products(size)
        finally:
            torch.set_num_threads(before)

    def ends(self, caches: Sequence[torch.Tensor], region: HostRegion) -> tuple[CopyDevice, Ends]:  # noqa: ARG002
        ends = _LastCopy()
        return CPUDevice(self._copy_threads, batch_copy=ends.copy), ends

    def pin(self, nbytes: int, *, touch: bool) -> PinReport:
        raise InvalidArgument(f"host memory is not pinned for the CPU ({nbytes} bytes, {touch=})")

    def close(self) -> None:
        pass


class _Memcpy:
    def __init__(self, nbytes: int, threads: ThreadPoolExecutor) -> None:
        self._nbytes = nbytes
        self._threads = threads
        self._rows = torch.ones(4, nbytes, dtype=torch.uint8)
        self.both()

    def one(self, direction: Direction) -> None:
        self._copy(0 if direction == "load" else 2)

    def both(self) -> None:
        for _ in self._threads.map(self._copy, (0, 2)):
            pass

    def _copy(self, row: int) -> None:
        ctypes.memmove(self._rows[row].data_ptr(), self._rows[row + 1].data_ptr(), self._nbytes)


class _Products:
    def __init__(self, size: int) -> None:
        self._left, self._right, self._product = (torch.rand(size, size) for _ in range(3))

    def start(self, steps: int) -> _Done:
        begin = time.perf_counter()
        for _ in range(steps):
            torch.mm(self._left, self._right, out=self._product)
        return _Done(time.perf_counter() - begin)

    def wait_for(self, event: DeviceEvent) -> None:
        event.synchronize()


class _Done:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def ended(self) -> bool:
        return True

    def seconds(self) -> float:
        return self._seconds


class _LastCopy:
    """Notes when a thread came out of a copy: of one transfer at a time the last such moment is its end."""

    def __init__(self) -> None:
        self._copy = best_batch_copy()
        self._last = 0.0

    def copy(self, batch: CopyBatch) -> None:
        self._copy(batch)
        self._last = time.perf_counter()

    def mark(self, event: DeviceEvent) -> None:
        pass

    def ended_at(self) -> float:
        return self._last


def _processor_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:
            return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
    except OSError:
        return platform.processor() or "unknown"
