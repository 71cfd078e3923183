"""A tier within its bounds: what it stores, refuses, removes, and says about it."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import FaultyDisk
from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.tiers.fs.collecting import Collection
from asyncoffload.tiers.fs.counting import Census
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.recency import AT_ONCE_NS
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import JobResult, KVGroup, KVLayout, LookupResult, Status, TransferJob

LAYOUT = KVLayout("bounds", "bfloat16", 16, (KVGroup((8192,)),))
BLOCK = file_bytes(8192)


def make_tier(
    root: Path, slots: Slots, quota: int | None = None, min_free: int | None = None, **options: object
) -> FileSystemTierManager:
    return FileSystemTierManager(
        slots.layout,
        slots.view,
        "fs",
        root,
        2,
        2,
        quota=quota,
        min_free=min_free,
        **options,  # type: ignore[arg-type]
    )


def file_of(root: Path, key: OffloadKey, layout: KVLayout = LAYOUT) -> Path:
    return Path(block_path(str(root / directory_name(layout)), key))


def bytes_below(root: Path) -> int:
    """What the account should say."""
    nbytes = 0
    for path in root.rglob("*_g*/*"):
        with suppress(FileNotFoundError):  # removed or renamed meanwhile
            nbytes += path.stat().st_size
    return nbytes


def find(root: Path, pattern: str) -> list[Path]:
    return list(root.rglob(pattern))


def statuses(result: JobResult) -> list[Status]:
    return [outcome.status for outcome in result.outcomes]


async def until(condition: Callable[[], bool]) -> None:
    """The housekeeping comes by itself; nothing else tells when."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def store_all(tier: FileSystemTierManager, slots: Slots, keys: Sequence[OffloadKey]) -> None:
    """Store blocks, offering again what was shed, as a manager does."""
    left = list(keys)
    while left:
        result = await tier.store(slots.store_job(left[: slots.n_slots]))
        assert {outcome.status for outcome in result.outcomes} <= {Status.DONE, Status.SHED}
        left = [*result.failed_keys, *left[slots.n_slots :]]
        if result.failed_keys:
            await asyncio.sleep(0.005)


async def test_a_quota_is_kept_and_the_newest_blocks_stay(tmp_path: Path) -> None:
    slots, keys, quota = Slots(LAYOUT, 16), some_keys(LAYOUT, 400), 100 * BLOCK
    async with make_tier(tmp_path, slots, quota) as tier:
        for begin in range(0, len(keys), 16):
            await store_all(tier, slots, keys[begin : begin + 16])
            assert bytes_below(tmp_path) <= quota
        stats = tier.stats()
        assert stats["quota_bytes"] == quota
        assert stats["evicted_files"] >= 300
        assert stats["evicted_bytes"] == stats["evicted_files"] * BLOCK
        await until(lambda: not tier.stats()["reserved_bytes"])
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path)
        await tier.load(slots.load_job(keys[-16:]))
        assert slots.have(keys[-16:])
        assert statuses(await tier.load(slots.load_job(keys[:16]))) == [Status.MISSING] * 16


async def test_what_was_removed_is_reported_and_leaves_the_index(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 64)
    async with make_tier(tmp_path, slots, 20 * BLOCK) as tier:
        await store_all(tier, slots, keys)
        here = {key for key in keys if file_of(tmp_path, key).exists()}
        await until(lambda: {key for key in keys if tier.hint(key)} == here)
        removed = [key for event in tier.take_events() if event.removed for key in event.keys]
        assert len(removed) == len(set(removed))
        assert set(removed) == set(keys) - here
        found = await tier.lookup(keys)
        assert {key for key, result in zip(keys, found, strict=True) if result is LookupResult.HIT} == here


async def test_of_one_batch_the_tail_goes_first(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots, 16 * BLOCK) as tier:
        await store_all(tier, slots, keys)
        more = some_keys(LAYOUT, 4, "more")
        await store_all(tier, slots, more)
        left = [key for key in keys if file_of(tmp_path, key).exists()]
        assert left == keys[: len(left)]
        assert 8 <= len(left) <= 12


