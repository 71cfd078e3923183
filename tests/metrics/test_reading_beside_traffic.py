"""Any thread may read a stack at any moment of its work, as often as it likes."""

from __future__ import annotations

import asyncio
import errno
import random
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest

from asyncoffload import Offloader
from asyncoffload.aio.durations import DurationCounts
from asyncoffload.metrics.readings import readings_of
from tests.metrics.traffic import VERBS, traffic
from tests.offloader.rig import Device, Kept, keys_of, settings

Values = dict[tuple[str, tuple[str, ...]], tuple[float, ...]]


@pytest.fixture(autouse=True)
def _threads_take_turns_often() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


def _growing(offloader: Offloader) -> Values:
    """What may only grow, as numbers that may only grow."""
    return {
        (metric.name, labels): (*value.counts, value.seconds) if isinstance(value, DurationCounts) else (value,)
        for metric, labels, value in readings_of(offloader.stats())
        if metric.kind != "gauge"
    }


def _read_on(offloader: Offloader, enough: Event) -> int:
    reads, before = 0, _growing(offloader)
    while not enough.is_set():
        after = _growing(offloader)
        assert before.keys() == after.keys()
        for series, values in before.items():
            assert all(old <= new for old, new in zip(values, after[series], strict=True)), series
        reads, before = reads + 1, after
    return reads


async def test_reading_as_fast_as_two_threads_can(tmp_path: Path) -> None:
    device, kept, chance = Device(8), Kept(hints=False), random.Random(11)
    keys = keys_of("read", 64)
    plan = settings(device, 16, tiers=[{"type": "fs", "root_dir": tmp_path, "io_threads": 2}], cascade_blocks=4)
    enough = Event()
    async with Offloader(plan, kv_caches=device.kv_caches, tiers=[kept]) as offloader:
        with ThreadPoolExecutor(2) as readers:
            reading = [readers.submit(_read_on, offloader, enough) for _ in range(2)]
            try:
                for verb in VERBS:
                    with kept.tier.faults.raises(verb, OSError(errno.EIO, "the test broke this tier"), chance=0.5):
                        await asyncio.gather(*(traffic(offloader, keys, chance, 25) for _ in range(4)))
            finally:
                enough.set()
        assert sum(done.result() for done in reading) > 0
