"""Late wake-ups are recorded, and one that is due and does not come shows while it does not come."""

from __future__ import annotations

import asyncio

from asyncoffload.aio.loop_lag import LateWakeUps


async def test_how_late_the_next_wake_up_is_shows_before_it_comes() -> None:
    now = 10.0
    late: list[float] = []
    recorded = asyncio.Event()

    def record(seconds: float) -> None:
        late.append(seconds)
        recorded.set()

    wake_ups = LateWakeUps(record, interval=0.001, clock=lambda: now)
    assert wake_ups.overdue == 0.0
    async with wake_ups.sampling():
        await recorded.wait()
        assert late[0] == 0.0  # by this clock it was early
        now = 12.0
        assert 1.9 < wake_ups.overdue <= 2.0
    assert wake_ups.overdue == 0.0
