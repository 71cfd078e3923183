"""Ten thousand calls cancelled at random moments, over real threads: all comes back, nothing is written late."""

from __future__ import annotations

from pathlib import Path

import pytest

from asyncoffload import Offloader
from tests.offloader.rig import Device, Leaks, at_rest, settings
from tests.offloader.storm import Storm


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("tiers", ["none", "memory", "memory and fs"])
async def test_ten_thousand_cancels(tmp_path: Path, tiers: str) -> None:
    await storm(tmp_path, tiers, cancels=10_000 if tiers == "memory" else 2_000)


@pytest.mark.parametrize("tiers", ["none", "memory and fs"])
async def test_some_hundred_cancels(tmp_path: Path, tiers: str) -> None:
    await storm(tmp_path, tiers, cancels=300)


async def storm(root: Path, tiers: str, *, cancels: int) -> None:
    leaks, device = Leaks(), Device(16 * 8)
    chosen = [
        {"type": kind} | ({"root_dir": root} if kind == "fs" else {}) for kind in ("memory", "fs") if kind in tiers
    ]
    plan = settings(device, 24, slice_blocks=2, tiers=chosen)
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        calls = Storm(offloader, device, callers=16, seed=cancels)
        await calls.rage(lambda: calls.counts["cancelled"] < cancels)
        assert calls.counts["done"] > 0
        assert calls.counts["loaded"] > 0
        assert calls.counts["failed"] == 0
        assert await at_rest(offloader)
        assert device.untouched(range(device.n_blocks))
    assert leaks.none()
    assert device.untouched(range(device.n_blocks))
