"""Draining, closing, and what happens when something is broken."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import ClosedError, InternalError, TierUnavailable, WrongLoopError
from asyncoffload.sync.manager import SyncOffloadingManager
from tests.sync.manager_stack import HIT, PENDING, RETRY, SteppingStack, keys_of, named, stepping

A = named("a")

BEGINNING: list[Callable[[SyncOffloadingManager], object]] = [
    lambda manager: manager.lookup(keys_of(1)),
    lambda manager: manager.lookup_block(keys_of(1)[0]),
    lambda manager: manager.prepare_load(keys_of(1)),
    lambda manager: manager.prepare_store(keys_of(1)),
    lambda manager: manager.touch(keys_of(1)),
    lambda manager: manager.reset(),
]
ENDING: list[Callable[[SyncOffloadingManager], object]] = [
    lambda manager: manager.complete_load([]),
    lambda manager: manager.complete_store([]),
    lambda manager: manager.end_request("a"),
    lambda manager: manager.take_events(),
    lambda manager: manager.stats(),
    lambda manager: manager.tier_counts(),
    lambda manager: manager.has_pending_work(),
    lambda manager: manager.drain_jobs(),
    lambda manager: manager.shutdown(),
]


def in_thread(call: Callable[[], object]) -> BaseException | None:
    """Make a call on another thread; returns what it raised."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


# ---- draining and closing


def test_draining_names_what_still_runs() -> None:
    keys = keys_of(2)
    with stepping(4) as stack:
        stack.tier.stores.shut()
        stack.store(keys)
        stack.reached(stack.tier.stores)
        with pytest.raises(TierUnavailable, match=r"t0 <Op \d+ CASCADE"):
            stack.manager.drain_jobs(timeout=0.01)
        stack.open_all()
        stack.manager.drain_jobs()
        assert set(stack.tier.blocks) == set(keys)


def test_draining_ends_although_no_slot_can_be_had() -> None:
    keys = keys_of(3)
    with stepping(2) as stack:
        stack.store(keys[:2])
        stack.manager.drain_jobs()
        stack.manager.prepare_load(keys[:2], A)
        stack.tier.keep(keys[2:])
        assert stack.ask(keys[2:], A) == [RETRY]
        stack.manager.drain_jobs()
        assert stack.ask(keys[2:], A) == [PENDING]
        assert not stack.manager.has_pending_work()
        stack.manager.complete_load(keys[:2], A)
        stack.manager.drain_jobs()
        assert stack.ask(keys[2:], A) == [HIT]


def test_work_is_pending_until_the_caller_or_the_loop_has_settled_it() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        assert not stack.manager.has_pending_work()
        stack.tier.lookups.shut()
        stack.ask([key], A)
        assert stack.manager.has_pending_work()
        stack.reached(stack.tier.lookups)
        assert stack.manager.has_pending_work()
        with stack.manager.step():
            stack.open_all()
            stack.until(lambda: not stack.manager._conductor.running)
            assert stack.manager.has_pending_work()
        stack.manager.drain_jobs()
        assert not stack.manager.has_pending_work()


def test_a_closed_manager_begins_nothing_and_lets_everything_end() -> None:
    keys = keys_of(2)
    with stepping(4) as stack:
        stack.store(keys[:1])
        stack.manager.prepare_load(keys[:1], A)
        output = stack.manager.prepare_store(keys[1:])
        assert output is not None
        stack.fill(keys[1:], output.store_spec)
        with stack.manager.step():
            stack.manager.shutdown()
            for begin in BEGINNING:
                with pytest.raises(ClosedError):
                    begin(stack.manager)
        for begin in BEGINNING:
            with pytest.raises(ClosedError):
                begin(stack.manager)
        stack.manager.complete_load(keys[:1], A)
        stack.manager.complete_store(keys[1:])
        for end in ENDING:
            end(stack.manager)
        assert "closed" in repr(stack.manager)


