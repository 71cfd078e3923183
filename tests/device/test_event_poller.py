"""When the poller looks, at what, and whom it tells."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.device.poller import EventPoller
from asyncoffload.errors import ClosedError, DeviceError, WrongLoopError


class ManualEvent:
    """An event that passes, or fails, when the test says so."""

    def __init__(self) -> None:
        self.queries = 0
        self.passed = False
        self.error: Exception | None = None

    def record(self, stream: object, /) -> None: ...

    def query(self) -> bool:
        self.queries += 1
        if self.error is not None:
            raise self.error
        return self.passed

    def synchronize(self) -> None: ...

    def wait(self, stream: object, /) -> None: ...


async def completed(
    poller: EventPoller, event: ManualEvent, *, stream: str | None = None, position: int = 0, nbytes: int = 0
) -> None:
    if (error := await poller.watch(event, stream=stream, position=position, nbytes=nbytes)) is not None:
        raise error


async def test_only_the_oldest_event_of_each_stream_is_queried() -> None:
    poller, events = EventPoller(), [ManualEvent() for _ in range(3)]
    old = poller.watch(events[0], stream="a", position=1, nbytes=0)
    young = poller.watch(events[1], stream="a", position=2, nbytes=0)
    other = poller.watch(events[2], stream="b", position=1, nbytes=0)
    events[1].passed = events[2].passed = True
    assert await other is None
    assert (events[0].queries > 0, events[1].queries, young.done()) == (True, 0, False)
    events[0].passed = True
    assert await young is None
    assert old.done()
    poller.close()


async def test_the_position_decides_not_the_order_of_asking() -> None:
    poller, early, late = EventPoller(), ManualEvent(), ManualEvent()
    waits_for_late = poller.watch(late, stream="a", position=2, nbytes=0)
    early.passed = True
    await completed(poller, early, stream="a", position=1, nbytes=0)
    assert not waits_for_late.done()
    late.passed = True
    await waits_for_late
    poller.close()


async def test_a_failing_event_settles_all_its_waiters_and_spares_the_next() -> None:
    poller, bad, good = EventPoller(), ManualEvent(), ManualEvent()
    bad.error, good.passed = RuntimeError("device lost"), True
    waiters = [asyncio.ensure_future(completed(poller, bad, stream="a", position=1, nbytes=0)) for _ in range(2)]
    await completed(poller, good, stream="a", position=2, nbytes=0)
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DeviceError, DeviceError]
    assert "device lost" in str(outcomes[0])
    poller.close()


async def test_a_lost_device_settles_every_waiter_of_all_streams_at_once() -> None:
    poller, lost, events = EventPoller(), ManualEvent(), [ManualEvent() for _ in range(4)]
    lost.error = DeviceError("an illegal address was read", code=700, lost=True)
    behind = poller.watch(events[0], stream="a", position=2, nbytes=0)
    elsewhere = [poller.watch(event, stream="b", position=1, nbytes=1 << 40) for event in events[1:]]
    with pytest.raises(DeviceError, match="illegal address"):
        await completed(poller, lost, stream="a", position=1, nbytes=0)
    for waiter in (behind, *elsewhere):
        assert waiter.done()
        error = waiter.result()
        assert isinstance(error, DeviceError)
        assert (error.code, error.lost, error.__cause__) == (700, True, lost.error)
    assert poller.stats().waiting == 0
    assert poller._timer is None
    poller.close()


async def test_a_failed_launch_is_not_the_end_of_the_device() -> None:
    poller, bad, other = EventPoller(), ManualEvent(), ManualEvent()
    bad.error = DeviceError("the launch was refused", code=1)
    survivor = poller.watch(other, stream="b", position=1, nbytes=0)
    with pytest.raises(DeviceError, match="refused"):
        await completed(poller, bad, stream="a", position=1, nbytes=0)
    assert not survivor.done()
    other.passed = True
    assert await survivor is None
    poller.close()


async def test_an_event_may_be_awaited_without_a_stream() -> None:
    poller, first, second = EventPoller(), ManualEvent(), ManualEvent()
    pending = poller.watch(first)
    second.passed = True
    await completed(poller, second)
    assert not pending.done()
    first.passed = True
    await pending
    assert not poller._watchlist._streams
    poller.close()


async def test_a_cancelled_waiter_ends_its_watch_only() -> None:
    poller, event, behind = EventPoller(), ManualEvent(), ManualEvent()
    waiter = asyncio.ensure_future(completed(poller, event, stream="a", position=1, nbytes=0))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    behind.passed = True
    await completed(poller, behind, stream="a", position=2, nbytes=0)
    assert event.queries <= 1
    assert (poller.stats().settled, poller.stats().waiting) == (1, 0)
    assert poller._timer is None
    poller.close()


async def test_no_work_no_timer() -> None:
    poller, event = EventPoller(), ManualEvent()
    assert poller._timer is None
    event.passed = True
    await completed(poller, event, stream="a", position=1, nbytes=1 << 20)
    assert poller._timer is None
    stats = poller.stats()
    assert (stats.queries, stats.settled, stats.waiting) == (1, 1, 0)
    assert (stats.spins, stats.sleeps) == (1, 0)
    poller.close()


async def test_waiting_for_nobody_ends_with_the_next_look() -> None:
    poller, event, turn = EventPoller(), ManualEvent(), asyncio.get_running_loop().create_future()
    poller.watch(event, stream="a", position=1, nbytes=0).cancel()
    assert poller.stats().waiting == 0
    asyncio.get_running_loop().call_soon(turn.set_result, None)
    await turn
    assert (event.queries, poller._timer) == (0, None)
    poller.close()


class HandDrivenClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_the_overshoot_is_counted_from_the_last_query_that_said_no() -> None:
    clock = HandDrivenClock()
    poller, event = EventPoller(clock), ManualEvent()
    waiter = poller.watch(event, stream="a", position=1, nbytes=0)
    poller._look()
    clock.now, event.passed = 0.004, True
    poller._look()
    assert waiter.done()
    assert poller.stats().mean_overshoot == pytest.approx(0.002)
    poller.close()


async def test_a_withdrawn_event_is_settled_out_of_turn() -> None:
    poller, first, second = EventPoller(), ManualEvent(), ManualEvent()
    stays = poller.watch(first, stream="a", position=1, nbytes=0)
    leaves = poller.watch(second, stream="a", position=2, nbytes=0)
    poller.withdrawn(second)
    assert leaves.done()
    assert not stays.done()
    stays.cancel()
    poller.close()


async def test_closing_tells_those_whose_event_has_passed_and_fails_the_rest() -> None:
    poller, passed, pending = EventPoller(), ManualEvent(), ManualEvent()
    lucky = poller.watch(passed, stream="a", position=1, nbytes=1 << 40)
    unlucky = poller.watch(pending, stream="b", position=1, nbytes=1 << 40)
    passed.passed = True
    poller.close()
    poller.close()
    assert await lucky is None
    with pytest.raises(ClosedError):
        await unlucky
    with pytest.raises(ClosedError):
        poller.watch(pending, stream="b", position=2, nbytes=0)
    assert poller._timer is None


def test_a_poller_belongs_to_one_loop() -> None:
    poller, event = EventPoller(), ManualEvent()
    event.passed = True

    async def wait() -> None:
        await completed(poller, event, stream="a", position=1, nbytes=0)

    asyncio.run(wait())
    with pytest.raises(WrongLoopError):
        asyncio.run(wait())
