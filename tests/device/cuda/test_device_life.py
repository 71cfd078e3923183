"""What a device takes from the driver stays bounded, survives many threads, and is given back."""

from __future__ import annotations

import gc
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.errors import ClosedError, DeviceError
from tests.device.cuda.fake import Fake
from tests.device.cuda.rig import N_PAGES, Rig, rig_over

RESOURCES = ("streams", "events", "contexts", "pinned_bytes", "device_bytes", "registrations")


def resources(fake: Fake) -> dict[str, int]:
    return {name: fake.count(name) for name in RESOURCES}


@pytest.mark.parametrize("pinned", [True, False])
def test_ten_thousand_copies_leave_no_trace(fake: Fake, driver: Driver, pinned: bool) -> None:
    with rig_over(fake, driver, pinned=pinned) as rig:
        streams = [rig.device.stream(direction, direction) for direction in ("store", "load")]
        for n in range(40):
            events = [rig.submit(streams[i % 2], i % N_PAGES)[1] for i in range(250)]
            if n % 2:
                for event in events:
                    event.synchronize()
            if n == 3:
                before = resources(fake)
        after = resources(fake)
        for stream in streams:
            event = rig.device.event()
            event.record(stream)
            event.synchronize()
        marks, bound = rig.device._shared.marks, 2 * 2 * 250  # two for each copy that may be in flight
        assert max(before.pop("events"), after.pop("events")) <= bound
        assert before == after
        assert marks.made == fake.count("events")
        assert rig.all_is_given_back()


def test_copies_nobody_asks_about_keep_no_more_events_than_a_window_has(fake: Fake, driver: Driver) -> None:
    threads = threading.active_count()
    with rig_over(fake, driver) as rig:
        stream = rig.device.stream("only", "store")
        for i in range(2000):
            rig.submit(stream, i % N_PAGES)
            fake.settle()
        assert fake.count("events") < 20
        assert threading.active_count() == threads  # whoever submits finds the room himself


def test_closing_gives_everything_back(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver) as rig:
        before = resources(fake)
        stream = rig.device.stream("only", "store")
        rig.submit(stream, *range(0, 20, 2))[1].synchronize()
        rig.device.close()
        rig.device.close()
        assert resources(fake) == before
        assert rig.launcher.closed
        assert "closed" in repr(rig.device)
        with pytest.raises(ClosedError):
            rig.submit(stream, 0)
        with pytest.raises(ClosedError):
            rig.device.stream("more", "load")


@pytest.mark.parametrize("pinned", [True, False])
def test_closing_with_copies_in_flight_waits_for_the_launched_and_drops_the_rest(
    fake: Fake, driver: Driver, pinned: bool
) -> None:
    with rig_over(fake, driver, pinned=pinned) as rig:
        stores, loads = rig.device.stream("stores", "store"), rig.device.stream("loads", "load")
        rig.on_device[:] = 1
        rig.hold(stores)
        copies = [rig.submit(stores, page) for page in range(0, 20, 2)]
        loads.wait_for(stores, copies[-1][0].position)
        behind, behind_event = rig.submit(loads, 30)
        closer = threading.Thread(target=rig.device.close)
        closer.start()
        rig.device._shared.lock.acquire()  # only after a turn of the closer's
        rig.device._shared.lock.release()
        assert closer.is_alive()
        rig.release(stores)
        closer.join()
        for copy, event in copies:
            event.synchronize()
            assert copy.ended
            assert copy.complete == copy.started
        assert behind_event.query()
        assert not behind.complete
        assert sum(copy.complete for copy, _ in copies) <= 4
        assert (rig.on_host[20:] == 0).all()
        assert fake.count("streams") == 1
        assert rig.launcher.reserved == 0


def test_closing_a_lost_device_frees_what_it_can(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver) as rig:
        stream = rig.device.stream("only", "store")
        rig.fail_copies_to_host(0)
        _, event = rig.submit(stream, *range(0, 20, 2))
        with pytest.raises(DeviceError):
            event.synchronize()
        rig.device.close()
        with pytest.raises(ClosedError):
            rig.submit(stream, 0)


