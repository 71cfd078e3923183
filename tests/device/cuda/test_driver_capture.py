"""The driver's calls beside a graph capture: answered without spoiling it, or refused clearly."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import DeviceError
from tests.device.cuda.fake import CaptureMode, Fake, memory
from tests.device.cuda.machine import at, int64s

PAGE = 4096


def _register(driver: Driver) -> None:
    room = np.zeros(2 * PAGE, dtype=np.uint8)
    host = -(-at(room) // PAGE) * PAGE
    driver.register(host, PAGE)
    driver.unregister(host)


def _copy(driver: Driver, *, batched: bool) -> None:
    """There and back, as the memory of a real device cannot be looked at."""
    stream, device = driver.create_stream(), driver.alloc_device(PAGE)
    host, back = driver.alloc_pinned(PAGE), driver.alloc_pinned(PAGE)
    memory(host, PAGE)[:] = 4
    for dst, src in ((device, host), (back, device)):
        if batched:
            driver.copy_batch(int64s(dst), int64s(src), int64s(PAGE), stream, source_final=False)
        else:
            driver.copy_one(dst, src, PAGE, stream)
    driver.synchronize_stream(stream)
    assert (memory(back, PAGE) == 4).all()
    driver.free_device(device)
    driver.free_pinned(host)
    driver.free_pinned(back)
    driver.destroy_stream(stream)


def _record_and_wait(driver: Driver) -> None:
    first, second, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    driver.record_event(event, first)
    driver.stream_wait_event(second, event)
    driver.synchronize_event(event)
    assert driver.query_event(event)
    driver.destroy_event(event)


def _launch(driver: Driver) -> None:
    driver.unload_module(driver.load_kernel(b"image", "copy_fragments")[0])


WORK: dict[str, Callable[[Driver], None]] = {
    "pinning": _register,
    "batch": lambda driver: _copy(driver, batched=True),
    "copy": lambda driver: _copy(driver, batched=False),
    "events": _record_and_wait,
    "kernel": _launch,
}


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
@pytest.mark.parametrize("same_thread", [True, False])
@pytest.mark.parametrize("work", WORK.values(), ids=WORK)
def test_work_on_other_streams_goes_on_and_spoils_no_capture(
    driver: Driver, fake: Fake, work: Callable[[Driver], None], same_thread: bool, mode: CaptureMode
) -> None:
    context = driver.retain_primary_context(0)

    def on_another_thread() -> None:
        driver.bind(context)
        work(driver)

    with fake.capture(driver.create_stream(), mode) as outcome:
        if same_thread:
            work(driver)
        else:
            with ThreadPoolExecutor(1) as pool:
                pool.submit(on_another_thread).result()
    assert outcome.code == 0
    assert fake.count("captured_operations") == 0


def test_a_bare_query_would_spoil_it(driver: Driver, fake: Fake) -> None:
    bare = ctypes.CDLL(fake.library).cuEventQuery
    event = ctypes.c_void_p(driver.create_event())
    with fake.capture(driver.create_stream()) as outcome:
        assert bare(event) == 900
    assert outcome.code == 901


def test_the_thread_is_relaxed_for_the_call_only(driver: Driver, fake: Fake) -> None:
    library = ctypes.CDLL(fake.library)
    event = driver.create_event()
    with pytest.raises(DeviceError):
        driver.free_device(4096)
    driver.query_event(event)
    mode = ctypes.c_int(1)
    library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    assert mode.value == 0
    driver.query_event(event)
    library.cuThreadExchangeStreamCaptureMode(ctypes.byref(mode))
    assert mode.value == 1, "a mode that the caller has chosen is put back"


@pytest.mark.parametrize("code", [900, 907])
def test_a_query_that_capture_keeps_from_answering_says_not_yet(driver: Driver, fake: Fake, code: int) -> None:
    event = driver.create_event()
    fake.fail_next("cuEventQuery", code)
    assert not driver.query_event(event)
    assert driver.query_event(event)


def test_an_event_recorded_in_a_capture_never_passes_and_cannot_be_waited_for(driver: Driver, fake: Fake) -> None:
    captured, event = driver.create_stream(), driver.create_event()
    with fake.capture(captured) as outcome:
        driver.record_event(event, captured)
        assert not driver.query_event(event)
        with pytest.raises(DeviceError, match=r"CUDA_ERROR_CAPTURED_EVENT.*outside a graph capture") as refused:
            driver.synchronize_event(event)
    assert refused.value.code == 907
    assert not refused.value.lost
    assert outcome.code == 0
    assert not driver.query_event(event)
    driver.record_event(event, captured)
    driver.synchronize_event(event)
    assert driver.query_event(event)


def test_a_batch_for_the_captured_stream_is_refused_and_leaves_the_capture_whole(driver: Driver, fake: Fake) -> None:
    captured, host, device = driver.create_stream(), driver.alloc_pinned(8), driver.alloc_device(8)
    with fake.capture(captured) as outcome:
        with pytest.raises(DeviceError, match=r"CAPTURE_UNSUPPORTED.*after the graph capture") as refused:
            driver.copy_batch(int64s(device), int64s(host), int64s(8), captured, source_final=False)
        driver.copy_one(device, host, 8, captured)
        assert fake.count("captured_operations") == 1
    assert refused.value.code == 900
    assert not refused.value.lost
    assert outcome.code == 0
    driver.synchronize_stream(captured)
    assert (memory(device, 8) == 0xCD).all(), "what a graph holds has not run"


def test_a_stream_tells_whether_it_is_captured(driver: Driver, fake: Fake) -> None:
    captured, drawn_in, free, event = (*(driver.create_stream() for _ in range(3)), driver.create_event())
    with fake.capture(captured):
        assert driver.is_capturing(captured)
        assert not driver.is_capturing(free)
        assert not driver.is_capturing(0)
        driver.record_event(event, captured)
        driver.stream_wait_event(drawn_in, event)
        assert driver.is_capturing(drawn_in), "who waits for captured work becomes part of the graph"
        with pytest.raises(DeviceError):
            driver.synchronize_stream(captured)
        assert driver.is_capturing(captured), "also once the capture is spoilt"
    assert not any(driver.is_capturing(stream) for stream in (captured, drawn_in, free))
    fake.fail_next("cuStreamIsCapturing", 906)
    assert driver.is_capturing(0), "nothing can be given to the legacy stream then"
    fake.fail_next("cuStreamIsCapturing", 400)
    with pytest.raises(DeviceError):
        driver.is_capturing(free)


def test_a_captured_stream_cannot_wait_for_work_outside(driver: Driver, fake: Fake) -> None:
    captured, outside, event = driver.create_stream(), driver.create_stream(), driver.create_event()
    driver.record_event(event, outside)
    with fake.capture(captured) as outcome, pytest.raises(DeviceError, match="ISOLATION") as refused:
        driver.stream_wait_event(captured, event)
    assert refused.value.code == 905
    assert outcome.code == 901


@pytest.mark.gpu
def test_queries_beside_a_capture_of_torch() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch sees no CUDA device")
    x = torch.zeros(64, device="cuda")
    torch.cuda.synchronize()
    driver = Driver()
    context = driver.retain_primary_context(0)
    driver.bind(context)
    stream, event = driver.create_stream(), driver.create_event()

    def ask() -> list[bool]:
        driver.bind(context)
        driver.record_event(event, stream)
        answers = [driver.query_event(event) for _ in range(100)]
        driver.synchronize_event(event)
        driver.free_pinned(driver.alloc_pinned(PAGE))
        _copy(driver, batched=driver.has_batched_copy)
        return answers

    graph = torch.cuda.CUDAGraph()
    with ThreadPoolExecutor(1) as pool, torch.cuda.graph(graph, capture_error_mode="global"):
        x += 1
        assert driver.is_capturing(torch.cuda.current_stream().cuda_stream)
        assert len(pool.submit(ask).result()) == 100
        x += 1
    graph.replay()
    torch.cuda.synchronize()
    assert x.unique().tolist() == [2]
    driver.destroy_event(event)
    driver.destroy_stream(stream)
    driver.release_primary_context(0)
