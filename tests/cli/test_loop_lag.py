"""The lag sampler reads the clock it is given and ends with its block."""

from __future__ import annotations

import asyncio

import pytest

from asyncoffload.cli.loop_lag import LoopLag


async def test_a_late_wake_up_is_a_sample() -> None:
    times = iter([10.0, 10.5, 20.0, 19.0])
    enough = asyncio.Event()

    def clock() -> float:
        now = next(times, None)
        if now is None:
            enough.set()
            return 0.0
        return now

    lag = LoopLag(interval=0.0, clock=clock)
    async with lag.sampling():
        await enough.wait()
    assert list(lag.samples[:2]) == [0.5, 0.0]


async def test_sampling_ends_when_its_block_is_left() -> None:
    lag = LoopLag(interval=0.0)
    with pytest.raises(ValueError, match="left"):
        async with lag.sampling():
            raise ValueError("left")
    assert all(task.get_name() != "loop lag" for task in asyncio.all_tasks())
