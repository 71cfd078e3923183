"""Calls about names, of which some hang. On virtual time."""

from __future__ import annotations

import asyncio
from functools import partial

import pytest

from asyncoffload.errors import TierUnavailable
from asyncoffload.testing import Gate
from asyncoffload.tiers.fs.clerk import CLERKS, Clerk

pytestmark = pytest.mark.virtual_time


async def test_it_returns_and_raises_what_the_call_does() -> None:
    clerk = Clerk("fs", 1.0, pytest.fail)
    assert await clerk.run(lambda: 7) == 7
    with pytest.raises(FileNotFoundError):
        await clerk.run(partial(open, "/there/is/no/such/file"))
    clerk.close()


async def test_calls_that_hang_are_left_and_others_go_on() -> None:
    hung: list[str] = []
    clerk, gate = Clerk("fs", 10.0, hung.append), Gate[str]()
    with gate.shut():
        for n in range(1, CLERKS + 2):
            with pytest.raises(TierUnavailable, match="for 10 seconds: see whether its file system answers"):
                await clerk.run(partial(gate.pass_in_thread, "late"))
            assert len(hung) == n
        assert asyncio.get_running_loop().time() == (CLERKS + 1) * 10.0
        assert await clerk.run(lambda: 7) == 7
    clerk.close()


async def test_without_a_limit_it_waits() -> None:
    clerk, gate = Clerk("fs", None, pytest.fail), Gate[str]()
    with gate.shut():
        waiting = asyncio.create_task(clerk.run(partial(gate.pass_in_thread, "late")))
        await asyncio.sleep(3600)
        assert not waiting.done()
    await waiting
    clerk.close()


async def test_who_is_cancelled_leaves_the_call_to_itself() -> None:
    clerk, gate = Clerk("fs", None, pytest.fail), Gate[str]()
    with gate.shut():
        waiting = asyncio.create_task(clerk.run(partial(gate.pass_in_thread, "late")))
        await gate.reached()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    clerk.close()
