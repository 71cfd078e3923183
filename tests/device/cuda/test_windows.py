"""A stream gives the driver little at a time; what it has not given can be taken back."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.copy import CudaCopy
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.stream import CudaStream
from asyncoffload.device.cuda.window import WINDOW_PIECES
from asyncoffload.errors import InvalidArgument
from tests.device.cuda.fake import Fake
from tests.device.cuda.rig import N_PAGES, PAGE, Rig, rig_over

TakeBack = Callable[[CudaStream, CudaCopy], object]


@pytest.fixture
def rig(fake: Fake, driver: Driver) -> Iterator[Rig]:
    with rig_over(fake, driver) as rig:
        yield rig


class Gate:
    """Holds a launch in the launching thread until it is opened."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Semaphore(0), threading.Event()

    def __call__(self, _: CopyBatch) -> None:
        self.reached.release()
        assert self.go_on.wait(30)


def every_other(n: int, first: int = 0) -> list[int]:
    """Pages that are no neighbours."""
    return list(range(first, first + 2 * n, 2))


def test_a_stream_gives_the_driver_a_window_and_the_rest_as_it_ends(rig: Rig) -> None:
    stream = rig.device.stream("bulk", "store")
    pages = every_other(20)
    rig.on_device[pages] = 3
    rig.hold(stream)
    copy, event = rig.submit(stream, *pages)
    assert len(rig.launcher.launches) == 4
    rig.release(stream)
    event.synchronize()
    assert copy.complete
    assert rig.pages_run(stream) == pages
    assert (rig.on_host[pages] == 3).all()
    assert rig.fake.count("peak_store_bytes_in_flight") <= 4 * PAGE


def test_a_piece_larger_than_the_window_goes_alone(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver, window_bytes=1) as rig:
        stream = rig.device.stream("bulk", "store")
        _, event = rig.submit(stream, *every_other(8))
        event.synchronize()
        assert fake.count("peak_store_bytes_in_flight") == PAGE


@pytest.mark.parametrize("options", [{"window_bytes": 0}, {"piece_bytes": 0}])
def test_sizes_below_one_are_refused(fake: Fake, driver: Driver, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument, match="must be 1 or more"), rig_over(fake, driver, **options):
        pass
    assert fake.count("contexts") == 1


def test_the_pieces_in_the_driver_s_hands_are_few_however_small(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver, window_bytes=1 << 30) as rig:
        stream = rig.device.stream("urgent", "store")
        rig.hold(stream)
        copies = [rig.submit(stream, i % N_PAGES)[0] for i in range(WINDOW_PIECES + 10)]
        assert sum(copy.started for copy in copies) == WINDOW_PIECES


def test_copies_behind_a_full_window_keep_their_order(rig: Rig) -> None:
    stream = rig.device.stream("bulk", "load")
    rig.hold(stream)
    copies = [rig.submit(stream, page) for page in every_other(12)]
    assert [copy.started for copy, _ in copies] == [True] * 4 + [False] * 8
    rig.release(stream)
    copies[-1][1].synchronize()
    assert rig.pages_run(stream) == every_other(12)
    assert all(copy.complete for copy, _ in copies)


def test_a_small_copy_gets_through_beside_a_saturated_stream(rig: Rig) -> None:
    bulk, urgent = rig.device.stream("bulk", "load"), rig.device.stream("urgent", "load")
    rig.hold(bulk)
    _, large = rig.submit(bulk, *every_other(20))
    for page in every_other(10, first=1):
        _, small = rig.submit(urgent, page)
        small.synchronize()
    assert not large.query()
    rig.release(bulk)
    large.synchronize()


def test_every_stream_has_a_feeder_of_its_own(rig: Rig) -> None:
    stuck, other = rig.device.stream("stuck", "store"), rig.device.stream("other", "store")
    rig.hold(stuck)
    _, never = rig.submit(stuck, *every_other(10))
    _, event = rig.submit(other, *every_other(10, first=1))
    event.synchronize()
    assert not never.query()


