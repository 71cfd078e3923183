"""The power fails at any moment: what was promised is there, and nothing that is there is wrong."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing import PowerLoss, Slots, small_layout, some_keys
from asyncoffload.tiers.fs import syncing
from asyncoffload.tiers.fs.account_file import BOOT, HEAD, RECORD
from asyncoffload.tiers.fs.blockfile import BlockFiles
from asyncoffload.tiers.fs.format import PAGE, BlockFormat, file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.syncing import Durability
from asyncoffload.tiers.fs.usage import ACCOUNT
from asyncoffload.types import KVGroup, KVLayout, Status

ONE_SIZE = KVLayout("power loss", "bfloat16", 16, (KVGroup((8192,)),))
QUOTA = 80 * file_bytes(8192)  # so large that a part of it is kept free, and stores recycle


class History:
    """What was done to a root, and what was promised about it.

    Args:
        power: remembers what was done.
        durability: of the tiers.
        quota: of the root, whose blocks are of one size then.
    """

    def __init__(self, power: PowerLoss, durability: Durability, quota: int | None) -> None:
        self.power = power
        self.layout = small_layout() if quota is None else ONE_SIZE
        self.quota = quota
        self.keys: list[OffloadKey] = []
        self.accounts: list[bytes] = []
        self._durability = durability
        self._done: list[tuple[OffloadKey, int]] = []

    def tier(self, slots: Slots) -> FileSystemTierManager:
        """A tier on the root, whose calls are remembered."""
        return self.tier_on(self.power.root, slots, quota=self.quota, make_files=self.power.make_files)

    def tier_on(self, root: str | os.PathLike[str], slots: Slots, **options: Any) -> FileSystemTierManager:
        return FileSystemTierManager(self.layout, slots.view, "fs", root, 2, 2, durability=self._durability, **options)

    async def store(self, tier: FileSystemTierManager, slots: Slots, keys: Sequence[OffloadKey]) -> None:
        result = await tier.store(slots.store_job(keys))
        moment = self.power.now
        assert {outcome.status for outcome in result.outcomes} <= {Status.DONE, Status.SHED}, result
        self.keys += keys
        self.accounts.append((Path(self.power.root) / ACCOUNT).read_bytes()[: 8 * (HEAD + 2 * RECORD)])
        self._done += [(key, moment) for key in result.successful_keys]

    def promised(self, moment: int) -> set[OffloadKey]:
        """The blocks that were stored by then, and that nobody had begun to remove."""
        directory = os.path.join(self.power.root, directory_name(self.layout))
        return {
            key
            for key, done in self._done
            if done <= moment and self.power.had_a_file(block_path(directory, key), done, moment)
        }


async def two_store(history: History, chance: random.Random) -> None:
    """Two tiers store many of the same blocks, and others, in jobs of all sizes."""
    shared = some_keys(history.layout, 40, chance.random())

    async def one(slots: Slots, keys: Sequence[OffloadKey]) -> None:
        async with history.tier(slots) as tier:
            for _ in range(5):
                await history.store(tier, slots, chance.sample(keys, chance.choice([1, 5, 30])))

    keys = [[*shared, *some_keys(history.layout, 20, chance.random())] for _ in range(2)]
    await asyncio.gather(*(one(Slots(history.layout, 30), mine) for mine in keys))


async def one_stores_too_much(history: History, chance: random.Random) -> None:
    """A tier stores more than its root may hold, and loads now and then."""
    slots = Slots(history.layout, 40)
    async with history.tier(slots) as tier:
        for _ in range(8):
            await history.store(tier, slots, some_keys(history.layout, chance.choice([4, 20, 40]), chance.random()))
            await tier.load(slots.load_job(chance.sample(history.keys, 4)))


@dataclass
class Found:
    """What was there after losses of power.

    Attributes:
        promised: blocks that should have been there.
        lost: those among them that were not.
        statuses: of all blocks.
    """

    promised: int = 0
    lost: int = 0
    statuses: set[Status] = field(default_factory=set)


async def load_all(history: History, root: Path, moment: int, found: Found) -> None:
    """A tier comes up when the power is back: each block is whole or a miss."""
    slots, keys, must = Slots(history.layout, 64), list(dict.fromkeys(history.keys)), history.promised(moment)
    async with history.tier_on(root, slots) as tier:
        for first in range(0, len(keys), slots.n_slots):
            some = keys[first : first + slots.n_slots]
            result = await tier.load(slots.load_job(some))
            for slot, (key, outcome) in enumerate(zip(some, result.outcomes, strict=True)):
                assert outcome.status in (Status.DONE, Status.MISSING, Status.CORRUPT), f"at {moment}: {outcome}"
                assert not outcome.ok or slots.hold(slot, key), f"wrong bytes after a loss of power at {moment}"
                found.statuses.add(outcome.status)
                found.lost += key in must and not outcome.ok
    found.promised += len(must)


async def go_on(history: History, root: Path) -> None:
    """The root is in order again: nothing lies about, all is counted, and there is room for more."""
    slots, new = Slots(history.layout, 4), some_keys(history.layout, 4, "new")
    async with history.tier_on(root, slots, quota=history.quota) as tier:
        await tier.scanned()
        if history.quota is not None:
            # What came back may be too much.
            await until(lambda: bool(tier.stats()["counted"]) and tier.stats()["used_bytes"] <= QUOTA)
            await until(lambda: tier.stats()["used_bytes"] == bytes_below(root))
        assert not leftovers(root)
        while not (await tier.store(slots.store_job(new))).success:  # noqa: ASYNC110 (the root is full)
            await asyncio.sleep(0.001)
        (await tier.load(slots.load_job(new))).raise_for_failures()
        assert slots.have(new)


async def until(condition: Callable[[], bool]) -> None:
    """The housekeeping comes by itself; nothing else tells when."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def leftovers(root: Path) -> list[Path]:
    return list(root.rglob("*_g*/*.tmp"))


