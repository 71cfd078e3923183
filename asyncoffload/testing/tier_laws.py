"""What must hold for every tier, as tests."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from asyncoffload.errors import ClosedError, InvalidArgument, TierIOError
from asyncoffload.testing.kills import StoringChild, keys_of_batch
from asyncoffload.testing.slots import Slots, content_of, some_keys
from asyncoffload.testing.tier_hooks import TierHooks
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import JobResult, LookupResult, Status, TransferJob

N_SLOTS = 64
MANY_TURNS = 2_000
HIT, MISS = LookupResult.HIT, LookupResult.MISS

Verb = Callable[[TransferJob], Awaitable[JobResult]]


def checkpoints() -> Iterator[int]:
    """How many turns of the loop a job gets before it is cancelled: each of the first ones, later ones sparsely."""
    yield from range(16)
    turns = 16
    while turns < MANY_TURNS:
        yield turns
        turns += turns // 4


def statuses(result: JobResult) -> list[Status]:
    """The status of each key of a result."""
    return [outcome.status for outcome in result.outcomes]


class TierLaws(TierHooks):
    """The laws. Subclass it as ``class TestSomething(TierLaws)`` and implement the hooks of :class:`TierHooks`."""

    @asynccontextmanager
    async def serving(self, place: Path) -> AsyncIterator[tuple[SecondaryTierManager, Slots]]:
        """A tier with its slots."""
        slots = Slots(self.layout(), N_SLOTS)
        async with self.make_tier(slots.layout, slots.view, place) as tier:
            yield tier, slots

    # What goes in comes out.

    @pytest.mark.asyncio
    async def test_what_was_stored_is_loaded(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            job = slots.store_job(keys)
            result = await tier.store(job)
            assert (result.job_id, list(result.keys), result.tier) == (job.job_id, keys, tier.tier_type)
            assert statuses(result) == [Status.DONE] * 8
            slots.guard(range(N_SLOTS))
            backwards = keys[::-1]
            result = await tier.load(slots.load_job(backwards, first_slot=20))
            assert statuses(result) == [Status.DONE] * 8
            assert slots.have(backwards, first_slot=20)
            assert slots.are_untouched([*range(20), *range(28, N_SLOTS)])

    @pytest.mark.asyncio
    async def test_storage_has_what_was_stored(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys))
            for key in keys:
                assert await self.raw_read(tier, key) == content_of(key, slots.nbytes(key))

    @pytest.mark.asyncio
    async def test_what_storage_has_is_found_and_loaded(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            for key in keys:
                await self.raw_write(tier, key, content_of(key, slots.nbytes(key)))
            assert list(await tier.lookup(keys)) == [HIT] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys)

    @pytest.mark.asyncio
    async def test_what_is_not_there_is_missing(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 3)
            assert list(await tier.lookup(keys)) == [MISS] * 3
            assert not any(map(tier.hint, keys))
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.MISSING] * 3

    @pytest.mark.asyncio
    async def test_nothing_to_do_is_done(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, _):
            assert list(await tier.lookup([])) == []
            assert statuses(await tier.store(TransferJob([], []))) == []
            assert statuses(await tier.load(TransferJob([], []))) == []

    @pytest.mark.asyncio
    async def test_storing_what_is_there_is_done_and_changes_nothing(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys))
            slots.guard(range(4))
            assert statuses(await tier.store(TransferJob(keys, range(4)))) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys)

    @pytest.mark.asyncio
    async def test_storing_the_same_at_once_is_done_for_all(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            jobs = [slots.store_job(keys, first_slot=4 * index) for index in range(4)]
            for result in await asyncio.gather(*map(tier.store, jobs)):
                assert statuses(result) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4
            assert slots.have(keys)

    # What is visible is whole.

    @pytest.mark.asyncio
    async def test_visible_when_the_store_returns(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            assert list(await tier.lookup(keys)) == [MISS] * 4
            await tier.store(slots.store_job(keys))
            assert list(await tier.lookup(keys)) == [HIT] * 4

    @pytest.mark.asyncio
    async def test_whatever_is_visible_while_it_is_stored_is_whole(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 32)
            storing = asyncio.create_task(tier.store(slots.store_job(keys)))
            while not storing.done():
                seen = [key for key, found in zip(keys, await tier.lookup(keys), strict=True) if found is HIT]
                for key in seen:
                    assert await self.raw_read(tier, key) == content_of(key, slots.nbytes(key))
                result = await tier.load(slots.load_job(seen, first_slot=32))
                assert statuses(result) == [Status.DONE] * len(seen)
                assert slots.have(seen, first_slot=32)
                await asyncio.sleep(0)
            assert (await storing).success

    # One bad block does not spoil the others.

    @pytest.mark.asyncio
    async def test_each_key_has_its_own_outcome(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            stored = [key for index, key in enumerate(keys) if index != 2]
            await tier.store(slots.store_job(stored))
            await self.raw_damage(tier, keys[3])
            await self.raw_delete(tier, keys[6])
            job = slots.load_job(keys)
            job.unwanted.add(keys[7])
            result = await tier.load(job)
            expected = [Status.DONE] * 8
            expected[2] = expected[6] = Status.MISSING
            expected[3] = Status.CORRUPT
            assert statuses(result)[:7] == expected[:7]
            assert result.outcomes[7].status in (Status.CANCELLED, Status.DONE)
            assert all(slots.hold(index, keys[index]) for index, outcome in enumerate(result.outcomes) if outcome.ok)

    @pytest.mark.asyncio
    async def test_a_damaged_block_is_corrupt_reported_and_replaceable(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            (key,) = some_keys(slots.layout, 1)
            await tier.store(slots.store_job([key]))
            tier.take_events()
            await self.raw_damage(tier, key)
            (outcome,) = (await tier.load(slots.load_job([key]))).outcomes
            assert outcome.status is Status.CORRUPT
            assert outcome.error is not None
            assert [(list(e.keys), e.removed, e.medium) for e in tier.take_events()] == [([key], True, tier.tier_type)]
            assert list(await tier.lookup([key])) == [MISS]
            assert statuses(await tier.store(slots.store_job([key]))) == [Status.DONE]
            assert statuses(await tier.load(slots.load_job([key]))) == [Status.DONE]
            assert slots.hold(0, key)

    @pytest.mark.asyncio
    async def test_unwanted_keys_do_not_disturb_the_others(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 8)
            job = slots.store_job(keys)
            job.unwanted.update(keys[::2])
            result = await tier.store(job)
            assert statuses(result)[1::2] == [Status.DONE] * 4
            assert set(statuses(result)[::2]) <= {Status.DONE, Status.CANCELLED}
            kept = [key for key, outcome in zip(keys, result.outcomes, strict=True) if outcome.ok]
            assert statuses(await tier.load(slots.load_job(kept))) == [Status.DONE] * len(kept)

    @pytest.mark.asyncio
    async def test_errors_are_values(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 4)
            await tier.store(slots.store_job(keys[:2]))
            broken = self.broken_storage(tier)
            if broken is None:
                pytest.skip("this tier's storage cannot refuse")
            with broken:
                stored = await tier.store(slots.store_job(keys[2:]))
                loaded = await tier.load(slots.load_job(keys[:2]))
            for outcome in (*stored.outcomes, *loaded.outcomes):
                assert outcome.status is Status.FAILED
                assert isinstance(outcome.error, TierIOError)
                assert outcome.error.errno is not None
            assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE] * 4
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 4

    @pytest.mark.asyncio
    async def test_slots_that_do_not_exist_are_refused(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 2)
            for slot in (-1, N_SLOTS):
                for verb in (tier.store, tier.load):
                    with pytest.raises(InvalidArgument, match=str(slot)):
                        await verb(TransferJob(keys, [0, slot]))

    # Whoever returns is done with the slots.

    @pytest.mark.asyncio
    async def test_a_cancelled_load_never_writes_later(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            await tier.store(slots.store_job(keys))
            for round_, turns in enumerate(checkpoints()):
                job = slots.load_job(keys, first_slot=16 * (round_ % 4))
                in_time = await _cancelled_after(turns, tier.load, job)
                slots.guard(job.slots)
                await tier.drain()
                assert slots.are_untouched(job.slots)
                if not in_time:
                    break
        assert slots.are_untouched(job.slots)

    @pytest.mark.asyncio
    async def test_a_cancelled_store_never_reads_later(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            for turns in checkpoints():
                keys = some_keys(slots.layout, 16, turns)
                job = slots.store_job(keys)
                in_time = await _cancelled_after(turns, tier.store, job)
                slots.guard(job.slots)
                await tier.drain()
                result = await tier.load(slots.load_job(keys, first_slot=16))
                assert set(statuses(result)) <= {Status.DONE, Status.MISSING}
                assert all(slots.hold(16 + index, keys[index]) for index, o in enumerate(result.outcomes) if o.ok)
                if not in_time:
                    assert result.success
                    break

    @pytest.mark.asyncio
    async def test_a_cancelled_lookup_leaves_the_tier_serving(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            for turns in range(16):
                looking = asyncio.ensure_future(tier.lookup(keys))
                await _turns(turns)
                looking.cancel()
                await asyncio.wait([looking])
            assert statuses(await tier.store(slots.store_job(keys))) == [Status.DONE] * 16
            assert list(await tier.lookup(keys)) == [HIT] * 16

    # The end.

    @pytest.mark.asyncio
    async def test_drain_returns_when_everything_has_ended(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 16)
            storing = asyncio.ensure_future(tier.store(slots.store_job(keys)))
            await asyncio.sleep(0)
            await tier.drain()
            slots.guard(range(16))
            await asyncio.wait([storing])
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 16
            assert slots.have(keys)

    @pytest.mark.asyncio
    async def test_a_closed_tier_says_so(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 2)
            await tier.store(slots.store_job(keys))
            await tier.aclose()
            with pytest.raises(ClosedError):
                await tier.lookup(keys)
            with pytest.raises(ClosedError):
                await tier.store(slots.store_job(keys))
            with pytest.raises(ClosedError):
                await tier.load(slots.load_job(keys))
            await tier.aclose()

    @pytest.mark.parametrize("drain", [True, False])
    @pytest.mark.asyncio
    async def test_closing_ends_every_job(self, tmp_path: Path, drain: bool) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            kept = some_keys(slots.layout, 8)
            await tier.store(slots.store_job(kept))
            stores = [
                asyncio.ensure_future(tier.store(slots.store_job(some_keys(slots.layout, 8, n), 8 * n)))
                for n in range(1, 4)
            ]
            loads = [asyncio.ensure_future(tier.load(slots.load_job(kept, 8 * n))) for n in range(4, 8)]
            await asyncio.sleep(0)
            await tier.aclose(drain=drain)
            slots.guard(range(N_SLOTS))
            for result in await asyncio.gather(*stores, *loads, return_exceptions=True):
                if isinstance(result, BaseException):
                    assert isinstance(result, ClosedError)
                else:
                    assert set(statuses(result)) <= {Status.DONE, Status.CANCELLED}
            assert slots.are_untouched(range(N_SLOTS))

    @pytest.mark.asyncio
    async def test_nothing_is_left_behind(self, tmp_path: Path) -> None:
        async def once() -> None:
            async with self.serving(tmp_path) as (tier, slots):
                keys = some_keys(slots.layout, 8)
                await tier.store(slots.store_job(keys))
                await tier.load(slots.load_job(keys))

        await once()
        gc.collect()
        threads, descriptors = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
        for _ in range(3):
            await once()
        gc.collect()
        for thread in set(threading.enumerate()) - threads:
            thread.join(10)
            assert not thread.is_alive(), f"{thread} outlives its tier"
        assert len(os.listdir("/proc/self/fd")) <= descriptors

    # Others have a turn.

    @pytest.mark.asyncio
    async def test_the_loop_is_not_held_up(self, tmp_path: Path) -> None:
        async with self.serving(tmp_path) as (tier, slots):
            keys = some_keys(slots.layout, 32)
            with _blocking_calls_raise(type(tier)):
                for verb, make_job in ((tier.store, slots.store_job), (tier.load, slots.load_job)):
                    task, turns = asyncio.create_task(verb(make_job(keys))), 0
                    while not task.done():
                        await asyncio.sleep(0)
                        turns += 1
                    assert (await task).success
                    assert turns > 2, "nobody else had a turn between the blocks"
                assert list(await tier.lookup(keys)) == [HIT] * 32
            assert slots.have(keys)

    # What lasts.

    @pytest.mark.asyncio
    async def test_a_new_tier_finds_what_an_earlier_one_stored(self, tmp_path: Path) -> None:
        self._needs_persistence()
        keys = some_keys(self.layout(), 8)
        async with self.serving(tmp_path) as (tier, slots):
            await tier.store(slots.store_job(keys))
        async with self.serving(tmp_path) as (tier, slots):
            assert list(await tier.lookup(keys)) == [HIT] * 8
            assert statuses(await tier.load(slots.load_job(keys))) == [Status.DONE] * 8
            assert slots.have(keys)

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


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def _cancelled_after(turns: int, verb: Verb, job: TransferJob) -> bool:
    """Run a job and cancel it after so many turns of the loop; False when it had ended before."""
    task = asyncio.ensure_future(verb(job))
    await _turns(turns)
    in_time = not task.done()
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    return in_time


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
