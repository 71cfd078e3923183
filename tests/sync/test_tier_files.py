"""The sync facade over real files: every byte comes back, or none does."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from asyncoffload.errors import ConfigError
from asyncoffload.keys import make_key
from asyncoffload.sync.tier import SyncSecondaryTier
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVGroup, KVLayout, LookupResult, Status, TransferJob

PAGE = 4096
N = 16
KEYS = [make_key(bytes([n])) for n in range(2 * N)]
LAYOUT = KVLayout("m", "uint8", 16, (KVGroup((PAGE,)),))


class Files:
    def __init__(self, root: Path) -> None:
        self.memory = bytearray(N * PAGE)
        view = memoryview(self.memory).cast("B", (N, PAGE))
        self.tier = SyncSecondaryTier(FileSystemTierManager(LAYOUT, view, "fs", root, 2, 2, direct_io="off"))

    def settled(self, key: bytes) -> LookupResult:
        while (answer := self.tier.lookup(make_key(key[:-4]))) is LookupResult.RETRY:
            pass
        return answer

    def run(self, verb: str, first: int = 0) -> list[Status]:
        job = TransferJob(KEYS[first : first + N], range(N))
        getattr(self.tier, f"submit_{verb}")(job)
        self.tier.drain_jobs(30)
        (result,) = self.tier.get_finished()
        assert result.job_id == job.job_id
        return [outcome.status for outcome in result.outcomes]


@contextmanager
def files(root: Path) -> Iterator[Files]:
    it = Files(root)
    try:
        yield it
    finally:
        it.tier.shutdown()


def test_every_byte_comes_back_in_this_process_and_the_next(tmp_path: Path) -> None:
    before = random.Random(0).randbytes(N * PAGE)
    with files(tmp_path) as first:
        assert [first.settled(key) for key in KEYS] == [LookupResult.MISS] * 2 * N
        first.memory[:] = before
        assert first.run("store") == [Status.DONE] * N
        assert [first.tier.lookup(key) for key in KEYS[:N]] == [LookupResult.HIT] * N
        first.memory[:] = bytes(N * PAGE)
        assert first.run("load") == [Status.DONE] * N
        assert first.memory == before
        assert first.tier.stats()["blocks"] == N
    with files(tmp_path) as second:
        assert [second.settled(key) for key in KEYS] == [LookupResult.HIT] * N + [LookupResult.MISS] * N
        assert second.run("load") == [Status.DONE] * N
        assert second.memory == before


def test_a_damaged_block_is_a_miss_until_it_is_stored_again(tmp_path: Path) -> None:
    with files(tmp_path) as it:
        it.run("store")
        damaged = next(tmp_path.rglob(f"{KEYS[3][:-4].hex()}.bin"))
        content = bytearray(damaged.read_bytes())
        content[-1] ^= 1
        damaged.write_bytes(content)
        expected = [Status.DONE] * N
        expected[3] = Status.CORRUPT
        assert it.run("load") == expected
        assert it.tier.lookup(KEYS[3]) is LookupResult.MISS
        assert it.tier.lookup(KEYS[4]) is LookupResult.HIT
        assert it.run("store") == [Status.DONE] * N
        assert it.tier.lookup(KEYS[3]) is LookupResult.HIT
        assert it.run("load") == [Status.DONE] * N


def test_what_is_wrong_with_the_directory_is_said_at_start(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with files(tmp_path / "file") as it, pytest.raises(ConfigError):
        it.tier.start(30)
