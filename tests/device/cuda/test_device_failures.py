"""A launch that fails is its copy's own affair; a device that fails ends everything, and says so."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.launch_queue import LaunchQueue
from asyncoffload.device.cuda.pools import Mark
from asyncoffload.device.events import probe
from asyncoffload.errors import DeviceError, InvalidArgument
from tests.device.cuda.fake import CaptureMode, Fake
from tests.device.cuda.rig import Rig, rig_over

ILLEGAL_ADDRESS = 700


@pytest.fixture
def rig(fake: Fake, driver: Driver) -> Iterator[Rig]:
    with rig_over(fake, driver) as rig:
        yield rig


@pytest.mark.parametrize("call", ["cuMemcpyBatchAsync", "cuStreamWaitEvent"])
def test_a_launch_that_fails_fails_its_copy_alone(rig: Rig, call: str) -> None:
    stream = rig.device.stream("only", "store")
    before, before_event = rig.submit(stream, 0)
    rig.fake.fail_next(call, 1)
    bad, bad_event = rig.submit(stream, 2)
    good, good_event = rig.submit(stream, 4)
    good_event.synchronize()
    before_event.synchronize()
    with pytest.raises(
        DeviceError, match=f"a copy of 4096 bytes could not be launched: {call}.* failed with 1"
    ) as info:
        bad_event.synchronize()
    assert (info.value.code, info.value.lost) == (1, False)
    assert bad.ended
    assert not bad.complete
    assert before.complete
    assert good.complete
    assert rig.pages_run(stream) == [0, 4]
    assert probe(bad_event) == (True, info.value)
    with pytest.raises(DeviceError, match="could not be launched"):
        bad_event.wait(rig.compute)
    assert rig.all_is_given_back()


def test_any_exception_of_a_way_of_copying_fails_its_copy_alone(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")

    def refuse(_: CopyBatch) -> None:
        raise RuntimeError("the kernel does not compile")

    rig.launcher.before = refuse
    _, event = rig.submit(stream, 0)
    with pytest.raises(DeviceError, match="the kernel does not compile") as info:
        event.synchronize()
    assert isinstance(info.value.__cause__, RuntimeError)
    rig.launcher.before = lambda _: None
    rig.submit(stream, 0)[1].synchronize()


def test_a_copy_of_which_a_piece_fails_ends_after_the_pieces_before_it(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.fake.fail_next("cuMemcpyBatchAsync", 1, after=1)
    rig.hold(stream)
    copy, event = rig.submit(stream, 0, 2, 4)
    _, behind = rig.submit(stream, 6)
    assert not event.query()
    assert copy.error is not None
    with pytest.raises(DeviceError, match="could not be launched"):
        event.wait(rig.compute)
    rig.release(stream)
    behind.synchronize()
    with pytest.raises(DeviceError, match="could not be launched"):
        event.query()
    assert rig.pages_run(stream) == [0, 6]


def test_a_launch_that_fails_in_the_feeder_is_known_by_its_copy(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.hold(stream)
    rig.submit(stream, 0, 2, 4, 6)
    _, bad = rig.submit(stream, 8)
    _, good = rig.submit(stream, 10)
    rig.fake.fail_next("cuMemcpyBatchAsync", 1)
    rig.release(stream)
    good.synchronize()
    with pytest.raises(DeviceError, match="could not be launched"):
        bad.query()
    assert rig.pages_run(stream) == [0, 2, 4, 6, 10]


def test_what_a_failed_copy_had_to_wait_for_the_next_one_waits_for(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.hold(stores)
    stored, _ = rig.submit(stores, 2)
    loads.wait_for(stores, stored.position)
    rig.fake.fail_next("cuStreamWaitEvent", 1)
    failed, _ = rig.submit(loads, 2)
    _, loaded = rig.submit(loads, 4)
    rig.fake.settle()
    assert failed.error is not None
    assert not loaded.query()
    rig.release(stores)
    loaded.synchronize()
    assert stored.ended


def test_events_that_cannot_be_made_fail_the_submission_or_the_copy(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.fake.fail_next("cuEventCreate", 2)
    with pytest.raises(DeviceError, match="cuEventCreate"):
        rig.submit(stream, 0)
    rig.fake.fail_next("cuEventCreate", 2, after=1)
    _, event = rig.submit(stream, 0)
    with pytest.raises(DeviceError, match="cuEventCreate"):
        event.synchronize()
    _, event = rig.submit(stream, 2)
    event.synchronize()
    assert rig.pages_run(stream) == [2]
    assert rig.all_is_given_back()


def test_a_copy_that_cannot_be_marked_is_waited_for(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.fake.fail_next("cuEventRecord", 2, after=1)
    copy, event = rig.submit(stream, 0)
    assert event.query()
    assert copy.complete
    assert rig.pages_run(stream) == [0]
    assert rig.all_is_given_back()


def test_a_current_stream_that_cannot_be_marked_fails_the_submission(rig: Rig) -> None:
    stream = rig.device.stream("only", "store")
    rig.fake.fail_next("cuEventRecord", 1)
    with pytest.raises(DeviceError, match="cuEventRecord"):
        rig.submit(stream, 0)
    assert stream.position == 0
    assert not rig.launcher.launches
    assert rig.all_is_given_back()


def test_a_device_that_fails_ends_every_copy_and_takes_no_more(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.fail_copies_to_host(2, ILLEGAL_ADDRESS)
    rig.fake.hold()
    copies = [rig.submit(stores, page) for page in range(0, 20, 2)] + [rig.submit(loads, page) for page in range(8)]
    rig.fake.release()
    for _, event in copies:
        with suppress(DeviceError):
            event.synchronize()
    assert all(copy.ended for copy, _ in copies)
    errors = [copy.error for copy, _ in copies]
    assert isinstance(errors[1], DeviceError)
    assert {(error.code, error.lost) for error in errors if isinstance(error, DeviceError)} == {(ILLEGAL_ADDRESS, True)}
    assert not any(copy.complete for copy, _ in copies if copy.error is not None)
    with pytest.raises(DeviceError, match=r"the device failed under its copies: .*700") as info:
        copies[1][1].query()
    assert info.value.lost
    with pytest.raises(DeviceError, match=r"takes no further work in this process.*700") as info:
        rig.submit(loads, 20)
    assert info.value.lost
    with pytest.raises(DeviceError, match="takes no further work"):
        rig.device.stream("more", "load")
    assert "lost" in repr(rig.device)
    assert rig.all_is_given_back()


def test_a_thread_that_waits_for_a_copy_learns_that_the_device_failed(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.fail_copies_to_host(2)
    rig.hold(stores)
    rig.hold(loads)
    _, failing = rig.submit(stores, 2)
    waits = [rig.submit(loads, page)[1] for page in range(0, 20, 2)]  # launched ones, and some behind the window
    errors: list[DeviceError] = []

    def join(index: int) -> None:
        try:
            waits[index].synchronize()
        except DeviceError as error:
            errors.append(error)

    threads = [threading.Thread(target=join, args=(index,)) for index in (0, 3, 6, 9)]
    for thread in threads:
        thread.start()
    rig.release(stores)
    with pytest.raises(DeviceError):
        failing.synchronize()
    for thread in threads:
        thread.join()
    assert [error.lost for error in errors] == [True] * 4


def test_a_submission_finds_out_that_the_device_has_failed(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.fail_copies_to_host(2)
    copy, event = rig.submit(stores, 2)
    rig.fake.settle()
    with pytest.raises(DeviceError) as info:
        rig.submit(loads, 0)
    assert info.value.lost
    assert copy.ended
    with pytest.raises(DeviceError, match="failed under its copies"):
        event.query()
    rig.device.close()


def test_a_piece_that_is_launched_while_the_device_is_lost_ends_too(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, record = rig.device.stream("only", "store"), LaunchQueue._record

    def record_and_lose(queue: LaunchQueue, mark: Mark) -> bool:
        recorded = record(queue, mark)
        rig.device._shared.lose(DeviceError("seen by another thread", code=ILLEGAL_ADDRESS, lost=True))
        assert not stream._last.ended  # the call that launches has not come back
        return recorded

    monkeypatch.setattr(LaunchQueue, "_record", record_and_lose)
    copy, event = rig.submit(stream, 0, 2, 4)
    assert copy._over  # without asking the device
    with pytest.raises(DeviceError, match="seen by another thread"):
        event.query()
    assert rig.all_is_given_back()
    assert len(rig.launcher.launches) == 1


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_nothing_is_submitted_while_the_current_stream_is_captured(rig: Rig, mode: CaptureMode) -> None:
    stream, event = rig.device.stream("only", "store"), rig.device.event()
    _, running = rig.submit(stream, 0)
    with rig.fake.capture(rig.compute, mode) as capture:
        with pytest.raises(InvalidArgument, match="captured into a CUDA graph"):
            rig.submit(stream, 2)
        running.synchronize()
        running.wait(rig.compute)  # it has ended: there is nothing to wait for
        rig.hold(stream)
    assert capture.code == 0
    _, running = rig.submit(stream, 4)
    with rig.fake.capture(rig.compute, mode) as capture:
        with pytest.raises(InvalidArgument, match="cannot wait for"):
            running.wait(rig.compute)
        event.record(stream)
        rig.release(stream)
        event.synchronize()
    assert capture.code == 0
    assert rig.fake.count("captured_operations") == 0
    assert rig.pages_run(stream) == [0, 4]
    assert stream.position == 2


@pytest.mark.parametrize("mode", ["global", "thread_local", "relaxed"])
def test_copies_go_on_while_another_stream_is_captured(rig: Rig, mode: CaptureMode) -> None:
    stream, model = rig.device.stream("only", "store"), rig.driver.create_stream()
    rig.hold(stream)
    rig.submit(stream, *range(0, 20, 2))
    with rig.fake.capture(model, mode) as capture:
        copy, event = rig.submit(stream, 30)
        assert not event.query()
        rig.release(stream)
        event.synchronize()
        assert copy.complete
    assert capture.code == 0
    assert rig.fake.count("captured_operations") == 0
