"""Processes that store and load below one root until they are killed."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from pathlib import Path

from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots, content_of, some_keys
from asyncoffload.tiers.fs.format import file_bytes
from asyncoffload.tiers.fs.manager import FileSystemTierManager
from asyncoffload.types import KVGroup, KVLayout, Status, TransferJob

PAYLOAD = 64 << 10
LAYOUT = KVLayout("sharing", "bfloat16", 16, (KVGroup((PAYLOAD,)),))
BLOCK = file_bytes(PAYLOAD)
BATCH = 8


def batch_of(name: str, number: int) -> list[OffloadKey]:
    """The keys that a process of this name stores with its ``number``-th job."""
    return some_keys(LAYOUT, BATCH, f"{name}/{number}")


def file_of(root: Path, key: OffloadKey) -> Path:
    """Where a block lies."""
    return Path(block_path(str(root / directory_name(LAYOUT)), key))


class SharingProcess:
    """A process with a tier, that gets ready when it is made and begins at :meth:`begin`.

    Args:
        root: shared by all.
        quota: bytes; None for no bound.
        name: decides the keys.
    """

    def __init__(self, root: Path, quota: int | None, name: str) -> None:
        self.name = name
        self.stored: list[OffloadKey] = []
        self._process = subprocess.Popen(
            [sys.executable, __file__, str(root), str(quota or 0), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def begin(self) -> None:
        """Store from now on."""
        assert self._process.stdin is not None
        self._process.stdin.write("begin\n")
        self._process.stdin.flush()

    def wait_for_batches(self, count: int) -> None:
        """Read until so many more batches have been reported."""
        assert self._process.stdout is not None
        for _ in range(count):
            line = self._process.stdout.readline()
            assert line, f"the process died by itself with status {self._process.wait()}"
            self._enter(line)

    def kill(self) -> None:
        """SIGKILL, wait for the end, and read what was reported until then; idempotent."""
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        if self._process.stdout.closed:
            return
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()
        for line in self._process.stdout:
            if line.endswith("\n"):
                self._enter(line)
        self._process.stdout.close()

    def _enter(self, line: str) -> None:
        number, *done = line.split()
        assert number != "wrong", line
        keys = batch_of(self.name, int(number))
        self.stored += [keys[int(index)] for index in done]


async def store_until_killed(root: Path, quota: int | None, name: str) -> None:
    """What such a process does; it prints the number of each batch and which of its blocks were stored."""
    slots, numbers, chance = Slots(LAYOUT, 4 * BATCH), iter(range(sys.maxsize)), random.Random(name)
    mine: list[OffloadKey] = []

    async def storing(first: int) -> None:
        for number in numbers:
            keys = batch_of(name, number)
            result = await tier.store(slots.store_job(keys, first))
            done = [index for index, outcome in enumerate(result.outcomes) if outcome.ok]
            if not {outcome.status for outcome in result.outcomes} <= {Status.DONE, Status.SHED}:
                print("wrong outcomes", result.outcomes, flush=True)
            mine.extend(keys[index] for index in done)
            print(number, *done, flush=True)

    async def loading(first: int) -> None:
        while True:
            wanted = chance.sample(mine, min(len(mine), BATCH))
            result = await tier.load(TransferJob(wanted, range(first, first + len(wanted))))
            slots_and_outcomes = zip(range(first, first + BATCH), result.outcomes, strict=False)
            for key, (slot, outcome) in zip(wanted, slots_and_outcomes, strict=True):
                right = not outcome.ok or slots.read(slot)[:PAYLOAD] == content_of(key, PAYLOAD)
                if outcome.status not in (Status.DONE, Status.MISSING) or not right:
                    print("wrong load", outcome, flush=True)
            await asyncio.sleep(0)

    async with (
        FileSystemTierManager(LAYOUT, slots.view, "fs", root, 2, 2, quota=quota) as tier,
        asyncio.TaskGroup() as group,
    ):
        for index in range(3):
            group.create_task(storing(index * BATCH))
        group.create_task(loading(3 * BATCH))


if __name__ == "__main__":
    sys.stdin.readline()
    asyncio.run(store_until_killed(Path(sys.argv[1]), int(sys.argv[2]) or None, sys.argv[3]))