def test_a_copy_waits_for_one_that_is_still_behind_its_window(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.on_device[:] = 5
    rig.hold(stores)
    rig.submit(stores, *every_other(6))
    stored, _ = rig.submit(stores, 30)
    loads.wait_for(stores, stored.position)
    loaded, event = rig.submit(loads, 30)
    rig.fake.settle()
    assert not stored.started
    assert not loaded.started
    rig.compute_fills(30, 6)
    rig.fake.settle()
    rig.release(stores)
    event.synchronize()
    assert stored.complete
    assert (rig.on_device[30] == rig.on_host[30]).all()


def test_waiting_for_a_position_is_not_cut_short_by_a_withdrawal(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.hold(stores)
    rig.submit(stores, *every_other(6))
    withdrawn, _ = rig.submit(stores, 30)
    loads.wait_for(stores, withdrawn.position)
    loaded, event = rig.submit(loads, 30)
    assert stores.withdraw(withdrawn)
    rig.fake.settle()
    assert not loaded.started
    rig.release(stores)
    event.synchronize()
    assert 30 not in rig.pages_run(stores)


def test_what_a_withdrawn_copy_had_to_wait_for_the_next_one_waits_for(rig: Rig) -> None:
    stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
    rig.hold(stores)
    rig.submit(stores, *every_other(6))
    stored, _ = rig.submit(stores, 30)
    for successor_is_queued in (True, False):
        loads.wait_for(stores, stored.position)
        withdrawn, _ = rig.submit(loads, 30)
        if successor_is_queued:
            successor, event = rig.submit(loads, 31)
            assert loads.withdraw(withdrawn)
        else:
            assert loads.withdraw(withdrawn)
            successor, event = rig.submit(loads, 31)
        rig.fake.settle()
        assert not successor.started
        assert loads.withdraw(successor)
    rig.release(stores)
    _, event = rig.submit(loads, 31)
    event.synchronize()
    assert stored.ended
    assert rig.pages_run(loads) == [31]


@pytest.mark.parametrize("take_back", [CudaStream.withdraw, CudaStream.stop])
def test_a_queued_copy_can_be_taken_back_and_ends_at_once(rig: Rig, take_back: TakeBack) -> None:
    stream = rig.device.stream("bulk", "store")
    rig.hold(stream)
    running, running_event = rig.submit(stream, *every_other(6))
    queued, event = rig.submit(stream, 30)
    behind, behind_event = rig.submit(stream, 40)
    take_back(stream, queued)
    assert event.query()
    assert (queued.ended, queued.complete, queued.started, queued.error) == (True, False, False, None)
    assert not stream.withdraw(queued)
    stream.stop(queued)
    rig.release(stream)
    behind_event.synchronize()
    running_event.synchronize()
    assert running.complete
    assert behind.complete
    assert rig.pages_run(stream) == [*every_other(6), 40]


def test_a_copy_that_is_launched_in_part_stops_after_what_is_launched(rig: Rig) -> None:
    stream = rig.device.stream("bulk", "store")
    rig.hold(stream)
    copy, event = rig.submit(stream, *every_other(12))
    _, behind = rig.submit(stream, 40)
    assert not stream.withdraw(copy)
    stream.stop(copy)
    stream.stop(copy)
    assert not event.query()
    rig.release(stream)
    event.synchronize()
    behind.synchronize()
    assert not copy.complete
    assert copy.error is None
    assert rig.pages_run(stream) == [*every_other(4), 40]


def test_a_launched_copy_ends_when_it_ends(rig: Rig) -> None:
    stream = rig.device.stream("bulk", "store")
    rig.hold(stream)
    copy, event = rig.submit(stream, *every_other(2))
    assert not stream.withdraw(copy)
    stream.stop(copy)
    assert not event.query()
    rig.release(stream)
    event.synchronize()
    assert copy.complete


def test_a_copy_can_be_stopped_while_a_piece_is_being_launched(rig: Rig) -> None:
    stream, gate = rig.device.stream("bulk", "store"), Gate()
    rig.launcher.before = gate
    found: list[CudaCopy] = []
    submitter = threading.Thread(target=lambda: found.append(rig.submit(stream, *every_other(3))[0]))
    submitter.start()
    assert gate.reached.acquire(timeout=30)
    copy, event = stream._last, rig.device.event()
    event.record(stream)
    assert not stream.withdraw(copy)
    stream.stop(copy)
    assert not event.query()
    gate.go_on.set()
    submitter.join()
    event.synchronize()
    assert found == [copy]
    assert not copy.complete
    assert rig.pages_run(stream) == [0]


def test_a_copy_is_not_taken_for_launched_while_its_last_piece_is_being_launched(rig: Rig) -> None:
    stream, seen = rig.device.stream("bulk", "store"), []

    def look(_: CopyBatch) -> None:
        rig.fake.settle()
        with rig.device._shared.lock:
            seen.append(stream._queue._end_of(stream._last))

    rig.launcher.before = look
    _, event = rig.submit(stream, 0, 2, 4)
    event.synchronize()
    assert seen == [None] * 3


def test_two_threads_never_launch_into_one_stream_at_once(rig: Rig) -> None:
    stream, gate = rig.device.stream("bulk", "store"), Gate()
    rig.launcher.before = gate
    submitter = threading.Thread(target=rig.submit, args=(stream, 0))
    submitter.start()
    assert gate.reached.acquire(timeout=30)
    copy, event = rig.submit(stream, 2)  # comes back, though the first is still being launched
    assert not copy.started
    gate.go_on.set()
    submitter.join()
    event.synchronize()
    assert rig.pages_run(stream) == [0, 2]


def test_an_event_makes_the_compute_stream_wait_once_its_copy_is_launched(rig: Rig) -> None:
    loads, done = rig.device.stream("bulk", "load"), threading.Event()
    rig.on_host[30] = 9
    rig.hold(loads)
    rig.submit(loads, *every_other(6))
    copy, event = rig.submit(loads, 30)

    def wait() -> None:
        event.wait(rig.compute)
        done.set()

    waiter = threading.Thread(target=wait)
    waiter.start()
    rig.fake.settle()
    assert not done.is_set()
    rig.step(loads, 7)  # the wait for the caller, and three pieces with their marks: room for the other three
    waiter.join()
    assert copy.started
    assert not event.query()
    rig.compute_fills(30, 1)
    rig.release(loads)
    rig.driver.synchronize_stream(rig.compute)
    assert (rig.on_device[30] == 1).all()


@pytest.mark.parametrize("direction", ["store", "load"])
def test_nothing_of_pageable_memory_is_launched_on_the_caller_s_thread(
    fake: Fake, driver: Driver, direction: str
) -> None:
    with rig_over(fake, driver, pinned=False) as rig:
        stream = rig.device.stream("bulk", "store" if direction == "store" else "load")
        rig.hold(stream)
        copies = [rig.submit(stream, page) for page in every_other(4)]
        rig.release(stream)
        for copy, event in copies:
            event.synchronize()
            assert copy.complete
        threads = {launch.thread for launch in rig.launcher.launches}
        assert len(threads) == 1
        assert threading.get_ident() not in threads
        assert "pageable" in repr(rig.device)


def test_a_submitter_launches_one_window_even_where_copies_end_at_once(rig: Rig) -> None:
    stream = rig.device.stream("loads", "load")
    rig.launcher.before = lambda _: rig.fake.settle()
    copy, event = rig.submit(stream, *range(0, 24, 2))
    event.synchronize()
    assert copy.complete
    mine = [launch for launch in rig.launcher.launches if launch.thread == threading.get_ident()]
    assert (len(mine), len(rig.launcher.launches)) == (4, 12)


def test_a_feeder_starts_when_it_is_needed_and_ends_with_the_device(fake: Fake, driver: Driver) -> None:
    before = threading.active_count()
    with rig_over(fake, driver) as rig:
        stream = rig.device.stream("bulk", "store")
        rig.submit(stream, 0)[1].synchronize()
        assert threading.active_count() == before
        rig.hold(stream)
        _, event = rig.submit(stream, *every_other(10))
        assert threading.active_count() == before + 1
        rig.release(stream)
        event.synchronize()
    assert threading.active_count() == before


def test_a_thousand_copies_in_flight(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver, window_bytes=1 << 30) as rig:
        streams = [rig.device.stream(name, "store" if "store" in name else "load") for name in ("store", "load")]
        fake.hold()
        copies = [rig.submit(streams[i % 2], i // 2 % N_PAGES) for i in range(1000)]
        assert not any(event.query() for _, event in copies)
        fake.release()
        for _, event in reversed(copies):
            event.synchronize()
        assert all(copy.complete for copy, _ in copies)
        for stream in streams:
            assert rig.pages_run(stream) == [i % N_PAGES for i in range(500)]