def test_what_cannot_be_freed_is_told_after_the_rest_is_freed(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver) as rig:
        for name in ("one", "two"):
            rig.submit(rig.device.stream(name, "store"), 0)[1].synchronize()
        fake.fail_next("cuStreamDestroy_v2", 1)
        with pytest.raises(DeviceError, match="cuStreamDestroy"):
            rig.device.close()
        rig.device.close()
        assert fake.count("events") == 0
        assert fake.count("streams") == 1


def test_a_stream_that_cannot_be_made_leaves_nothing(
    fake: Fake, driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rig_over(fake, driver) as rig:
        before = resources(fake)

        def refuse(*_: object) -> None:
            raise DeviceError("no memory")

        monkeypatch.setattr(rig.launcher, "prepare", refuse)
        with pytest.raises(DeviceError, match="no memory"):
            rig.device.stream("only", "store")
        assert resources(fake) == before


class Actor:
    """Submits, asks, stops and withdraws at random, as several threads of a server would at once."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self._rig = rig
        self._random = random.Random(seed)
        self.copies: list[tuple[object, object]] = []

    def run(self) -> int:
        rig, choice = self._rig, self._random
        streams = rig.device._streams
        mine = []
        for _ in range(150):
            stream = choice.choice(streams)
            if choice.random() < 0.3:
                other = choice.choice(streams)
                stream.wait_for(other, other.position)
            copy, event = rig.submit(stream, *choice.sample(range(N_PAGES), choice.randint(0, 6)))
            mine.append((stream, copy, event))
            match choice.randrange(5):
                case 0:
                    choice.choice(mine)[2].query()
                case 1:
                    other, taken, _ = choice.choice(mine)
                    other.withdraw(taken)
                case 2:
                    other, stopped, _ = choice.choice(mine)
                    other.stop(stopped)
                case 3 if choice.random() < 0.2:
                    choice.choice(mine)[2].synchronize()
                case 4 if choice.random() < 0.2:
                    choice.choice(mine)[2].wait(rig.compute)
                case _:
                    pass
        for _, copy, _ in mine:
            copy._queue.join(copy)  # the event may mark what another thread submitted in between, and took back
            assert copy.ended
            assert copy.error is None
        return len(mine)


@pytest.mark.parametrize("pinned", [True, False])
def test_many_threads_submit_ask_and_stop_at_once(fake: Fake, driver: Driver, pinned: bool) -> None:
    with rig_over(fake, driver, pinned=pinned) as rig:
        for name in ("a", "b"):
            rig.device.stream(f"stores {name}", "store")
            rig.device.stream(f"loads {name}", "load")
        with ThreadPoolExecutor(8) as threads:
            assert sum(threads.map(lambda seed: Actor(rig, seed).run(), range(8))) == 8 * 150
        assert rig.all_is_given_back()


def test_a_device_can_be_closed_under_threads_that_use_it(fake: Fake, driver: Driver) -> None:
    with rig_over(fake, driver) as rig:
        stream, started = rig.device.stream("only", "store"), threading.Barrier(5)

        def submit_until_closed(page: int) -> str:
            started.wait()
            while True:
                try:
                    copy, event = rig.submit(stream, page)
                    event.query()
                    copy._queue.join(copy)
                    assert copy.ended
                except ClosedError:
                    return "closed"

        with ThreadPoolExecutor(4) as threads:
            ends = [threads.submit(submit_until_closed, page) for page in range(0, 8, 2)]
            started.wait()
            for _ in range(200):
                rig.submit(stream, 20)
            rig.device.close()
            assert [end.result() for end in ends] == ["closed"] * 4
        assert fake.count("events") == 0


def test_garbage_is_collected_in_the_midst_of_it(fake: Fake, driver: Driver) -> None:
    class Cycle:
        def __init__(self, rig: Rig) -> None:
            self.itself = self
            self.rig = rig

        def __del__(self) -> None:
            assert self.rig.device.event().query()

    thresholds = gc.get_threshold()
    gc.set_threshold(1)
    try:
        with rig_over(fake, driver) as rig:
            stream = rig.device.stream("only", "store")
            for i in range(100):
                batch: CopyBatch = rig.batch("store", i % N_PAGES)
                stream.copy(batch, keep_alive=Cycle(rig))
            event = rig.device.event()
            event.record(stream)
            event.synchronize()
    finally:
        gc.set_threshold(*thresholds)
