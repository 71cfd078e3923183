"""Calls about names, of which some hang. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from asyncoffload.aio.io_threads import MAX_GIVEN_UP
from asyncoffload.errors import TierUnavailable
from asyncoffload.testing import Gate, VirtualTimeLoop
from asyncoffload.tiers.fs.clerk import CLERKS, Clerk

pytestmark = pytest.mark.virtual_time


def clerk_of(timeout: float | None, hung: Callable[[str], None]) -> Clerk:
    return Clerk("fs", timeout, hung, VirtualTimeLoop.running().time)


async def test_it_returns_and_raises_what_the_call_does() -> None:
    clerk = clerk_of(1.0, pytest.fail)
    assert await clerk.run(lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        await clerk.run(partial(open, "/there/is/no/such/file"))
    clerk.close()


async def test_calls_that_hang_are_left_and_others_go_on() -> None:
    hung: list[str] = []
    clerk, gate = clerk_of(10.0, hung.append), Gate[str]()
    with gate.shut():
        for n in range(1, CLERKS + 2):
            with pytest.raises(TierUnavailable, match="for 10 seconds: see whether its file system answers"):
                await clerk.run(partial(gate.pass_in_thread, "late"))
            assert len(hung) == n
        assert asyncio.get_running_loop().time() == (CLERKS + 1) * 10.0
        assert await clerk.run(lambda: 7) == 7
    clerk.close()


async def test_without_a_limit_it_waits() -> None:
    clerk, gate = clerk_of(None, pytest.fail), Gate[str]()
    with gate.shut():
        waiting = asyncio.create_task(clerk.run(partial(gate.pass_in_thread, "late")))
        await asyncio.sleep(3600)
        assert not waiting.done()
    await waiting
    clerk.close()


async def test_who_is_cancelled_leaves_the_call_to_itself() -> None:
    clerk, gate = clerk_of(None, pytest.fail), Gate[str]()
    with gate.shut():
        waiting = asyncio.create_task(clerk.run(partial(gate.pass_in_thread, "late")))
        await gate.reached()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    clerk.close()


async def test_calls_that_wait_for_a_thread_do_not_hang() -> None:
    loop = VirtualTimeLoop.running()
    clerk = clerk_of(10.0, pytest.fail)
    await asyncio.gather(*(clerk.run(partial(loop.block, 4.0)) for _ in range(10 * CLERKS)))
    assert loop.time() == 40.0
    clerk.close()


async def test_what_waits_for_a_thread_is_dropped_when_a_call_hangs() -> None:
    hung: list[str] = []
    clerk, gate = clerk_of(10.0, hung.append), Gate[str]()
    with gate.shut():
        calls = [clerk.run(partial(gate.pass_in_thread, "late")) for _ in range(10)]
        ends = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(end, TierUnavailable) for end in ends)
        assert asyncio.get_running_loop().time() == 10.0
        assert len(hung) == gate.waiting == CLERKS
        assert await clerk.run(lambda: 7) == 7
    clerk.close()


async def test_calls_that_hang_when_nobody_waits_for_them_any_more_are_found() -> None:
    hung: list[str] = []
    clerk, gate = clerk_of(10.0, hung.append), Gate[str]()
    with gate.shut():
        left = [asyncio.create_task(clerk.run(partial(gate.pass_in_thread, "late"))) for _ in range(CLERKS)]
        await gate.reached(CLERKS)
        for task in left:
            task.cancel()
        with pytest.raises(TierUnavailable):
            await clerk.run(lambda: 7)
        assert len(hung) == CLERKS
        assert await clerk.run(lambda: 7) == 7
    clerk.close()


async def test_it_lacks_threads_while_more_hang_than_can_be_replaced() -> None:
    hung: list[str] = []
    clerk, gate = clerk_of(10.0, hung.append), Gate[str]()
    with gate.shut():
        for n in range(1, MAX_GIVEN_UP + CLERKS + 1):
            with pytest.raises(TierUnavailable):
                await clerk.run(partial(gate.pass_in_thread, "late"))
            assert clerk.lacks_threads() == (n > MAX_GIVEN_UP)
        async with asyncio.timeout(10.5):
            with pytest.raises(TierUnavailable):
                await clerk.run(lambda: 7)
        assert len(hung) == MAX_GIVEN_UP + CLERKS
        gate.let_pass(CLERKS)
        await asyncio.sleep(1)
        assert not clerk.lacks_threads(), "the threads that came back can be done without, too"
        assert await clerk.run(lambda: 7) == 7
    clerk.close()