async def test_the_tail_of_a_prompt_that_came_in_several_batches_goes_first(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    moment = 1_000_000_000_000_000_000
    async with make_tier(tmp_path, slots, 16 * BLOCK, now=lambda: moment) as tier:
        for first in (8, 0, 12, 4):
            job = slots.store_job(keys[first : first + 4])
            job.depths = range(first, first + 4)
            await tier.store(job)
        await store_all(tier, slots, some_keys(LAYOUT, 4, "more"))
        left = [key for key in keys if file_of(tmp_path, key).exists()]
        assert left == keys[: len(left)]
        assert 8 <= len(left) <= 12


async def test_a_block_that_a_neighbour_used_stays(tmp_path: Path) -> None:
    slots, theirs, keys = Slots(LAYOUT, 8), Slots(LAYOUT, 8), some_keys(LAYOUT, 8)
    seconds, nanoseconds = 0.0, 1_000_000_000_000_000_000
    async with (
        make_tier(tmp_path, slots, 8 * BLOCK, clock=lambda: seconds, now=lambda: nanoseconds) as tier,
        make_tier(tmp_path, theirs, 8 * BLOCK, now=lambda: nanoseconds) as neighbour,
    ):
        await store_all(tier, slots, keys)
        nanoseconds += 120_000_000_000
        assert (await neighbour.load(theirs.load_job(keys[6:]))).success
        await store_all(tier, slots, some_keys(LAYOUT, 4, "more"))
        assert file_of(tmp_path, keys[6]).exists()
        assert file_of(tmp_path, keys[7]).exists()
        assert not file_of(tmp_path, keys[5]).exists()


async def test_a_block_is_renewed_once_a_minute(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 4)
    begin = 16_666_666 * AT_ONCE_NS
    nanoseconds = begin + 10**9
    async with make_tier(tmp_path, slots, now=lambda: nanoseconds) as tier:

        def times() -> list[int]:
            return [file_of(tmp_path, key).stat().st_mtime_ns for key in keys]

        await tier.store(slots.store_job(keys))
        assert times() == [begin - 1000 * place for place in range(4)]
        nanoseconds = begin + AT_ONCE_NS - 1
        await tier.load(slots.load_job(keys))
        await tier.touch(keys)
        assert times() == [begin - 1000 * place for place in range(4)]
        nanoseconds = later = begin + AT_ONCE_NS
        await tier.load(slots.load_job(keys[:2]))
        assert times() == [later, later - 1000, begin - 2000, begin - 3000]
        await tier.touch(keys)
        assert times() == [later - 1000 * place for place in range(4)]


async def test_a_prompt_keeps_its_order_however_it_is_used(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    begin = 16_666_666 * AT_ONCE_NS
    nanoseconds = begin
    async with make_tier(tmp_path, slots, now=lambda: nanoseconds) as tier:

        def depths(count: int) -> list[float]:
            return [(nanoseconds // AT_ONCE_NS * AT_ONCE_NS - when) / 1000 for when in times(count)]

        def times(count: int) -> list[int]:
            return [file_of(tmp_path, key).stat().st_mtime_ns for key in keys[:count]]

        async def store(first: int, last: int) -> None:
            job = slots.store_job(keys[first:last])
            job.depths = range(first, last)
            await tier.store(job)

        await store(0, 8)
        nanoseconds += AT_ONCE_NS - 1  # its beginning has not been renewed when its end comes
        await tier.load(slots.load_job(keys[:8]))
        await store(8, 16)
        assert depths(16) == list(range(16))
        nanoseconds += AT_ONCE_NS
        await tier.touch(keys[:4])  # nobody says how deep the parts lie
        await tier.touch(keys[4:12])
        await tier.load(slots.load_job(keys[12:]))
        assert depths(16) == list(range(16))


async def test_a_quota_of_one_block(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 4)
    async with make_tier(tmp_path, slots, BLOCK) as tier:
        for key in keys:
            await store_all(tier, slots, [key])
            assert bytes_below(tmp_path) == BLOCK
            assert (await tier.load(slots.load_job([key]))).success
        assert tier.stats()["shed_by_quota"] >= 3


def test_a_quota_that_holds_no_block_is_refused(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 4)
    with pytest.raises(ConfigError, match=f"quota = {BLOCK - 1} bytes does not hold a single block.*{BLOCK} bytes"):
        make_tier(tmp_path, slots, BLOCK - 1)
    with pytest.raises(ConfigError, match="min_free = -1 is less than nothing"):
        make_tier(tmp_path, slots, min_free=-1)


async def test_a_smaller_quota_after_a_restart(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 64)
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
        assert bytes_below(tmp_path) == 64 * BLOCK
        assert "used_bytes" not in tier.stats()
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:
        await until(lambda: bool(tier.stats()["counted"]))
        await until(lambda: tier.stats()["used_bytes"] == bytes_below(tmp_path) == 40 * BLOCK)
    async with make_tier(tmp_path, slots, 80 * BLOCK) as tier:
        await store_all(tier, slots, some_keys(LAYOUT, 40, "more"))
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path) <= 80 * BLOCK
        assert bytes_below(tmp_path) >= 76 * BLOCK


async def test_the_smallest_quota_of_the_living_holds(tmp_path: Path) -> None:
    slots, theirs = Slots(LAYOUT, 16), Slots(LAYOUT, 16)
    async with make_tier(tmp_path, slots, 80 * BLOCK) as tier:
        async with make_tier(tmp_path, theirs, 20 * BLOCK) as neighbour:
            await store_all(tier, slots, some_keys(LAYOUT, 64))
            assert tier.stats()["quota_bytes"] == neighbour.stats()["quota_bytes"] == 20 * BLOCK
            assert bytes_below(tmp_path) <= 20 * BLOCK
        assert tier.stats()["quota_bytes"] == 80 * BLOCK
        await store_all(tier, slots, some_keys(LAYOUT, 64, "more"))
        assert 50 * BLOCK <= bytes_below(tmp_path) <= 80 * BLOCK  # far beyond the neighbour's quota


async def test_some_of_the_disk_is_left_free(tmp_path: Path) -> None:
    slots, disk = Slots(LAYOUT, 16), 200 * BLOCK

    def free(directory: str) -> int:  # noqa: ARG001
        return disk - int(tier.stats()["used_bytes"])

    tier = make_tier(tmp_path, slots, min_free=50 * BLOCK, free=free)
    async with tier:
        for number in range(20):
            await store_all(tier, slots, some_keys(LAYOUT, 16, number))
            assert bytes_below(tmp_path) <= 150 * BLOCK
        assert tier.stats()["evicted_files"] >= 170
        assert tier.stats()["shed_by_quota"] == 0
        assert bytes_below(tmp_path) >= 130 * BLOCK
        disk -= 100 * BLOCK
        await until(lambda: bytes_below(tmp_path) <= 50 * BLOCK)


async def test_housekeeping_goes_on_after_whatever_went_wrong(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots, troubles = Slots(LAYOUT, 16), 3

    def free(directory: str) -> int:  # noqa: ARG001
        nonlocal troubles
        if troubles and "housekeeping" in threading.current_thread().name:
            troubles -= 1
            raise ArithmeticError("a bug")
        return 200 * BLOCK - bytes_below(tmp_path)

    async with make_tier(tmp_path, slots, min_free=180 * BLOCK, free=free) as tier:
        for number in range(4):
            await store_all(tier, slots, some_keys(LAYOUT, 8, number))
        assert tier.stats()["evicted_files"] >= 10
    assert "a bug" in caplog.text


async def test_everything_below_the_root_counts_and_is_collected(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 10)
    other = KVLayout("another model", "bfloat16", 16, LAYOUT.groups)
    async with make_tier(tmp_path, Slots(other, 16), now=lambda: time.time_ns() - 2 * AT_ONCE_NS) as foreign:
        await store_all(foreign, slots, some_keys(other, 10, "foreign"))
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
    for key in keys[:3]:
        path = file_of(tmp_path, key)
        path.rename(path.with_name(path.name + ".bad"))
    left = file_of(tmp_path, keys[5])
    leftover = left.with_name(f"{left.name}.{'0' * 16}.tmp")
    leftover.write_bytes(bytes(BLOCK))
    (tmp_path / directory_name(other) / f"config.json.{'1' * 16}.tmp").touch()
    strange = left.with_name("a strange file")
    strange.write_bytes(bytes(BLOCK))
    os.utime(strange, ns=(1, 1))
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:
        await until(lambda: bool(tier.stats()["counted"]))
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path) == 21 * BLOCK
        assert not any(find(tmp_path, "*.tmp"))
        assert tier.stats()["leftovers_removed"] == 2
    async with make_tier(tmp_path, slots, 14 * BLOCK) as tier:
        await until(lambda: bytes_below(tmp_path) == 14 * BLOCK)
        assert not any(find(tmp_path, "*.bad"))
        assert strange.exists()
        assert tier.stats()["quarantined_removed"] == 3
        await store_all(tier, slots, some_keys(LAYOUT, 13, "more"))
        assert not any(find(tmp_path / directory_name(other), "*.bin"))


async def test_files_of_the_living_are_left_alone(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 4)
    other = KVLayout("another model", "bfloat16", 16, LAYOUT.groups)
    async with make_tier(tmp_path, Slots(other, 4)) as foreign:
        await foreign.store(Slots(other, 4).store_job(keys))
        owner = os.listdir(tmp_path / directory_name(other) / "owners")[0]
        path = file_of(tmp_path, keys[0], other)
        written = path.with_name(f"{path.name}.{owner}.tmp")
        written.touch()
        async with make_tier(tmp_path, slots, 20 * BLOCK) as tier:
            await store_all(tier, slots, some_keys(LAYOUT, 60))
            assert written.exists()
            assert not any(find(tmp_path / directory_name(other), "*.bin"))


async def test_an_old_root_is_counted_before_anything_is_added(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 40)
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
    (tmp_path / "usage").unlink()
    async with make_tier(tmp_path, slots, 30 * BLOCK) as tier:
        assert (await tier.load(slots.load_job(keys[:4]))).success
        await store_all(tier, slots, some_keys(LAYOUT, 1, "more"))
        assert bytes_below(tmp_path) <= 40 * BLOCK
        await until(lambda: tier.stats()["used_bytes"] == bytes_below(tmp_path) <= 30 * BLOCK)


async def test_blocks_that_were_deleted_from_outside_are_noticed(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 40)
    async with make_tier(tmp_path, slots, 44 * BLOCK) as tier:
        await store_all(tier, slots, keys)
        for key in keys[:20]:
            file_of(tmp_path, key).unlink()
        await store_all(tier, slots, some_keys(LAYOUT, 16, "more"))
    async with make_tier(tmp_path, slots, 44 * BLOCK) as tier:
        await until(lambda: bool(tier.stats()["counted"]))
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path)


async def test_a_bad_block_still_counts(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 4), some_keys(LAYOUT, 4)
    async with make_tier(tmp_path, slots, 20 * BLOCK) as tier:
        for _ in range(2):  # the second bad file takes the place of the first
            await store_all(tier, slots, keys[:1])
            path = file_of(tmp_path, keys[0])
            path.write_bytes(bytes(BLOCK))
            assert statuses(await tier.load(slots.load_job(keys[:1]))) == [Status.CORRUPT]
        await until(lambda: bool(tier.stats()["counted"]))
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path) == BLOCK


async def test_a_block_that_two_stored_counts_once(tmp_path: Path) -> None:
    slots, theirs, keys = Slots(LAYOUT, 8), Slots(LAYOUT, 8), some_keys(LAYOUT, 8)
    async with make_tier(tmp_path, slots, 64 * BLOCK) as tier, make_tier(tmp_path, theirs, 64 * BLOCK) as neighbour:
        await asyncio.gather(tier.store(slots.store_job(keys)), neighbour.store(theirs.store_job(keys)))
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path) == 8 * BLOCK
        assert not any(find(tmp_path, "*.tmp"))


