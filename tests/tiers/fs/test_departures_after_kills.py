"""Processes that evict until they are killed: what they wrote down is there, whole, and the next one goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

from asyncoffload.core.layout import directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots
from asyncoffload.tiers.fs.departures import DEPARTURES, Departure, departures_of
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import Fate, Findings
from tests.tiers.fs import sharing_processes as sharing

PROCESSES = 2
QUOTA = 100 * sharing.BLOCK
UNREPORTED = PROCESSES * 3 * sharing.BATCH
"""Blocks that processes have stored at most and not told of when they are killed."""


async def findings_of(root: Path, keys: list[OffloadKey]) -> list[Findings]:
    slots = Slots(sharing.LAYOUT, 4)
    async with FileSystemTierManager(sharing.LAYOUT, slots.view, "fs", root, 2, 2, quota=QUOTA) as tier:
        return [await tier.explain(key) for key in keys]


def kill_after_more_departures(root: Path, name: str) -> set[OffloadKey]:
    """Run processes until they have written down departures, kill them; returns what they told of having stored."""
    before = len(departures_of(str(root)))
    processes = [sharing.SharingProcess(root, QUOTA, f"{name}.{number}") for number in range(PROCESSES)]
    try:
        for process in processes:
            process.begin()
        while len(departures_of(str(root))) == before:
            for process in processes:
                process.wait_for_batches(1)
    finally:
        for process in processes:
            process.kill()
    return {key for process in processes for key in process.stored}


def check(root: Path, left: list[Departure], stored: set[OffloadKey], turns: int) -> None:
    """Every line is whole, but for one that a kill may have torn, and tells of a block that was stored."""
    lines = [line for line in (root / DEPARTURES).read_bytes().split(b"\n") if line]
    assert len(left) <= len(lines) <= len(left) + turns * PROCESSES
    assert {one.what for one in left} == {Fate.EVICTED}
    assert {one.why for one in left} <= {"quota", "recycled"}
    assert {one.nbytes for one in left} == {sharing.BLOCK}
    assert {one.directory for one in left} == {directory_name(sharing.LAYOUT)}
    assert len({one.key for one in left} - stored) <= turns * UNREPORTED


def test_kills(tmp_path: Path) -> None:
    stored, left = set[OffloadKey](), list[Departure]()
    for turn in (1, 2, 3):
        stored |= kill_after_more_departures(tmp_path, f"turn {turn}")
        before, left = left, departures_of(str(tmp_path))
        assert set(before) < set(left)  # what was there stays
        check(tmp_path, left, stored, turn)
    gone = [one.key for one in left if not sharing.file_of(tmp_path, one.key).exists()][:20]
    assert gone
    for found in asyncio.run(findings_of(tmp_path, gone)):
        assert found.holds is False
        assert found.history[-1].what is Fate.EVICTED
