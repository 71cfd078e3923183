"""Others have a turn: the event loop is not held up."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncoffload.testing.laws.base import HIT, WRONG_BYTES, Laws
from asyncoffload.testing.slots import some_keys
from asyncoffload.testing.tiers.wrapped import WrappedTier
from asyncoffload.tiers.base import SecondaryTierManager


class TurnLaws(Laws):
    """Others have a turn: the event loop is not held up."""

    @pytest.mark.asyncio
    async def test_the_loop_is_not_held_up(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 32)
            with _blocking_calls_raise(type(_innermost(tier))):
                for verb, make_job in ((tier.store, slots.store_job), (tier.load, slots.load_job)):
                    task, turns = asyncio.create_task(verb(make_job(keys))), 0
                    while not task.done():
                        await asyncio.sleep(0)
                        turns += 1
                    assert (await task).success
                    assert turns > 2, "nobody else had a turn between the blocks"
                assert list(await tier.lookup(keys)) == [HIT] * 32
            assert slots.have(keys), WRONG_BYTES


def _innermost(tier: SecondaryTierManager) -> SecondaryTierManager:
    return _innermost(tier.inner) if isinstance(tier, WrappedTier) else tier


@contextmanager
def _blocking_calls_raise(tier: type[SecondaryTierManager]) -> Iterator[None]:
    """With blockbuster installed, calls of the tier's package that block the loop's thread raise."""
    try:
        from blockbuster import BlockBuster
    except ImportError:
        yield
        return
    import asyncoffload.testing

    detector = BlockBuster(tier.__module__.partition(".")[0], excluded_modules=[asyncoffload.testing])
    for name, function in detector.functions.items():
        if "lock" not in name.lower():  # a lock that is held for a few instructions may be taken on the loop
            function.activate()
    try:
        yield
    finally:
        detector.deactivate()