async def test_loads_that_race_evictions_miss_or_have_the_right_bytes(tmp_path: Path) -> None:
    slots, keys, chance = Slots(LAYOUT, 32), some_keys(LAYOUT, 60), random.Random(1)
    seen: set[Status] = set()
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:

        async def loading(first: int) -> None:
            for _ in range(60):
                wanted = chance.sample(keys, 8)
                result = await tier.load(slots.load_job(wanted, first))
                for slot, (key, status) in enumerate(zip(wanted, statuses(result), strict=True), first):
                    seen.add(status)
                    assert status in (Status.DONE, Status.MISSING)
                    assert status is Status.MISSING or slots.hold(slot, key)

        async def storing(first: int) -> None:
            for _ in range(60):
                wanted = chance.sample(keys, 8)
                result = await tier.store(slots.store_job(wanted, first))
                assert set(statuses(result)) <= {Status.DONE, Status.SHED}

        await asyncio.gather(loading(0), loading(8), storing(16), storing(24))
        assert bytes_below(tmp_path) <= 40 * BLOCK
    assert seen == {Status.DONE, Status.MISSING}


async def test_the_account_is_made_anew_where_it_was_removed(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:
        await store_all(tier, slots, keys)
        (tmp_path / "usage").unlink()
        while not (tmp_path / "usage").exists():
            await tier.lookup(keys)
            await asyncio.sleep(0.01)
        await store_all(tier, slots, some_keys(LAYOUT, 16, "more"))
        await until(lambda: tier.stats()["used_bytes"] == bytes_below(tmp_path) == 32 * BLOCK)


async def test_what_is_under_way_ends_in_the_account_where_it_began(tmp_path: Path) -> None:
    slots, keys, disk = Slots(LAYOUT, 16), some_keys(LAYOUT, 8), FaultyDisk()
    async with make_tier(tmp_path, slots, 40 * BLOCK, make_files=disk.make_files) as tier:
        for number in range(4):  # so that files are recycled
            await store_all(tier, slots, some_keys(LAYOUT, 16, number))
        writes = disk.gates["write"].shut()
        storing = asyncio.create_task(tier.store(slots.store_job(keys)))
        await writes.reached()
        (tmp_path / "usage").unlink()
        await until(lambda: not tier._residence.is_open)
        looking = asyncio.create_task(tier.lookup(keys))
        await asyncio.sleep(0)
        assert not (tmp_path / "usage").exists()
        writes.open()
        assert Status.FAILED not in statuses(await storing)
        await looking
        assert (tmp_path / "usage").exists()
        await until(lambda: bool(tier.stats()["counted"]))
        await until(lambda: tier.stats()["used_bytes"] == bytes_below(tmp_path))
        assert not any(find(tmp_path, "*.tmp"))


async def test_what_a_neighbour_evicts_leaves_the_index(tmp_path: Path) -> None:
    slots, theirs, keys = Slots(LAYOUT, 16), Slots(LAYOUT, 16), some_keys(LAYOUT, 100)
    async with make_tier(tmp_path, slots, 40 * BLOCK) as keeper:
        await until(lambda: bool(keeper.stats()["counted"]))
        async with make_tier(tmp_path, theirs, 40 * BLOCK) as tier:
            await store_all(tier, theirs, keys)
            here = {key for key in keys if file_of(tmp_path, key).exists()}
            assert len(here) <= 40
            await until(lambda: {key for key in keys if tier.hint(key)} == here)
            assert tier.stats()["bytes"] == len(here) * BLOCK
            removed = [key for event in tier.take_events() if event.removed for key in event.keys]
            assert sorted(removed) == sorted(set(keys) - here)


async def test_what_gc_removes_leaves_the_index_of_a_tier_without_bounds(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)

    def collect() -> None:
        collection = Collection(str(tmp_path), now=time.time(), quota=4 * BLOCK)
        collection.plan()
        usage = Usage(str(tmp_path))
        collection.carry_out(usage)
        usage.leave()

    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
        await asyncio.get_running_loop().run_in_executor(None, collect)
        await until(lambda: sum(map(tier.hint, keys)) == 4)
        removed = [key for event in tier.take_events() if event.removed for key in event.keys]
        assert sorted(removed) == sorted(key for key in keys if not file_of(tmp_path, key).exists())


async def test_where_the_journal_may_lack_something_the_directory_is_looked_through(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    (tmp_path / "departures").write_bytes(b"\n" * 100)
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
        await tier.scanned()
        for key in keys[:5]:
            file_of(tmp_path, key).unlink()  # without a word
        assert all(map(tier.hint, keys))
        os.truncate(tmp_path / "departures", 0)
        await until(lambda: [key for key in keys if tier.hint(key)] == keys[5:])


async def test_a_store_sees_that_a_block_is_gone(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
        for key in keys[:5]:
            file_of(tmp_path, key).unlink()
        assert (await tier.store(slots.store_job(keys))).success
        assert all(file_of(tmp_path, key).exists() for key in keys)
        assert tier.stats()["store_done"] == 21


async def test_what_cannot_be_looked_at_is_not_taken_for_gone(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    directory, aside = tmp_path / directory_name(LAYOUT), tmp_path / "aside"
    async with make_tier(tmp_path, slots) as tier:
        await store_all(tier, slots, keys)
        await tier.scanned()
        directory.rename(aside)
        directory.write_text("in the way")
        await tier.store(slots.store_job(keys))
        await tier._residence._scanner.look_through()
        assert set(await tier.lookup(keys)) == {LookupResult.HIT}, "or a miss would be believed when they are back"
        assert set(statuses(await tier.load(slots.load_job(keys)))) == {Status.FAILED}
        directory.unlink()
        aside.rename(directory)
        assert set(await tier.lookup(keys)) == {LookupResult.HIT}
        assert (await tier.load(slots.load_job(keys))).success
        assert slots.have(keys)


async def test_a_job_is_cut_where_the_room_ends(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 16), some_keys(LAYOUT, 16)
    async with make_tier(tmp_path, slots, 10 * BLOCK) as tier:
        result = statuses(await tier.store(slots.store_job(keys)))
        assert result.count(Status.DONE) <= 10 + tier.stats()["evicted_files"]
        assert set(result) == {Status.DONE, Status.SHED}
        assert tier.stats()["store_shed"] == tier.stats()["shed_by_quota"] == result.count(Status.SHED)


def count_all(root: Path) -> int:
    """The account after everybody has gone, and after a count of everything."""
    usage = Usage(str(root))
    census = Census(str(root), usage)
    for bucket in range(256):
        assert census.count(bucket)[1]
    usage.leave()
    return usage.used


async def test_a_count_of_everything_agrees(tmp_path: Path) -> None:
    slots = Slots(LAYOUT, 16)
    async with make_tier(tmp_path, slots, 40 * BLOCK) as tier:
        await store_all(tier, slots, some_keys(LAYOUT, 100))
        before = tier.stats()["used_bytes"]
    assert before == await asyncio.get_running_loop().run_in_executor(None, count_all, tmp_path)


async def test_a_cancelled_store_gives_its_room_back(tmp_path: Path) -> None:
    slots, keys = Slots(LAYOUT, 64), some_keys(LAYOUT, 64)
    async with make_tier(tmp_path, slots, 200 * BLOCK) as tier:
        storing = asyncio.create_task(tier.store(TransferJob(keys, range(64))))
        await asyncio.sleep(0)
        storing.cancel()
        await asyncio.wait([storing])
        await until(lambda: not tier.stats()["reserved_bytes"])
        assert tier.stats()["used_bytes"] == bytes_below(tmp_path)
