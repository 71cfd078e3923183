"""What the measurements need of torch on a CUDA device: tensors, matrix products, and events with a clock.

Everything else they do there goes through the driver alone. torch's CUDA part is touched when a board is made.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch

from asyncoffload.cli.device_bench.side import Compute, Ends
from asyncoffload.device.events import DeviceEvent

_LINK = "name,driver_version,pcie.link.gen.current,pcie.link.width.current,pcie.link.gen.max,clocks.sm"
_END_READINGS = 3


class Board(Protocol):
    """A device as torch sees it."""

    ordinal: int

    current_stream: Callable[[], int] | None
    """The handle of this thread's compute stream; None where the default of :class:`CudaDevice` is right."""

    def facts(self, load: Callable[[], None]) -> Mapping[str, str]:
        """What device this is; ``load`` keeps the link busy for some milliseconds, since it slows down when idle."""

    def tensor(self, *shape: int) -> torch.Tensor:
        """A new uint8 tensor there."""

    def settle(self) -> None:
        """Block until the device has nothing to do."""

    def compute(self, size: int) -> Compute:
        """Products of square bf16 matrices."""

    def ends(self) -> Ends:
        """Tells when transfers had ended."""


class TorchBoard:
    """The current CUDA device of torch.

    Args:
        cuda: what torch offers for CUDA.
        device: where tensors are made; by default on that device.
    """

    current_stream: Callable[[], int] | None = None

    def __init__(self, cuda: Any = torch.cuda, device: torch.device | None = None) -> None:
        cuda.init()
        self._cuda = cuda
        self.ordinal: int = cuda.current_device()
        self._device = device or torch.device("cuda", self.ordinal)

    def facts(self, load: Callable[[], None]) -> Mapping[str, str]:
        properties = self._cuda.get_device_properties(self._device)
        return {
            "device": f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB",
            "multiprocessors": str(properties.multi_processor_count),
            "link": link_under(load, getattr(properties, "uuid", None)),
            "torch": f"{torch.__version__} for CUDA {torch.version.cuda}",
            "triton": _triton_version(),
            "python": platform.python_version(),
        }

    def tensor(self, *shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.uint8, device=self._device)

    def settle(self) -> None:
        self._cuda.synchronize(self._device)

    def compute(self, size: int) -> Compute:
        return _Products(self._cuda, size, self._device)

    def ends(self) -> Ends:
        return _TimedEnds(self._cuda, self._device)


class _Products:
    def __init__(self, cuda: Any, size: int, device: torch.device) -> None:
        self._left, self._right, self._product = (
            torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(3)
        )
        cuda.synchronize(device)
        self._cuda = cuda
        self._stream = cuda.Stream(device)  # not the current one, for which transfers wait

    def start(self, steps: int) -> _EventSpan:
        begin, end = (self._cuda.Event(enable_timing=True) for _ in range(2))
        with self._cuda.stream(self._stream):
            begin.record()
            for _ in range(steps):
                torch.mm(self._left, self._right, out=self._product)
            end.record()
        return _EventSpan(begin, end)

    def wait_for(self, event: DeviceEvent) -> None:
        event.wait(self._stream)


class _EventSpan:
    def __init__(self, begin: Any, end: Any) -> None:
        self._begin, self._end = begin, end

    def ended(self) -> bool:
        return bool(self._end.query())

    def seconds(self) -> float:
        self._end.synchronize()
        return float(self._begin.elapsed_time(self._end)) / 1e3


class _TimedEnds:
    """A stream of its own waits for the end of each transfer and records the device's clock.

    What that is on the host's clock follows from another such event, recorded later, whose end the host sees at once:
    it spins. The host sees it some microseconds late, never early, and so the earliest of some readings counts.
    """

    def __init__(self, cuda: Any, device: torch.device) -> None:
        self._cuda = cuda
        self._stream = cuda.Stream(device)
        self._end = cuda.Event(enable_timing=True)

    def mark(self, event: DeviceEvent) -> None:
        event.wait(self._stream)
        self._end.record(self._stream)

    def ended_at(self) -> float:
        self._end.synchronize()
        return min(self._reading() for _ in range(_END_READINGS))

    def _reading(self) -> float:
        reference = self._cuda.Event(enable_timing=True)
        reference.record(self._stream)
        while not reference.query():
            pass
        now = time.perf_counter()
        return now - float(self._end.elapsed_time(reference)) / 1e3


def link_under(load: Callable[[], None], uuid: object) -> str:
    """What ``nvidia-smi`` says of the link of the device while ``load`` runs again and again."""
    which = [f"--id=GPU-{uuid}"] if uuid else []  # its numbers differ from those of torch where some are hidden
    command = ["nvidia-smi", *which, f"--query-gpu={_LINK}", "--format=csv,noheader"]
    try:
        with _running(command) as asked:
            while asked.poll() is None:
                load()
            answer = asked.stdout.read().strip() if asked.stdout else ""
    except OSError as error:
        return f"unknown ({error})"
    parts = [part.strip() for part in answer.split(",")]
    if len(parts) != len(_LINK.split(",")):
        return f"unknown ({answer or 'nvidia-smi said nothing'})"
    name, driver, generation, width, most, clock = parts
    return f"PCIe {generation} x {width} under load, at most {most} ({name}, driver {driver}, {clock})"


@contextmanager
def _running(command: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def _triton_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"
