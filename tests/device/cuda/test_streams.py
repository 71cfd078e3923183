"""Copies keep their order among themselves and with the model's work, and events mark them."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Copy, CopyDevice, CopyStream
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.events import DeviceEvent
from asyncoffload.errors import InvalidArgument, TransferError
from tests.device.cuda.fake import Fake
from tests.device.cuda.rig import PAGE, Rig, rig_over


@pytest.fixture
def rig(fake: Fake, driver: Driver) -> Iterator[Rig]:
    with rig_over(fake, driver) as rig:
        yield rig


def test_it_has_the_surface_of_a_device(rig: Rig) -> None:
    device: CopyDevice = rig.device
    stream: CopyStream = rig.device.stream("stores", "store")
    event: DeviceEvent = rig.device.event()
    assert event.query()
    event.synchronize()
    event.wait(rig.compute)
    copy: Copy = stream.copy(rig.batch("store", 0), keep_alive=rig)
    event.record(stream)
    event.synchronize()
    assert (copy.position, copy.started, copy.ended, copy.complete, copy.error) == (1, True, True, True, None)
    assert device.engines()["plain"].nbytes == PAGE
    assert device.reaches(torch.device("cuda", 0))
    assert not device.reaches(torch.device("cuda", 1))
    assert not device.reaches(torch.device("cpu"))
    assert "stores" in repr(device)
    assert "cuda:0, open, pinned" in repr(device)


def test_copies_of_a_stream_run_in_order(rig: Rig) -> None:
    stream = rig.device.stream("stores", "store")
    rig.on_device[:] = 7
    rig.hold(stream)
    rig.submit(stream, 1, 2)
    first_event = rig.device.event()
    first_event.record(stream)
    _, last = rig.submit(stream, 5)
    assert not first_event.query()
    rig.step(stream, 5)  # the wait for the caller, then two pieces and their marks
    rig.fake.settle()
    assert first_event.query()
    assert not last.query()
    rig.release(stream)
    last.synchronize()
    assert rig.pages_run(stream) == [1, 2, 5]
    assert (rig.on_host[[1, 2, 5]] == 7).all()


def test_a_store_reads_what_the_compute_stream_was_given_to_write(rig: Rig) -> None:
    stream = rig.device.stream("stores", "store")
    rig.fake.hold(rig.compute)
    rig.compute_fills(3, 0xAB)
    copy, event = rig.submit(stream, 3)
    rig.fake.settle()
    assert not event.query()
    assert copy.started
    rig.fake.release(rig.compute)
    event.synchronize()
    assert (rig.on_host[3] == 0xAB).all()


def test_a_load_leaves_its_destination_alone_until_the_compute_stream_is_done_with_it(rig: Rig) -> None:
    loads = rig.device.stream("loads", "load")
    rig.on_host[3] = 9
    rig.fake.hold(rig.compute)
    rig.compute_fills(3, 1)  # as zeroing a new block would
    _, event = rig.submit(loads, 3)
    rig.fake.settle()
    assert (rig.on_device[3] == 0).all()
    rig.fake.release(rig.compute)
    event.synchronize()
    assert (rig.on_device[3] == 9).all()


def test_work_given_to_the_compute_stream_later_is_not_waited_for(rig: Rig) -> None:
    stream = rig.device.stream("stores", "store")
    rig.hold(stream)
    _, event = rig.submit(stream, 3)
    rig.fake.settle()
    rig.fake.hold(rig.compute)
    rig.compute_fills(3, 1)
    rig.release(stream)
    event.synchronize()


def test_streams_are_independent_of_each_other(rig: Rig) -> None:
    streams = {
        (direction, kind): rig.device.stream(f"{kind} {direction}s", direction)
        for direction in ("store", "load")
        for kind in ("small", "bulk")
    }
    for held in streams.values():
        rig.hold(held)
        rig.submit(held, 0)
        for other in streams.values():
            if other is not held:
                _, event = rig.submit(other, 1)
                event.synchronize()
        rig.release(held)


def test_a_stream_waits_on_the_device_for_a_launched_copy_of_another(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.on_device[2] = 5
    rig.hold(stores)
    stored, _ = rig.submit(stores, 2)
    unrelated, _ = rig.submit(stores, 9)
    loads.wait_for(stores, stored.position)
    copy, event = rig.submit(loads, 2)
    _, behind = rig.submit(loads, 4)
    rig.fake.settle()
    assert copy.started
    assert not event.query()
    assert not behind.query()
    rig.step(stores, 3)  # the wait for the caller, the copy, its mark
    behind.synchronize()
    assert not unrelated.ended
    assert (rig.on_device[2] == 5).all()
    assert (rig.on_host[2] == 5).all()


def test_what_a_waiting_load_reads_is_not_read_before_its_turn(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    _, event = rig.submit(loads, 0)
    event.synchronize()
    rig.hold(stores)
    stored, _ = rig.submit(stores, 2)
    loads.wait_for(stores, stored.position)
    rig.submit(loads, 2, 4)  # two pieces
    _, event = rig.submit(loads, 6)  # relies on the order of its stream
    rig.release(stores)
    event.synchronize()
    _, event = rig.submit(loads, 8)
    event.synchronize()
    finals = [launch.source_final for launch in rig.launcher.launches if launch.direction == "load"]
    assert finals == [True, False, False, False, True]
    assert not any(launch.source_final for launch in rig.launcher.launches if launch.direction == "store")


def test_a_stream_waits_for_nothing_but_streams_of_its_own_device(rig: Rig, fake: Fake, driver: Driver) -> None:
    stream = rig.device.stream("stores", "store")
    with rig_over(fake, driver) as other:
        foreign = other.device.stream("loads", "load")
        with pytest.raises(InvalidArgument, match="its own device"):
            stream.wait_for(foreign, 1)
        with pytest.raises(InvalidArgument, match="its own device"):
            rig.device.event().record(foreign)
        event = rig.device.event()
        event.record(stream)
        with pytest.raises(InvalidArgument, match="its own device"):
            event.wait(foreign)


@pytest.mark.parametrize("as_torch", [False, True])
def test_the_compute_stream_can_be_made_to_wait_for_a_copy(rig: Rig, as_torch: bool) -> None:
    loads = rig.device.stream("loads", "load")
    rig.on_host[3] = 9
    rig.hold(loads)
    _, event = rig.submit(loads, 3)
    event.wait(SimpleNamespace(cuda_stream=rig.compute) if as_torch else rig.compute)
    rig.compute_fills(3, 1)
    rig.fake.settle()
    assert (rig.on_device[3] == 0).all()
    rig.release(loads)
    rig.driver.synchronize_stream(rig.compute)
    assert (rig.on_device[3] == 1).all()


def test_waiting_for_what_has_ended_asks_nothing_of_the_driver(rig: Rig) -> None:
    _, event = rig.submit(rig.device.stream("loads", "load"), 3)
    event.synchronize()
    before = rig.fake.calls("cuStreamWaitEvent")
    event.wait(rig.compute)
    assert rig.fake.calls("cuStreamWaitEvent") == before


def test_an_event_makes_a_stream_of_the_device_wait(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.hold(stores)
    _, stored = rig.submit(stores, 2)
    stored.wait(loads)
    _, loaded = rig.submit(loads, 2)
    rig.fake.settle()
    assert not loaded.query()
    rig.release(stores)
    loaded.synchronize()


def test_an_event_marks_what_was_there_when_it_was_recorded(rig: Rig) -> None:
    stream = rig.device.stream("stores", "store")
    _, event = rig.submit(stream, 1)
    event.synchronize()
    rig.hold(stream)
    _, later = rig.submit(stream, 2)
    assert event.query()
    assert not later.query()


def test_the_owner_of_the_memory_and_the_reservation_live_until_the_copy_has_ended(rig: Rig) -> None:
    class Owner: ...

    stream, event, owner = rig.device.stream("only", "store"), rig.device.event(), Owner()
    alive = weakref.ref(owner)
    rig.hold(stream)
    stream.copy(rig.batch("store", 1), keep_alive=owner)
    event.record(stream)
    del owner
    assert alive() is not None
    assert rig.launcher.reserved == 1
    rig.release(stream)
    event.synchronize()
    assert alive() is None
    assert rig.launcher.reserved == 0


def test_the_destructor_of_an_owner_may_use_the_device(rig: Rig) -> None:
    stream, found = rig.device.stream("only", "store"), []

    class Owner:
        def __del__(self) -> None:
            found.append(repr(rig.device))
            rig.submit(stream, 2)

    rig.hold(stream)
    copy = stream.copy(rig.batch("store", 1), keep_alive=Owner())
    rig.release(stream)
    event = rig.device.event()
    event.record(stream)
    event.synchronize()
    assert copy.complete
    assert len(found) == 1
    assert stream.position == 2


def test_an_empty_copy_takes_its_turn_and_ends(rig: Rig) -> None:
    stream = rig.device.stream("only", "load")
    rig.hold(stream)
    _, before = rig.submit(stream, 1)
    empty, event = rig.submit(stream)
    assert not event.query()
    rig.release(stream)
    event.synchronize()
    assert empty.complete
    assert before.query()
    assert len(rig.launcher.launches) == 1


def test_a_batch_may_be_told_by_a_function_on_the_submitter_s_thread(rig: Rig) -> None:
    stream, event, threads = rig.device.stream("only", "store"), rig.device.event(), []

    def tell() -> CopyBatch:
        threads.append(threading.get_ident())
        return rig.batch("store", 1)

    copy = stream.copy(tell, keep_alive=rig)
    event.record(stream)
    event.synchronize()
    assert copy.complete
    assert threads == [threading.get_ident()]


def test_a_function_that_fails_fails_its_copy_alone(rig: Rig) -> None:
    stream, event = rig.device.stream("only", "store"), rig.device.event()
    bad = stream.copy(lambda: rig.batch("store", 1 // 0), keep_alive=rig)
    event.record(stream)
    good, good_event = rig.submit(stream, 2)
    good_event.synchronize()
    with pytest.raises(TransferError, match="a copy failed: integer division"):
        event.synchronize()
    assert bad.ended
    assert not bad.complete
    assert good.complete


def test_a_caller_keeps_its_own_current_context(rig: Rig, driver: Driver) -> None:
    stream = rig.device.stream("only", "store")
    seen: list[int] = []

    def run() -> None:
        _, event = rig.submit(stream, 1)
        event.synchronize()
        assert event.query()
        seen.append(driver.bind(0))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [0]


def test_a_small_copy_costs_few_calls_of_the_driver(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.submit(stream, 1)[1].synchronize()
    names = (
        "cuCtxGetCurrent",
        "cuStreamIsCapturing",
        "cuEventRecord",
        "cuStreamWaitEvent",
        "cuMemcpyBatchAsync",
        "cuThreadExchangeStreamCaptureMode",
        "cuCtxSetCurrent",
        "cuEventCreate",
        "cuEventQuery",
        "cuEventSynchronize",
    )
    before = {name: rig.fake.calls(name) for name in names}
    rig.submit(stream, 2)
    spent = {name: n for name in names if (n := rig.fake.calls(name) - before[name])}
    assert spent == {
        "cuCtxGetCurrent": 1,
        "cuStreamIsCapturing": 1,
        "cuEventRecord": 2,
        "cuStreamWaitEvent": 1,
        "cuMemcpyBatchAsync": 1,
        "cuThreadExchangeStreamCaptureMode": 2,
    }
