"""Gates hold coroutines and threads, and tell who is there."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.testing import Gate
from asyncoffload.testing.held_threads import threads_at_work


async def test_an_open_gate_lets_everybody_pass_and_remembers_them() -> None:
    gate: Gate[int] = Gate()
    for n in range(3):
        await gate.passing(n)
    gate.pass_in_thread(3)
    assert [await gate.arrival() for _ in range(4)] == [0, 1, 2, 3]


async def test_a_shut_gate_holds_until_it_opens() -> None:
    gate: Gate[int] = Gate()
    await gate.passing(-1)
    with gate.shut():
        held = [asyncio.create_task(gate.passing(n)) for n in range(3)]
        await gate.reached(3)
        assert await gate.arrival() == 0, "who came before it was shut is forgotten"
        assert "shut, 3 waiting" in repr(gate)
        gate.let_pass()
        await held[0]
        assert gate.waiting == 2
        held[1].cancel()
        await asyncio.wait([held[1]])
        assert gate.waiting == 1
    await held[2]
    assert "open, 0 waiting" in repr(gate)


async def test_some_may_pass_before_it_holds() -> None:
    gate: Gate[int] = Gate()
    with gate.shut(after=2):
        await gate.passing(0)
        await gate.passing(1)
        held = asyncio.create_task(gate.passing(2))
        await gate.reached()
        assert not held.done()
    await held


async def test_arrivals_are_awaited_one_by_one() -> None:
    gate: Gate[int] = Gate()
    waiting = [asyncio.create_task(gate.arrival()) for _ in range(2)]
    await asyncio.sleep(0)
    await gate.passing(7)
    await gate.passing(8)
    assert sorted([await task for task in waiting]) == [7, 8]


async def test_threads_are_held_too_and_do_not_count_as_working() -> None:
    gate: Gate[str] = Gate()
    threads = IOThreads(2)
    loop = asyncio.get_running_loop()
    with gate.shut():
        held = [loop.run_in_executor(threads, gate.pass_in_thread, name) for name in "ab"]
        await gate.reached(2)
        assert {await gate.arrival(), await gate.arrival()} == {"a", "b"}
        assert threads_at_work() == 0
        assert threads.under_way == 2
    await asyncio.gather(*held)
    threads.shutdown()
    assert threads_at_work() == 0


def test_a_test_without_a_loop_waits_by_blocking() -> None:
    gate: Gate[int] = Gate()
    with gate.shut():
        thread = threading.Thread(target=gate.pass_in_thread, args=[1])
        thread.start()
        gate.wait_reached()
        with pytest.raises(AssertionError, match="2 were expected"):
            gate.wait_reached(2, timeout=0)
    thread.join()


async def test_a_gate_is_opened_from_another_thread() -> None:
    gate: Gate[None] = Gate()
    gate.shut()
    held = asyncio.create_task(gate.passing(None))
    await gate.reached()
    thread = threading.Thread(target=gate.open)
    thread.start()
    await held
    thread.join()
