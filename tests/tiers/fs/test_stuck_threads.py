"""Threads that hang: how many can be done without, who else is in them, and how a tier closes. On virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.aio.io_threads import MAX_GIVEN_UP
from asyncoffload.errors import TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import Delayed, Gate, Slots, VirtualTimeLoop, some_keys
from asyncoffload.tiers.fs.housekeeping import Housekeeping
from asyncoffload.types import LookupResult, Status
from tests.tiers.fs.test_stuck_calls import (
    LAYOUT,
    PROBED,
    TIMEOUT,
    disk_in_virtual_time,
    eventually,
    opened,
    statuses,
    watched,
)

pytestmark = pytest.mark.virtual_time


async def test_it_stays_paused_while_more_threads_hang_than_can_be_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slots, keys, disk = Slots(LAYOUT, 64), some_keys(LAYOUT, 12), disk_in_virtual_time()
    n_hanging = MAX_GIVEN_UP + 1
    async with opened(tmp_path, slots, disk, threads=1) as tier:
        await tier.store(slots.store_job(keys))
        disk.add("read", Delayed(100 * TIMEOUT), keys=keys[:n_hanging])
        hanging = []
        for at, key in enumerate(keys[:n_hanging]):
            await eventually(lambda: tier.stats()["paused"] == 0)
            job = slots.load_job([key], at)
            told = watched(job)
            hanging.append(asyncio.create_task(tier.load(job)))
            await told
        await asyncio.sleep(10 * TIMEOUT)
        assert tier.stats()["paused"] == 1, "what waits for a thread would wait for those that hang"
        assert caplog.text.count("stays paused") == 1
        assert set(statuses((await tier.load(slots.load_job(keys[8:], 20))).outcomes)) == {Status.TIMED_OUT}
        assert not any(task.done() for task in hanging)
        await asyncio.wait(hanging)
        await asyncio.sleep(TIMEOUT + PROBED)
        assert (await tier.load(slots.load_job(keys[8:], 20))).success


async def test_it_stays_paused_while_more_calls_about_names_hang_than_can_be_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots, keys, disk = Slots(LAYOUT, 8), some_keys(LAYOUT, 12), disk_in_virtual_time()
    gate, n_hanging = Gate[str](), MAX_GIVEN_UP + 1
    async with opened(tmp_path, slots, disk) as tier:
        which_exist = tier._space.which_exist

        def look(wanted: Sequence[OffloadKey]) -> list[OffloadKey]:
            if wanted[0] in keys[:n_hanging]:
                gate.pass_in_thread("name")
            return which_exist(wanted)

        monkeypatch.setattr(tier._space, "which_exist", look)
        with gate.shut():
            for key in keys[:n_hanging]:
                await eventually(lambda: tier.stats()["paused"] == 0)
                assert list(await tier.lookup([key])) == [LookupResult.MISS]
            await asyncio.sleep(10 * TIMEOUT)
            assert tier.stats()["paused"] == 1
            assert tier.stats()["hung_calls"] == n_hanging
        await asyncio.sleep(TIMEOUT + PROBED)
        assert tier.stats()["paused"] == 0
        await tier.store(slots.store_job(keys[:4]))
        assert set(await tier.lookup(keys[:4])) == {LookupResult.HIT}


async def test_housekeeping_that_hangs_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate, make_a_round = Gate[str](), Housekeeping.round

    def one_round(housekeeping: Housekeeping) -> float:
        gate.pass_in_thread("round")
        return make_a_round(housekeeping)

    monkeypatch.setattr(Housekeeping, "round", one_round)
    async with opened(tmp_path, Slots(LAYOUT, 4), disk_in_virtual_time()) as tier:
        with gate.shut():
            await eventually(lambda: tier.stats()["hung_calls"] == 1)
            assert tier.stats()["paused"] == 1
            assert f"tier fs pauses: housekeeping in {tmp_path}" in caplog.text
            await asyncio.sleep(10 * TIMEOUT)
            assert (tier.stats()["paused"], tier.stats()["hung_calls"]) == (0, 1), "it is one call"


async def test_housekeeping_that_takes_long_does_not_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep, ended, steps = VirtualTimeLoop.running().block, Gate[str](), iter(range(5))

    def one_round(housekeeping: Housekeeping) -> float:
        for _ in steps:
            sleep(0.8 * TIMEOUT)
            housekeeping._evictor.files += 1
        ended.pass_in_thread("round")
        return 1.0

    monkeypatch.setattr(Housekeeping, "round", one_round)
    async with opened(tmp_path, Slots(LAYOUT, 4), disk_in_virtual_time()) as tier:
        with ended.shut():
            await ended.reached()
            assert tier.stats()["hung_calls"] == 0


async def test_closing_ends_in_time_where_leaving_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, gate = asyncio.get_running_loop(), Gate[str]()
    async with opened(tmp_path, Slots(LAYOUT, 4), disk_in_virtual_time()) as tier:
        leave = tier._space.leave

        def leave_late() -> None:
            gate.pass_in_thread("leave")
            leave()

        monkeypatch.setattr(tier._space, "leave", leave_late)
        with gate.shut():
            for _ in range(2):
                began = loop.time()
                with pytest.raises(TierUnavailable, match=f"still leaves {tmp_path}.*: close again"):
                    await tier.aclose(timeout=0.5)
                assert loop.time() - began == pytest.approx(0.5)
            assert gate.waiting == 1
        await tier.aclose()


async def test_a_tier_that_is_closed_sends_no_probes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate, keys = Gate[Sequence[OffloadKey]](), some_keys(LAYOUT, 2)

    def look(wanted: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
        gate.pass_in_thread(wanted)
        return wanted

    async with opened(tmp_path, Slots(LAYOUT, 4), disk_in_virtual_time()) as tier:
        monkeypatch.setattr(tier._space, "which_exist", look)
        with gate.shut():
            looking = asyncio.create_task(tier.lookup(keys))
            await gate.reached()
            await tier.aclose()
            assert set(await looking) == {LookupResult.MISS}
            assert tier.stats()["hung_calls"] == 1
            assert asyncio.all_tasks() == {asyncio.current_task()}
