"""Virtual time: an hour in no time, the same way each time, and no jump over work that is under way."""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from asyncoffload.aio.dual_queue import DualQueueThreadPool
from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.errors import TierUnavailable
from asyncoffload.testing import (
    Delayed,
    FaultyDisk,
    Gate,
    Slots,
    TimeStandsStill,
    VirtualTimeLoop,
    small_layout,
    some_keys,
)
from asyncoffload.tiers.fs.manager import FileSystemTierManager

T = TypeVar("T")
HOUR = 3600.0
PATIENCE = 0.3


def run(call: Coroutine[Any, Any, T], **options: float) -> T:
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(**options)) as runner:
        return runner.run(call)


def let_go_on(begun: threading.Event, go_on: threading.Event) -> None:
    assert begun.wait(30)
    go_on.set()


def now() -> float:
    return asyncio.get_running_loop().time()


@pytest.mark.virtual_time(horizon=101 * HOUR)
async def test_an_hour_passes_at_once() -> None:
    began = time.monotonic()
    for _ in range(100):
        await asyncio.sleep(HOUR)
    assert now() == 100 * HOUR
    assert time.monotonic() - began < HOUR


def test_the_same_schedule_twice() -> None:
    async def history() -> list[tuple[float, int]]:
        log: list[tuple[float, int]] = []
        dice = random.Random(7)

        async def wander(number: int) -> None:
            for _ in range(20):
                try:
                    async with asyncio.timeout(dice.uniform(0, 10)):
                        await asyncio.sleep(dice.uniform(0, 10))
                except TimeoutError:
                    await asyncio.to_thread(lambda: None)
                log.append((now(), number))

        async with asyncio.TaskGroup() as group:
            for number in range(20):
                group.create_task(wander(number))
        return log

    first = run(history())
    assert run(history()) == first
    assert [moment for moment, _ in first] == sorted(moment for moment, _ in first)


@pytest.mark.virtual_time(start=100.0)
async def test_a_timeout_strikes_at_its_moment() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(5):
            await asyncio.sleep(HOUR)
    assert now() == 105.0


@pytest.mark.virtual_time
async def test_time_stands_still_while_threads_work() -> None:
    begun, go_on = threading.Event(), threading.Event()
    threads = IOThreads(1)

    def call() -> str:
        begun.set()
        assert go_on.wait(30)
        return "done"

    for executor in (threads, None):
        timer = asyncio.create_task(asyncio.sleep(HOUR))
        working = asyncio.get_running_loop().run_in_executor(executor, call)
        threading.Thread(target=let_go_on, args=[begun, go_on]).start()
        assert await working == "done"
        assert not timer.done()
        await timer
        begun.clear()
        go_on.clear()
    assert now() == 2 * HOUR
    threads.shutdown()


@pytest.mark.parametrize("make_executor", [lambda: None, partial(ThreadPoolExecutor, 1)], ids=["default", "own"])
def test_time_stands_still_while_a_thread_works_for_nobody(make_executor: Callable[[], Executor | None]) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def call() -> None:
        begun.set()
        assert go_on.wait(30)

    async def give_up() -> None:
        working = asyncio.get_running_loop().run_in_executor(make_executor(), call)
        assert begun.wait(30)
        working.cancel()
        try:
            await asyncio.sleep(HOUR)
        finally:
            go_on.set()

    with pytest.raises(TimeStandsStill, match="1 threads work for"):
        run(give_up(), patience=PATIENCE)


@pytest.mark.virtual_time
async def test_time_does_not_wait_for_a_call_that_was_cancelled_before_it_began() -> None:
    loop, gate, ran = asyncio.get_running_loop(), Gate[None](), list[int]()
    with ThreadPoolExecutor(1) as executor, gate.shut():
        held = loop.run_in_executor(executor, gate.pass_in_thread, None)
        await gate.reached()
        loop.run_in_executor(executor, ran.append, 1).cancel()
        await asyncio.sleep(HOUR)
        assert now() == HOUR
        gate.open()
        await held
    assert ran == []


