"""The measurements on a CUDA device: over the fake driver as far as it goes and, with marker ``gpu``, on a real one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncoffload.cli.device_bench.cuda_board import TorchBoard, link_under
from asyncoffload.cli.device_bench.cuda_side import CudaSide
from asyncoffload.cli.device_bench.figures import Section
from asyncoffload.cli.device_bench.running import MEASUREMENTS, Measurement, run_measurement
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.compiled_kernel import CompiledKernel
from asyncoffload.device.events import DeviceEvent
from tests.cli.tiny_effort import TINY
from tests.device.cuda.engines.rig import fake_compiler
from tests.device.cuda.fake import Fake, driver, fake, memory

__all__ = ["driver", "fake"]


class FakeBoard:
    """Device memory is the fake's, which is host memory; matrix products are small fills of it."""

    ordinal = 0

    def __init__(self, fake: Fake, driver: Driver) -> None:
        self._fake, self._driver = fake, driver
        self._idle, self._busy = driver.create_stream(), driver.create_stream()
        self.current_stream: Callable[[], int] | None = lambda: self._idle

    def facts(self, load: Callable[[], None]) -> Mapping[str, str]:
        load()
        return {"device": "a fake"}

    def tensor(self, *shape: int) -> torch.Tensor:
        nbytes = int(torch.Size(shape).numel())
        return torch.from_numpy(memory(self._driver.alloc_device(nbytes), nbytes)).view(shape)

    def settle(self) -> None:
        self._fake.settle()

    def compute(self, size: int) -> FakeProducts:
        return FakeProducts(self._fake, self._driver, self._busy, self.tensor(size))

    def ends(self) -> FakeEnds:
        return FakeEnds(self._busy)


class FakeProducts:
    def __init__(self, fake: Fake, driver: Driver, stream: int, product: torch.Tensor) -> None:
        self._fake, self._driver, self._stream, self._product = fake, driver, stream, product

    def start(self, steps: int) -> FakeSpan:
        span = FakeSpan(self._driver)
        for _ in range(min(steps, 100)):
            self._fake.fill(self._stream, self._product.data_ptr(), len(self._product), 1)
        span.record(self._stream)
        return span

    def wait_for(self, event: DeviceEvent) -> None:
        event.wait(self._stream)


class FakeSpan:
    def __init__(self, driver: Driver) -> None:
        self._driver, self._event, self._begin = driver, driver.create_event(), time.perf_counter()

    def record(self, stream: int) -> None:
        self._driver.record_event(self._event, stream)

    def ended(self) -> bool:
        return self._driver.query_event(self._event)

    def seconds(self) -> float:
        self._driver.synchronize_event(self._event)
        return time.perf_counter() - self._begin


class FakeEnds:
    def __init__(self, stream: int) -> None:
        self._stream = stream

    def mark(self, event: DeviceEvent) -> None:
        event.wait(self._stream)

    def ended_at(self) -> float:
        return time.perf_counter()


class DeviceInHostMemory(CudaDevice):
    """torch takes the fake's memory for host memory."""

    def reaches(self, device: torch.device) -> bool:
        return device.type == "cpu"


@pytest.fixture
def fake_side(fake: Fake, driver: Driver) -> Iterator[Side]:
    side = CudaSide(
        FakeBoard(fake, driver),
        driver,
        make_device=DeviceInHostMemory,
        make_kernel=lambda: CompiledKernel(driver, 0, compiler=fake_compiler),
    )
    yield side
    fake.settle()
    side.close()


@pytest.fixture
def real_side() -> Iterator[Side]:
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    side = CudaSide(TorchBoard())
    yield side
    side.close()


def _section(measurement: Measurement, side: Side) -> Section:
    sections: list[Section] = []
    run_measurement(side, TINY, measurement, sections.append)
    (section,) = sections
    return section


every_measurement = pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda measurement: measurement.key)


@every_measurement
def test_every_measurement_runs_over_the_fake_driver(fake_side: Side, fake: Fake, measurement: Measurement) -> None:
    section = _section(measurement, fake_side)
    assert not section.error
    assert section.figures
    for kind in ("registrations", "pinned_allocations"):
        assert fake.count(kind) == 0