def bytes_below(root: Path) -> int:
    nbytes = 0
    for path in root.rglob("*_g*/*"):
        with suppress(FileNotFoundError):  # evicted meanwhile
            nbytes += path.stat().st_size
    return nbytes


def leave_account(root: Path, accounts: Sequence[bytes], chance: random.Random) -> None:
    """The account as it was at some time, with pages missing; or none. The machine has started anew since."""
    (root / ACCOUNT).unlink()
    if chance.random() < 0.3:
        return
    account = bytearray(chance.choice(accounts))
    account[8 * BOOT : 8 * BOOT + 8] = (1).to_bytes(8, "little")
    for page in range(0, len(account), PAGE):
        if chance.random() < 0.2:
            account[page : page + PAGE] = bytes(PAGE)
    (root / ACCOUNT).write_bytes(account)


async def lose_power(
    place: Path,
    seed: int,
    durability: Durability,
    moments: int = 4,
    *,
    power: type[PowerLoss] = PowerLoss,
    lies: Collection[str] = (),
    whole: bool | None = None,
) -> Found:
    """One history, and losses of power at several moments of it. Odd seeds are about a root that is full."""
    chance, found = random.Random(seed), Found()
    (place / "root").mkdir(parents=True)
    history = History(power(place / "root", lies=lies, whole=whole), durability, QUOTA if seed % 2 else None)
    await (one_stores_too_much if seed % 2 else two_store)(history, chance)
    end = history.power.now
    for number in range(moments):
        root = place / f"after {number}"
        moment = end if not number else chance.randint(0, end)
        history.power.show(root, moment, chance.randrange(1 << 30))
        await load_all(history, root, moment, found)
        leave_account(root, history.accounts, chance)
        await go_on(history, root)
        shutil.rmtree(root)
    return found


@pytest.mark.parametrize("whole", [False, True], ids=["file by file", "all at once"])
@pytest.mark.parametrize("seed", range(2))
async def test_with_fsync_what_was_done_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, whole: bool
) -> None:
    monkeypatch.setattr(syncing, "FEWEST", 1)  # how many blocks are synced together is chance
    found = await lose_power(tmp_path, seed, "fsync", whole=whole)
    assert found.promised
    assert not found.lost
    if not seed % 2:
        assert Status.CORRUPT not in found.statuses, "a name leads to bytes only when these are durable"


@pytest.mark.parametrize("seed", range(2))
async def test_without_it_blocks_may_be_lost_and_none_is_wrong(tmp_path: Path, seed: int) -> None:
    together = Found()
    for number in range(60):  # what is lost is chance
        found = await lose_power(tmp_path / str(number), seed + 2 * number, "none")
        together.lost += found.lost
        together.statuses |= found.statuses
        if together.lost and Status.CORRUPT in together.statuses:
            return
    pytest.fail("nothing was lost, or nothing torn: the test shows nothing")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.loops("asyncio")
async def test_many_losses_of_power(tmp_path: Path) -> None:
    together = Found()
    for seed in range(int(os.environ.get("ASYNCOFFLOAD_POWER_LOSSES", "240")) // 12):
        found = await lose_power(tmp_path / str(seed), seed, "fsync", 12, whole=bool(seed & 2))
        assert not found.lost, f"seed {seed}"
        assert seed % 2 or Status.CORRUPT not in found.statuses, f"seed {seed}"
        together.statuses |= found.statuses
        together.promised += found.promised
    assert together.promised
    assert Status.MISSING in together.statuses, "nothing was lost that had not been promised: the test shows nothing"


class NamesFirst(PowerLoss):
    """As if the tier gave names to blocks before their bytes are durable; both are, when the store is DONE."""

    def make_files(self, block_format: BlockFormat, owner: str, direct: bool) -> BlockFiles:
        waiting: dict[str, int] = {}

        def sync_later(fd: int) -> None:
            waiting[os.readlink(f"/proc/self/fd/{fd}")] = os.dup(fd)

        def rename(old: str, new: str, flags: int) -> None:
            remembered.rename(old, new, flags)
            fd = waiting.pop(old)
            self._open[fd] = self._current(new) or pytest.fail("it has just been put there")
            remembered.sync_file(fd)
            os.close(fd)

        remembered = self.calls
        calls = replace(remembered, sync_file=sync_later, rename=rename)
        return BlockFiles(block_format, owner, direct=direct, calls=calls)


@pytest.mark.loops("asyncio")
@pytest.mark.parametrize(
    ("forgotten", "whole"),
    [(["sync_file"], False), (["sync_directory"], False), (["sync_whole"], True)],
    ids=["bytes", "names", "all at once"],
)
async def test_a_sync_that_was_forgotten_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forgotten: list[str], whole: bool
) -> None:
    monkeypatch.setattr(syncing, "FEWEST", 1)  # how many blocks are synced together is chance
    for seed in range(1, 120, 2):
        if (await lose_power(tmp_path / str(seed), seed, "fsync", 1, lies=forgotten, whole=whole)).lost:
            return
    pytest.fail("nothing was lost")


@pytest.mark.loops("asyncio")
async def test_a_name_that_came_too_early_is_noticed(tmp_path: Path) -> None:
    for seed in range(0, 120, 2):
        found = await lose_power(tmp_path / str(seed), seed, "fsync", power=NamesFirst, whole=False)
        if Status.CORRUPT in found.statuses:
            return
    pytest.fail("no name led to bytes that were lost")
