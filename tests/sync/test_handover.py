"""Who has the core, with both threads at it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from asyncoffload.errors import InternalError, WrongLoopError
from asyncoffload.sync.handover import Handover
from tests.sync.manager_stack import HIT, RETRY, keys_of, named, stepping

A = named("a")


def test_the_core_has_one_owner_at_a_time() -> None:
    handover = Handover(lambda: None)
    inside = 0
    clashes = 0
    turns = 0
    done = threading.Event()

    def loop() -> None:
        nonlocal inside, clashes, turns
        while not done.is_set():
            if handover.try_enter():
                inside += 1
                clashes += inside != 1
                inside -= 1
                turns += 1
                handover.leave_loop()

    thread = threading.Thread(target=loop)
    thread.start()
    steps = 0
    while steps < 2000 or not turns:
        handover.enter()
        inside += 1
        clashes += inside != 1
        inside -= 1
        handover.leave()
        steps += 1
    done.set()
    thread.join()
    assert not clashes


def test_calls_within_a_step_are_part_of_it() -> None:
    handover = Handover(lambda: None)
    assert handover.enter()
    assert not handover.enter()
    assert not handover.outermost
    handover.leave()
    assert handover.outermost
    assert handover.stepper == threading.get_ident()
    handover.leave()
    assert not handover.stepper
    assert handover.try_enter()
    handover.leave_loop()


def test_a_caller_waits_for_the_loop_and_learns_when_it_is_dead() -> None:
    def dead() -> None:
        raise InternalError("dead")

    handover = Handover(dead)
    taken, release = threading.Event(), threading.Event()

    def loop() -> None:
        assert handover.try_enter()
        taken.set()
        release.wait()
        handover.leave_loop()

    thread = threading.Thread(target=loop)
    thread.start()
    taken.wait()
    with pytest.raises(InternalError):
        handover.enter()
    release.set()
    thread.join()
    assert handover.enter()


def test_who_comes_second_is_told_who_was_first() -> None:
    handover = Handover(lambda: None)
    handover.enter()
    raised: list[WrongLoopError] = []

    def second() -> None:
        try:
            handover.enter()
        except WrongLoopError as error:
            raised.append(error)

    thread = threading.Thread(target=second)
    thread.start()
    thread.join()
    assert str(threading.get_ident()) in str(raised[0])


def test_a_core_that_an_interruption_left_taken_does_not_lock_out_its_thread() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        stack.tier.keep([key])
        assert stack.manager._handover._lock.acquire()  # as if KeyboardInterrupt had come just after this
        assert stack.ask([key], A) == [RETRY]
        stack.manager.drain_jobs()
        assert stack.ask([key], A) == [HIT]
        stack.manager.end_request("a")
        stack.manager._handover._lock.release()


class Postponing:
    """Stands in for the handover, and lets the caller's step begin just when the loop wants its turn."""

    def __init__(self, real: Handover, before: Iterator[bool]) -> None:
        self.real = real
        self.before = before

    def __getattr__(self, name: str) -> object:
        return getattr(self.real, name)

    def try_enter(self) -> bool:
        return next(self.before) and self.real.try_enter()


def test_a_loop_that_is_turned_away_comes_again_after_the_step() -> None:
    keys = keys_of(6)
    with stepping(8, promoting=1) as stack:
        stack.tier.keep(keys)
        turned_away = iter([False, True] * 10_000)
        real = stack.manager._conductor.handover
        stack.manager._conductor.handover = Postponing(real, turned_away)  # type: ignore[assignment]
        hits = 0
        while hits < len(keys):
            with stack.manager.step():
                hits = stack.ask(keys, A).count(HIT)
            stack.until(lambda: not stack.manager._conductor.running)
        stack.manager.end_request("a")
        stack.manager._conductor.handover = real