def test_closing_drops_what_is_queued_and_waits_for_what_runs() -> None:
    keys = keys_of(4)
    with stepping(8) as stack:
        stack.tier.keep(keys[2:])
        stack.tier.halfway.shut()
        stack.tier.stores.shut()
        stack.store(keys[:2])
        stack.reached(stack.tier.stores)
        stack.ask(keys[2:], A)
        stack.reached(stack.tier.halfway)
        with pytest.raises(TierUnavailable, match=r"PROMOTE.*shut down again|shut down again.*PROMOTE"):
            stack.manager.shutdown(timeout=0.01)
        with pytest.raises(TierUnavailable):
            stack.manager.shutdown(timeout=0.01)
        stack.open_all()
        stack.manager.shutdown()
        assert not stack.tier.running
        assert not set(keys[:2]) & set(stack.tier.blocks)


def test_closing_ends_although_the_loop_is_stuck() -> None:
    loop = LoopThread()
    stack = SteppingStack(4, loop=loop)
    stack.tier.keep(keys_of(1))
    free = threading.Event()
    loop.post(free.wait)
    stack.ask(keys_of(1), A)
    with pytest.raises(TierUnavailable, match="PROBE"):
        stack.manager.drain_jobs(timeout=0.01)
    with pytest.raises(TierUnavailable, match="PROBE"):
        stack.manager.shutdown(timeout=0.01)
    free.set()
    stack.manager.shutdown()
    stack.assert_nothing_left()
    loop.stop()


def test_waiting_does_not_spin_while_nothing_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(6)
    with stepping(4) as stack:
        stack.tier.keep(keys)
        stack.tier.loads.shut()
        stack.ask(keys, A)
        stack.reached(stack.tier.loads)
        turns = 0
        turn = stack.manager._conductor._turn

        def counted() -> None:
            nonlocal turns
            turns += 1
            turn()

        monkeypatch.setattr(stack.manager._conductor, "_turn", counted)
        with pytest.raises(TierUnavailable):
            stack.manager.drain_jobs(timeout=0.3)
        assert turns < 20
        stack.manager.end_request("a")


def test_an_interrupted_drain_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = keys_of(2)

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with stepping(4) as stack:
        stack.tier.stores.shut()
        stack.store(keys)
        with monkeypatch.context() as patched:
            patched.setattr(stack.manager._conductor._moved, "wait", interrupted)
            with pytest.raises(KeyboardInterrupt):
                stack.manager.drain_jobs()
        stack.open_all()
        stack.manager.drain_jobs()
        assert set(stack.tier.blocks) == set(keys)


LEFT_OPEN = """
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.manager import SyncOffloadingManager
from tests.managers.gated_tier import SLOT_BYTES, GatedTier
from tests.managers.tiered_stack import keys_of

region = HostRegion(64, SLOT_BYTES)
tier = GatedTier(region.view, "t0")
tier.keep(keys_of(30))
tier.stores.shut()
tier.halfway.shut()
manager = SyncOffloadingManager(region, [tier], promotion_bytes=4 * SLOT_BYTES, cascade_blocks=4)
manager.prepare_store(keys_of(20, 100))
manager.complete_store(keys_of(20, 100))
manager.lookup(keys_of(30))
manager.begin_step()
print("at the end", flush=True)
"""


def test_the_interpreter_ends_without_a_shutdown() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2]
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "at the end\n", "")


# ---- two threads


def test_overlapping_calls_of_two_threads_are_refused() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        stack.store([key])
        with stack.manager.step():
            assert stack.manager.lookup_block(key, A) is HIT
            for call in (*BEGINNING, *ENDING, SyncOffloadingManager.begin_step):
                error = in_thread(partial(call, stack.manager))
                assert isinstance(error, WrongLoopError), call
                assert "step" in str(error)
        assert in_thread(lambda: stack.load([key], A)) is None


def test_a_step_is_ended_by_who_began_it() -> None:
    with stepping(4) as stack:
        with pytest.raises(WrongLoopError, match="pairs"):
            stack.manager.end_step()
        stack.manager.begin_step()
        assert isinstance(in_thread(stack.manager.end_step), WrongLoopError)
        stack.manager.begin_step()
        stack.manager.end_step()
        stack.manager.end_step()
        with pytest.raises(WrongLoopError, match="pairs"):
            stack.manager.end_step()


def test_an_exception_in_a_step_ends_the_step_and_nothing_else() -> None:
    (key,) = keys_of(1)
    with stepping(4) as stack:
        with pytest.raises(ZeroDivisionError, match="sabotage"), stack.manager.step():
            broken()
        stack.store([key])
        assert in_thread(lambda: stack.load([key], A)) is None


