"""Thousands of damaged, swapped and mixed-up files: every load gives the right bytes or a miss."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey, block_hash_of, group_of, make_key
from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.tiers.fs import blockfile
from asyncoffload.tiers.fs.format import BlockFormat
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.tiers.fs.space import DirectIO
from asyncoffload.types import JobResult, KVGroup, KVLayout, Status
from tests.tiers.fs.mutations import MUTATIONS, Mutation

FLIPS = int(os.environ.get("ASYNCOFFLOAD_FLIPS", "10000"))
"""How many files are mutated in all; 100,000 take some minutes."""

LAYOUT = KVLayout(
    "flips",
    "bfloat16",
    16,
    (KVGroup((4096, 4096)), KVGroup((1000, 501)), KVGroup((12_288 + 100,)), KVGroup((65_536,)), KVGroup((4096, 4096))),
)
"""Blocks of whole pages and others, and two groups of one size."""

NEIGHBOURS = (replace(LAYOUT, rank=1), replace(LAYOUT, revision="another"))
N_KEYS = 100
WRONG = "wrong bytes"


class Files:
    """A root with the same keys in the directories of three layouts, each with bytes of its own.

    Args:
        root: where.

    Attributes:
        keys: those in each directory; the first of each group has its block hash from the first group.
        mutations: how many files were changed, by the kind of change.
        outcomes: how many loads of such files ended how.
        wrong: how many of them delivered wrong bytes, by the kind of change.
    """

    def __init__(self, root: Path) -> None:
        first = some_keys(LAYOUT, N_KEYS - len(LAYOUT.groups))
        twins = [make_key(block_hash_of(first[0]), group) for group in range(1, len(LAYOUT.groups))]
        self.root = root
        self.keys = [*first, *twins]
        self.slots = Slots(LAYOUT, len(self.keys))
        self.mutations: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self._whole: dict[Path, bytes] = {}

    def tier(self, direct_io: DirectIO, layout: KVLayout = LAYOUT) -> FileSystemTierManager:
        return FileSystemTierManager(layout, self.slots.view, "fs", self.root, 2, 2, direct_io=direct_io)

    def path(self, key: OffloadKey, layout: KVLayout = LAYOUT) -> Path:
        return Path(block_path(str(self.root / directory_name(layout)), key))

    async def fill(self, direct_io: DirectIO) -> None:
        """Store every key under every layout."""
        for layout in (LAYOUT, *NEIGHBOURS):
            async with self.tier(direct_io, layout) as tier:
                job = self.slots.store_job(self.keys)
                if layout is not LAYOUT:
                    self._invert()
                (await tier.store(job)).raise_for_failures()
            for key in self.keys:
                path = self.path(key, layout)
                self._whole[path] = path.read_bytes()

    async def round(self, tier: FileSystemTierManager, dice: random.Random, count: int) -> None:
        """Change some files, load all of them, compare, and mend what was changed."""
        victims = dice.sample(self.keys, min(count, len(self.keys) // 2))
        kinds = {key: dice.choice(MUTATIONS) for key in victims}
        changed = await asyncio.to_thread(self._change, dice, kinds)
        self._compare(await tier.load(self.slots.load_job(self.keys)), kinds, changed)
        await asyncio.to_thread(self._mend, changed)

    async def neighbours_are_whole(self, direct_io: DirectIO) -> None:
        """What lies in the other directories is as it was."""
        for layout in NEIGHBOURS:
            async with self.tier(direct_io, layout) as tier:
                (await tier.load(self.slots.load_job(self.keys))).raise_for_failures()
                self._invert()
                assert self.slots.have(self.keys)

    def _change(self, dice: random.Random, kinds: dict[OffloadKey, Mutation]) -> set[OffloadKey]:
        """The keys whose files are not what they were, as far as a block is long."""
        changed = set()
        for key, mutate in kinds.items():
            whole = self._whole[self.path(key)]
            worse = mutate(dice, whole, self._others(dice, key))
            if worse != whole:
                self.mutations[mutate.__name__] += 1
                self.path(key).write_bytes(worse)
            if worse[: len(whole)] != whole:
                changed.add(key)
        return changed

    def _others(self, dice: random.Random, key: OffloadKey) -> list[bytes]:
        """Files that might be taken for this one: of the group, of other groups, ranks, layouts, of the same hash."""
        group, block_hash = group_of(key), block_hash_of(key)
        alike = [other for other in self.keys if group_of(other) == group and other != key]
        twins = [other for other in self.keys if block_hash_of(other) == block_hash and other != key]
        paths = [self.path(other) for other in (dice.choice(alike), dice.choice(self.keys), *twins) if other != key]
        paths += [self.path(key, layout) for layout in NEIGHBOURS]
        return [self._whole[path] for path in paths]

    def _compare(self, result: JobResult, kinds: dict[OffloadKey, Mutation], changed: set[OffloadKey]) -> None:
        for slot, (key, outcome) in enumerate(zip(self.keys, result.outcomes, strict=True)):
            right = self.slots.hold(slot, key)
            if key not in changed:
                assert outcome.ok, f"{key.hex()} was left alone, and is {outcome}"
                assert right
                continue
            what = outcome.status.value if right or not outcome.ok else WRONG
            self.outcomes[what] += 1
            if what is WRONG:
                self.wrong[kinds[key].__name__] += 1

    def _mend(self, changed: Iterable[OffloadKey]) -> None:
        """Make every file of the directory what it was."""
        for key in self.keys:
            path = self.path(key)
            with suppress(FileNotFoundError):
                path.with_name(path.name + blockfile.SET_ASIDE).rename(path)
                assert key in changed
            if path.read_bytes() != self._whole[path]:
                path.write_bytes(self._whole[path])

    def _invert(self) -> None:
        """What other layouts keep under a key."""
        flat = np.frombuffer(self.slots.view, np.uint8).reshape(self.slots.n_slots, -1)
        for slot, key in enumerate(self.keys):
            flat[slot, : LAYOUT.group_bytes(group_of(key))] ^= 0xFF


async def mutate(root: Path, direct_io: DirectIO, count: int, seed: int) -> Files:
    files, dice = Files(root), random.Random(seed)
    await asyncio.to_thread(root.mkdir)
    await files.fill(direct_io)
    async with files.tier(direct_io) as tier:
        if direct_io == "auto":
            await tier.start()
            if not tier.stats()["direct_io"]:
                pytest.skip("the file system of the test's directory has no direct I/O")
        while (left := count - files.mutations.total()) > 0:
            await files.round(tier, dice, left)
    await files.neighbours_are_whole(direct_io)
    return files


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("direct_io", ["auto", "off"])
def test_no_wrong_byte_ever(tmp_path: Path, direct_io: DirectIO) -> None:
    files = asyncio.run(mutate(tmp_path / "root", direct_io, FLIPS // 2, seed=len(direct_io)))
    print(f"{files.mutations.total()} files were changed: {dict(files.mutations)}, {dict(files.outcomes)}")
    assert not files.wrong
    assert set(files.outcomes) == {Status.CORRUPT.value}
    assert set(files.mutations) == {mutation.__name__ for mutation in MUTATIONS}


def find_wrong(root: Path) -> Counter[str]:
    return asyncio.run(mutate(root, "off", 1000, seed=1)).wrong


def test_without_checksums_the_same_mutations_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blockfile, "checksum", lambda header, payload: bytes(8))  # noqa: ARG005
    wrong = find_wrong(tmp_path / "root")
    assert {"flip", "flip_many", "overwrite", "torn", "zero_pages", "splice", "duplicate_page"} <= set(wrong)
    assert "replace" not in wrong  # the header tells


def test_without_names_in_the_headers_swaps_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nameless = BlockFormat(bytes(16), 0)
    header = BlockFormat.header
    nobody = make_key(bytes(32))
    monkeypatch.setattr(BlockFormat, "header", lambda _, key, nbytes: header(nameless, nobody, nbytes))  # noqa: ARG005
    assert set(find_wrong(tmp_path / "root")) == {"replace"}