@pytest.mark.virtual_time
async def test_time_stands_still_while_a_pool_works() -> None:
    pool = DualQueueThreadPool(2, 2, clock=asyncio.get_running_loop().time)
    async with asyncio.timeout(0.001):
        for n in range(50):
            await pool.enqueue_load(n, 8, [lambda: time.sleep(0.0005)] * 8)
    assert now() == 0.0
    await pool.aclose()


@pytest.mark.virtual_time
async def test_time_passes_for_threads_that_the_test_holds() -> None:
    gate: Gate[None] = Gate()
    with gate.shut():
        held = asyncio.get_running_loop().run_in_executor(None, gate.pass_in_thread, None)
        await asyncio.wait([held], timeout=HOUR)
        assert not held.done()
    await held
    assert now() == HOUR


@pytest.mark.virtual_time
async def test_time_passes_for_a_held_thread_that_was_given_up_and_not_for_its_replacement() -> None:
    pool = DualQueueThreadPool(1, 1, clock=asyncio.get_running_loop().time)
    gate: Gate[None] = Gate()
    with gate.shut():
        stuck = pool.enqueue_load(1, 1, [lambda: gate.pass_in_thread(None)])
        await gate.reached()
        await asyncio.sleep(HOUR)
        assert pool.give_up(60.0) == {stuck: [0]}
        for n in range(20):
            await pool.enqueue_load(n, 4, [lambda: time.sleep(0.0005)] * 4)
        assert now() == HOUR
    await stuck
    await pool.aclose()


@pytest.mark.virtual_time
async def test_a_thread_sleeps_in_virtual_time() -> None:
    block = VirtualTimeLoop.running().block
    ended = []
    for nap in asyncio.as_completed([asyncio.to_thread(block, seconds) for seconds in (30.0, 10.0, 20.0)]):
        await nap
        ended.append(now())
    assert ended == [10.0, 20.0, 30.0]


@pytest.mark.virtual_time
async def test_a_file_tier_lives_in_virtual_time(tmp_path: Path) -> None:
    disk, slots = FaultyDisk(sleep=VirtualTimeLoop.running().block), Slots(small_layout(), 8)
    disk.add("write", Delayed(60.0))
    tier = FileSystemTierManager(
        slots.layout,
        slots.view,
        "fs",
        tmp_path,
        1,
        1,
        clock=asyncio.get_running_loop().time,
        make_files=disk.make_files,
    )
    async with tier:
        storing = asyncio.create_task(tier.store(slots.store_job(some_keys(slots.layout, 4))))
        await disk.gates["write"].arrival()
        with pytest.raises(TierUnavailable):
            await tier.aclose(drain=False, timeout=45.0)
        assert now() == 45.0
        assert not storing.done()
    await storing
    assert now() == 60.0


@pytest.mark.loops("asyncio", "uvloop")
async def test_on_another_loop_the_remedy_is_named() -> None:
    with pytest.raises(RuntimeError, match=r"mark the test with @pytest.mark.virtual_time"):
        VirtualTimeLoop.running()


def test_what_hangs_is_told() -> None:
    async def wait_for_nothing() -> None:
        await asyncio.Event().wait()

    with pytest.raises(TimeStandsStill, match=r"no timer is set.*test_virtual_time\.py:"):
        run(wait_for_nothing(), patience=PATIENCE)

    async def work_for_ever() -> None:
        go_on = threading.Event()
        working = asyncio.get_running_loop().run_in_executor(None, go_on.wait)
        try:
            await asyncio.sleep(1)
        finally:
            go_on.set()
            await working

    with pytest.raises(TimeStandsStill, match="1 threads work for"):
        run(work_for_ever(), patience=PATIENCE)

    async def tick_for_ever() -> None:
        for _ in itertools.count():
            await asyncio.sleep(60)

    with pytest.raises(TimeStandsStill, match="timers go on"):
        run(tick_for_ever(), horizon=HOUR)

    async def spin() -> None:
        timer = asyncio.create_task(asyncio.sleep(1))
        for _ in iter(timer.done, True):
            await asyncio.sleep(0)

    with pytest.raises(TimeStandsStill, match="must wait instead"):
        run(spin(), patience=PATIENCE)
