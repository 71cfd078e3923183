"""The poller's decisions, over events and a clock that are driven by hand."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.device.poll_timing import LONGEST_SLEEP, SPIN_AFTER, SPIN_BEFORE
from asyncoffload.device.watchlist import Watchlist
from asyncoffload.errors import DeviceError, TransferError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass(eq=False)
class Waiter:
    """Counts what it is told."""

    gave_up: bool = False
    told: list[tuple[float, TransferError | None]] = field(default_factory=list)

    def done(self) -> bool:
        return self.gave_up or bool(self.told)


class TimedEvent:
    """Passes, or fails, at its time."""

    def __init__(self, clock: Clock, end: float, error: Exception | None = None) -> None:
        self.end = end
        self.queries = 0
        self._clock = clock
        self._error = error

    def record(self, stream: object, /) -> None: ...

    def query(self) -> bool:
        self.queries += 1
        if self._clock() < self.end:
            return False
        if self._error is not None:
            raise self._error
        return True

    def synchronize(self) -> None: ...

    def wait(self, stream: object, /) -> None: ...


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_nothing_to_look_at_no_pause(clock: Clock) -> None:
    watchlist = Watchlist[Waiter](clock)
    assert watchlist.pause() is None
    assert watchlist.look() == []
    watchlist.add(TimedEvent(clock, 0.0), Waiter(), stream="a", position=1, nbytes=0)
    assert watchlist.pause() == 0.0
    assert len(watchlist.look()) == 1
    assert watchlist.pause() is None


def test_a_look_asks_the_oldest_of_each_stream_and_goes_on_behind_what_has_passed(clock: Clock) -> None:
    watchlist = Watchlist[Waiter](clock)
    ends = {"a": [0.0, 0.0, 1.0, 1.0], "b": [1.0, 1.0]}
    events = {stream: [TimedEvent(clock, end) for end in of] for stream, of in ends.items()}
    for stream, of in events.items():
        for position, event in enumerate(of):
            watchlist.add(event, Waiter(), stream=stream, position=position, nbytes=0)
    assert len(watchlist.look()) == 2
    assert {stream: [event.queries for event in of] for stream, of in events.items()} == {
        "a": [1, 1, 1, 0],
        "b": [1, 0],
    }
    assert (watchlist.queries, len(watchlist)) == (4, 4)


def test_waiters_that_gave_up_behind_a_stuck_event_do_not_pile_up(clock: Clock) -> None:
    watchlist, stays = Watchlist[Waiter](clock), Waiter()
    watchlist.add(TimedEvent(clock, 1.0), stays, stream="a", position=1, nbytes=0)
    for _ in range(10_000):
        watchlist.add(TimedEvent(clock, 2.0), Waiter(gave_up=True), stream="a", position=2, nbytes=0)
    assert len(watchlist) == 1
    assert len(watchlist._streams["a"].watches) < 200
    assert watchlist.take_all() == [stays]


def test_transfers_found_ended_together_teach_their_common_pace(clock: Clock) -> None:
    watchlist, mib = Watchlist[Waiter](clock), 1 << 20
    for position in range(1, 5):
        watchlist.add(TimedEvent(clock, position * 0.002), Waiter(), stream="a", position=position, nbytes=8 * mib)
    clock.now = 0.010
    assert len(watchlist.look()) == 4
    watchlist.add(TimedEvent(clock, 0.012), Waiter(), stream="a", position=5, nbytes=8 * mib)
    assert watchlist._streams["a"].expected_end() == pytest.approx(0.012)
    assert watchlist.overshoot == pytest.approx(4 * 0.005)  # each between its end and now, on the average
    assert watchlist.noticed == 4


def test_failures_teach_nothing(clock: Clock) -> None:
    watchlist = Watchlist[Waiter](clock)
    watchlist.add(TimedEvent(clock, 0.0, RuntimeError("x")), Waiter(), stream="a", position=1, nbytes=1 << 30)
    before = watchlist._streams["a"].pace.seconds_for(1 << 30)
    (ended,) = watchlist.look()
    assert isinstance(ended.error, DeviceError)
    assert watchlist._streams["a"].pace.seconds_for(1 << 30) == before
    assert watchlist.noticed == 0


TURN = 0.00005
LATEST_TIMER = 0.0013
"""How long a turn of the loop takes here, and how late its timers come at most."""

works = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", None]),
        st.floats(0.0, 0.02),  # since the one before was submitted
        st.one_of(st.floats(0.0, 0.002), st.floats(0.0, 0.5)),  # that it takes
        st.sampled_from([0, 4096, 1 << 20, 64 << 20, 4 << 30]),
        st.sampled_from(["passes"] * 6 + ["fails", "gives up", "withdrawn"]),
    ),
    min_size=1,
    max_size=40,
)


@given(works, st.lists(st.floats(0.0, LATEST_TIMER), min_size=1, max_size=20), st.booleans())
def test_any_schedule_is_told_once_soon_and_without_spinning_through_it(
    work: list[tuple[str | None, float, float, int, str]], lateness: list[float], device_is_lost: bool
) -> None:
    clock = Clock()
    watchlist = Watchlist[Waiter](clock)
    arrivals, last_end, at = [], dict[str | None, float](), 0.0
    for position, (stream, after, seconds, nbytes, fate) in enumerate(work):
        at += after
        start = at if stream is None else max(at, last_end.get(stream, 0.0))
        last_end[stream] = end = start + seconds
        lost = device_is_lost and position == len(work) // 2
        failure = DeviceError("x", lost=lost) if lost or fate == "fails" else None
        arrivals.append((at, TimedEvent(clock, end, failure), Waiter(), stream, position, nbytes, fate))
    watched = list[tuple[TimedEvent, Waiter, str]]()
    taken_out, spins, sleeps, lost_at, wakes = list[Waiter](), 0, 0, float("inf"), 0

    def look() -> None:
        nonlocal lost_at
        for ended in watchlist.look():
            ended.waiter.told.append((clock.now, ended.error))
            if isinstance(ended.error, DeviceError) and ended.error.lost:
                lost_at = min(lost_at, clock.now)
                assert watchlist.pause() is None

    def wake_at() -> float | None:
        nonlocal spins, sleeps, wakes
        pause = watchlist.pause()
        if pause is None:
            return None
        wakes += 1
        spins, sleeps = spins + (not pause), sleeps + bool(pause)
        return clock.now + (pause + lateness[wakes % len(lateness)] if pause else TURN)

    due: float | None = None
    while arrivals or due is not None:
        if arrivals and (due is None or arrivals[0][0] <= due):
            at, event, waiter, stream, position, nbytes, fate = arrivals.pop(0)
            clock.now = max(clock.now, at)
            watchlist.add(event, waiter, stream=stream, position=position, nbytes=nbytes)
            watched.append((event, waiter, fate))
            waiter.gave_up = fate == "gives up"
            if fate == "withdrawn":
                taken_out += watchlist.take(event)
            sooner = wake_at()
            due = sooner if due is None or sooner is None else min(due, sooner)
        else:
            assert due is not None
            clock.now = due
            look()
            due = wake_at()

    for event, waiter, fate in watched:
        if fate == "withdrawn":
            assert taken_out.count(waiter) + len(waiter.told) == 1
        elif fate == "gives up":
            assert not waiter.told
        else:
            ((told_at, error),) = waiter.told
            assert told_at <= event.end + LONGEST_SLEEP + LATEST_TIMER + 1e-9
            assert told_at >= min(event.end, lost_at)
            if event.end > told_at:
                assert isinstance(error, DeviceError)
                assert error.lost
    assert len(watchlist) == 0
    spun_by_one = (SPIN_BEFORE + SPIN_AFTER) / TURN + 2
    assert spins <= len(work) * (spun_by_one + 1)


def test_a_wait_of_minutes_is_slept_through(clock: Clock) -> None:
    watchlist, waiter = Watchlist[Waiter](clock), Waiter()
    watchlist.add(TimedEvent(clock, 120.0), waiter, stream="a", position=1, nbytes=1 << 30)
    spins = sleeps = 0
    while not watchlist.look():
        pause = watchlist.pause()
        assert pause is not None
        spins, sleeps = spins + (not pause), sleeps + bool(pause)
        clock.now += pause or TURN
    assert spins <= (SPIN_BEFORE + SPIN_AFTER) / TURN + 2
    assert sleeps <= 120 / LONGEST_SLEEP * 1.02


def test_a_steady_stream_is_met_within_a_turn_of_the_loop(clock: Clock) -> None:
    """Once the pace is known, sleeps end before the transfers do."""
    watchlist, seconds, overshoot = Watchlist[Waiter](clock), 0.0201, list[float]()
    for position in range(1, 81):
        event = TimedEvent(clock, clock.now + seconds)
        watchlist.add(event, Waiter(), stream="a", position=position, nbytes=1 << 30)
        while not watchlist.look():
            pause = watchlist.pause()
            assert pause is not None
            clock.now += pause + 0.0004 if pause else TURN
        overshoot.append(clock.now - event.end)
    assert max(overshoot[-20:]) <= TURN
    assert watchlist.overshoot / watchlist.noticed < 0.001