def _use_inherited(manager: SyncOffloadingManager, answers: Any) -> None:
    try:
        manager.lookup(keys_of(1))
    except Exception as error:
        answers.put(type(error).__name__)
    else:
        answers.put("no error")


def test_a_forked_child_is_told_to_make_its_own() -> None:
    fork = multiprocessing.get_context("fork")
    with stepping(4) as stack:
        answers = fork.SimpleQueue()
        child = fork.Process(target=_use_inherited, args=(stack.manager, answers))
        child.start()
        child.join()
        assert answers.get() == "WrongLoopError"


# ---- broken


def everything_raises(stack: SteppingStack) -> None:
    for call in (*BEGINNING, *ENDING, SyncOffloadingManager.begin_step):
        with pytest.raises(InternalError):
            call(stack.manager)
    assert "broken" in repr(stack.manager)


def broken(*_: object) -> None:
    raise ZeroDivisionError("sabotage")


def test_a_plan_that_fails_on_the_loop_reaches_every_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SteppingStack(4)
    stack.tier.loads.shut()
    stack.tier.keep(keys_of(1))
    stack.ask(keys_of(1), A)
    stack.reached(stack.tier.loads)
    monkeypatch.setattr(stack.manager._planner, "settle", broken)
    stack.open_all()
    stack.until(lambda: stack.manager._conductor.failure)
    everything_raises(stack)


def test_a_plan_that_fails_in_a_call_raises_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SteppingStack(4)
    monkeypatch.setattr(stack.manager._planner, "seek", broken)
    with pytest.raises(InternalError, match="sabotage"), stack.manager.step():
        stack.ask(keys_of(1), A)
    everything_raises(stack)


def test_a_hit_is_not_answered_once_something_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SteppingStack(4)
    stack.store(keys_of(2))
    monkeypatch.setattr(stack.manager._planner, "seek", broken)
    stack.manager.begin_step()
    assert stack.ask(keys_of(2)) == [HIT, HIT]
    with pytest.raises(InternalError):
        stack.ask(keys_of(1, 5))
    with pytest.raises(InternalError):
        stack.ask(keys_of(2))
    with pytest.raises(InternalError):
        stack.manager.end_step()
    everything_raises(stack)


def test_a_runner_that_fails_raises_from_then_on_and_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = SteppingStack(4)
    monkeypatch.setattr(stack.manager._conductor._runner, "run", broken)
    stack.ask(keys_of(1), A)
    with pytest.raises(InternalError, match="sabotage"):
        stack.manager.drain_jobs()
    everything_raises(stack)


def test_a_broken_manager_waits_for_what_runs_before_it_says_that_it_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stack = SteppingStack(4)
    stack.tier.keep(keys_of(1))
    stack.tier.halfway.shut()
    stack.ask(keys_of(1), A)
    stack.reached(stack.tier.halfway)
    monkeypatch.setattr(stack.manager._planner, "seek", broken)
    with pytest.raises(InternalError):
        stack.ask(keys_of(1, 5), A)
    with pytest.raises(TierUnavailable, match="PROMOTE"):
        stack.manager.shutdown(timeout=0.01)
    stack.open_all()
    with pytest.raises(InternalError):
        stack.manager.shutdown()
    assert not stack.tier.running


def test_an_interruption_in_the_middle_of_planning_counts_as_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    stack = SteppingStack(4)
    monkeypatch.setattr(stack.manager._planner, "seek", interrupted)
    with pytest.raises(KeyboardInterrupt):
        stack.ask(keys_of(1), A)
    everything_raises(stack)


def test_when_the_loop_dies_everybody_is_told() -> None:
    loop = LoopThread()
    stack = SteppingStack(4, loop=loop)
    stack.tier.loads.shut()
    stack.tier.keep(keys_of(1))
    stack.ask(keys_of(1), A)
    stack.reached(stack.tier.loads)
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    with pytest.raises(InternalError):
        stack.manager.drain_jobs()
    for call in BEGINNING:
        with pytest.raises(InternalError):
            call(stack.manager)
    with pytest.raises(InternalError):
        stack.manager.shutdown()
    for task in stack.manager._conductor.running.values():
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # nobody can run it any more