@pytest.mark.gpu
@every_measurement
def test_every_measurement_runs_on_a_gpu(real_side: Side, measurement: Measurement) -> None:
    section = _section(measurement, real_side)
    assert not section.error
    assert section.figures


def test_the_machine_is_described(fake_side: Side) -> None:
    facts = fake_side.facts()
    assert facts["device"] == "a fake"
    assert facts["engines"] == "batched, plain, kernel, staged, torch"


class EventOfNow:
    """Passed as soon as recorded."""

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.recorded_at = 0.0

    def record(self, stream: object = None) -> None:
        assert stream is None or isinstance(stream, StreamOfNow)
        self.recorded_at = time.perf_counter()

    def query(self) -> bool:
        return self.recorded_at > 0

    def synchronize(self) -> None: ...

    def elapsed_time(self, later: EventOfNow) -> float:
        return (later.recorded_at - self.recorded_at) * 1e3


class StreamOfNow:
    def __init__(self, device: torch.device) -> None:
        assert device.type == "cpu"


class CudaOfTheHost:
    """What a board uses of ``torch.cuda``, without a device."""

    Event, Stream = EventOfNow, StreamOfNow

    def init(self) -> None: ...

    def current_device(self) -> int:
        return 3

    def synchronize(self, device: torch.device) -> None:
        assert device.type == "cpu"

    def stream(self, stream: StreamOfNow) -> AbstractContextManager[object]:
        return nullcontext(stream)

    def get_device_properties(self, _: torch.device) -> object:
        return SimpleNamespace(name="a host", total_memory=2**33, multi_processor_count=7, uuid="a-b")


class WaitedFor:
    """An event that writes down who waits for it."""

    def __init__(self) -> None:
        self.by: list[object] = []

    def wait(self, stream: object, /) -> None:
        self.by.append(stream)


@pytest.fixture
def board() -> TorchBoard:
    return TorchBoard(CudaOfTheHost(), torch.device("cpu"))


def test_a_board_multiplies_on_a_stream_of_its_own(board: TorchBoard) -> None:
    compute, event = board.compute(8), WaitedFor()
    compute.wait_for(event)  # type: ignore[arg-type]
    span = compute.start(2)
    assert span.ended()
    assert span.seconds() > 0
    assert isinstance(event.by[0], StreamOfNow)


def test_a_board_tells_ends_on_the_clock_of_the_host(board: TorchBoard) -> None:
    ends, event = board.ends(), WaitedFor()
    before = time.perf_counter()
    ends.mark(event)  # type: ignore[arg-type]
    assert before <= ends.ended_at() <= time.perf_counter()
    assert isinstance(event.by[0], StreamOfNow)


def test_a_board_describes_its_device(board: TorchBoard) -> None:
    facts = board.facts(lambda: None)
    assert facts["device"] == "a host, 8 GiB"
    assert {"link", "torch", "triton", "python", "multiprocessors"} <= facts.keys()
    assert board.tensor(2, 3).shape == (2, 3)
    board.settle()


def _answer_of_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\necho '{answer}'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=":")


def test_the_link_is_looked_at_under_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_of_nvidia_smi(tmp_path, monkeypatch, "NVIDIA X, 580.1, 5, 16, 5, 1980 MHz")
    assert link_under(lambda: None, "a-b") == "PCIe 5 x 16 under load, at most 5 (NVIDIA X, driver 580.1, 1980 MHz)"


def test_a_link_that_cannot_be_looked_at_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _answer_of_nvidia_smi(tmp_path, monkeypatch, "No devices were found")
    assert link_under(lambda: None, None) == "unknown (No devices were found)"
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    assert "unknown" in link_under(lambda: None, None)


def test_ways_of_copying_are_forced_and_explained(fake_side: Side) -> None:
    sweep = next(measurement for measurement in MEASUREMENTS if measurement.key == "engines")
    figures: dict[str, Any] = {figure.name: figure.notes for figure in _section(sweep, fake_side).figures}
    notes = figures["load, 4 KiB x 32"]
    assert {"batched_GBps", "plain_GBps", "kernel_GBps", "staged_GBps"} <= notes.keys()
    assert "fragments of" in notes["why"]
    assert notes["engine"] in ("batched", "plain", "kernel", "staged")
