"""When the poller looks, at what, and whom it tells."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.device.poll_timing import FIRST_GUESS, SMALL_BYTES, Pace, pause_before_query
from asyncoffload.device.poller import EventPoller
from asyncoffload.errors import ClosedError, TransferError, WrongLoopError


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


@pytest.mark.parametrize(
    ("now", "ends", "pause"),
    [
        (0.0, [0.0], 0.0),
        (0.0, [0.0009], 0.0),
        (0.0, [0.0011], 0.001),
        (0.0, [0.0045], 0.004),
        (0.0, [5.0], 0.005),
        (0.0, [5.0, 0.0001], 0.0),
        (1.0004, [1.0], 0.0),
        (1.002, [1.0], 0.001),
        (1.016, [1.0], 0.004),
        (9.0, [1.0], 0.005),
    ],
    ids=[
        "due",
        "nearly due: spin",
        "never below a millisecond",
        "sleep to the spin window",
        "never above 5 ms",
        "the earliest decides",
        "just late: spin",
        "late: no spinning",
        "later: longer",
        "stuck: 5 ms",
    ],
)
def test_the_pause_before_the_next_query(now: float, ends: list[float], pause: float) -> None:
    assert pause_before_query(now, ends) == pytest.approx(pause)


def test_a_hand_driven_clock_spins_only_around_the_expected_end() -> None:
    """A transfer expected after 10 ms that takes 14: few sleeps before, a bounded spin, few sleeps after."""
    now, sleeps, spins = 0.0, 0, 0
    while now < 0.014:
        pause = pause_before_query(now, [0.010])
        sleeps, spins = sleeps + (pause > 0), spins + (pause == 0)
        now += pause or 0.00002
    assert sleeps <= 6
    assert spins <= 76


def test_a_pace_learns_the_delay_from_small_and_the_bandwidth_from_large_transfers() -> None:
    pace = Pace()
    assert pace.seconds_for(int(FIRST_GUESS)) == 1.0
    for _ in range(60):
        pace.learn(1, 0.001)
        pace.learn(100 * SMALL_BYTES, 0.101)
    assert pace.seconds_for(0) == pytest.approx(0.001, rel=0.01)
    assert pace.seconds_for(200 * SMALL_BYTES) == pytest.approx(0.201, rel=0.01)


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
    await poller.completed(early, stream="a", position=1, nbytes=0)
    assert not waits_for_late.done()
    late.passed = True
    await waits_for_late
    poller.close()


async def test_a_failing_event_settles_all_its_waiters_and_spares_the_next() -> None:
    poller, bad, good = EventPoller(), ManualEvent(), ManualEvent()
    bad.error, good.passed = RuntimeError("device lost"), True
    waiters = [asyncio.ensure_future(poller.completed(bad, stream="a", position=1, nbytes=0)) for _ in range(2)]
    await poller.completed(good, stream="a", position=2, nbytes=0)
    outcomes = await asyncio.gather(*waiters, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [TransferError, TransferError]
    assert "device lost" in str(outcomes[0])
    poller.close()


async def test_a_cancelled_waiter_ends_its_watch_only() -> None:
    poller, event, behind = EventPoller(), ManualEvent(), ManualEvent()
    waiter = asyncio.ensure_future(poller.completed(event, stream="a", position=1, nbytes=0))
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    behind.passed = True
    await poller.completed(behind, stream="a", position=2, nbytes=0)
    assert poller.stats().waiting == 0
    poller.close()


async def test_no_work_no_timer() -> None:
    poller, event = EventPoller(), ManualEvent()
    assert poller._timer is None
    event.passed = True
    await poller.completed(event, stream="a", position=1, nbytes=1 << 20)
    assert poller._timer is None
    stats = poller.stats()
    assert (stats.queries, stats.settled, stats.waiting) == (1, 1, 0)
    assert stats.spins + stats.sleeps == 1
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
        await poller.completed(event, stream="a", position=1, nbytes=0)

    asyncio.run(wait())
    with pytest.raises(WrongLoopError):
        asyncio.run(wait())
