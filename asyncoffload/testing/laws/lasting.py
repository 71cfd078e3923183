"""What lasts: blocks survive the process, and any history agrees with a model."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest

from asyncoffload.testing.kills import StoringChild, keys_of_batch
from asyncoffload.testing.laws.base import HIT, WRONG_BYTES, Laws, statuses
from asyncoffload.testing.slots import some_keys
from asyncoffload.types import Status


class LastingLaws(Laws):
    """What lasts: blocks survive the process, and any history agrees with a model."""

    @pytest.mark.asyncio
    async def test_a_new_tier_finds_what_an_earlier_one_stored(self, tmp_path: Path) -> None:
        self._needs_persistence()
        keys = some_keys(self.layout(), 8)
        async with self.serving(tmp_path) as (tier, slots):
            await tier.store(slots.store_job(keys))
        async with self.serving(tmp_path) as (tier, slots):
            assert list(await tier.lookup(keys)) == [HIT] * 8
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 8
            assert slots.have(keys), WRONG_BYTES

    def test_a_killed_process_leaves_whole_blocks_only(self, tmp_path: Path) -> None:
        self._needs_persistence()
        chance = random.Random(0)
        for round_ in range(3):
            with StoringChild(self, tmp_path, f"round {round_}") as child:
                child.wait_for_batches(chance.randrange(1, 20))
                child.wait(chance.uniform(0, 0.005))
                child.kill()
            asyncio.run(self.check_after_kill(tmp_path, child))

    async def check_after_kill(self, place: Path, child: StoringChild) -> None:
        """What the killed child reported as stored can be loaded; what it did not is there and whole, or missing."""
        async with self.serving(place) as (tier, slots):
            for number in range(max(child.committed) + 4):
                keys = keys_of_batch(slots.layout, child.name, number)
                result = await tier.load(slots.load_job(keys))
                allowed = {Status.DONE} if number in child.committed else {Status.DONE, Status.MISSING}
                assert set(statuses(result)) <= allowed, result
                assert all(slots.hold(index, keys[index]) for index, o in enumerate(result.outcomes) if o.ok)

    def test_any_sequence_of_calls_agrees_with_a_model(self, tmp_path_factory: pytest.TempPathFactory) -> None:
        from asyncoffload.testing.tier_model import check_against_model

        check_against_model(self, lambda: tmp_path_factory.mktemp("model"))

    def _needs_persistence(self) -> None:
        if not self.persistent:
            pytest.skip("this tier forgets with its process")
