"""A process that stores blocks until it is killed."""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Self, cast

from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import Slots, some_keys
from asyncoffload.testing.tier_hooks import TierHooks
from asyncoffload.types import KVLayout

BATCH = 4
"""Keys of one store in the child."""

_COMMAND = "from asyncoffload.testing.kills import store_until_killed; store_until_killed()"


def keys_of_batch(layout: KVLayout, name: str, batch: int) -> list[OffloadKey]:
    """The keys that the child of this name stores with its ``batch``-th job."""
    return some_keys(layout, BATCH, f"{name}/{batch}")


class StoringChild:
    """Another process with a tier of the same kind and place, that stores one batch of new keys after the other.

    It gets ready when it is made, and begins when it is entered as a context manager; leaving that kills it.

    Args:
        hooks: makes the tier; its class must stand at the top of an importable file.
        place: as for :meth:`TierHooks.make_tier`.
        name: decides the keys.
        jobs: how many jobs it has under way at the same time.
    """

    def __init__(self, hooks: TierHooks, place: Path, name: str, *, jobs: int = 2) -> None:
        self.name = name
        arguments = [inspect.getfile(type(hooks)), type(hooks).__qualname__, str(place), name, str(jobs)]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout
        self.committed: list[int] = []

    def __enter__(self) -> Self:
        self._input.write("begin\n")
        self._input.flush()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()

    def wait_for_batches(self, count: int) -> None:
        """Read until ``count`` more batches have been reported as stored."""
        for _ in range(count):
            line = self._output.readline()
            assert line, f"the storing child died by itself with status {self._process.wait()}"
            self.committed.append(int(line))

    def wait(self, seconds: float) -> None:
        """Let it run a little more."""
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def kill(self) -> None:
        """``kill -9``, wait for the end, and read what it had reported until then; idempotent."""
        if self._output.closed:
            return
        self._process.kill()
        self._process.wait()
        self._input.close()
        self.committed += [int(line) for line in self._output if line.endswith("\n")]
        self._output.close()


def store_until_killed() -> None:
    """The child's main function: stores, and prints the number of each batch whose store has returned."""
    file, qualname, place, name, jobs = sys.argv[1:]
    hooks = _hooks(file, qualname)
    sys.stdin.readline()
    asyncio.run(_store_forever(hooks, Path(place), name, int(jobs)))


async def _store_forever(hooks: TierHooks, place: Path, name: str, jobs: int) -> None:
    slots = Slots(hooks.layout(), BATCH * jobs)
    numbers = iter(range(sys.maxsize))

    async with hooks.make_tier(slots.layout, slots.view, place) as tier, asyncio.TaskGroup() as group:

        async def one_after_the_other(first_slot: int) -> None:
            for number in numbers:
                job = slots.store_job(keys_of_batch(slots.layout, name, number), first_slot)
                (await tier.store(job)).raise_for_failures()
                print(number, flush=True)

        for index in range(jobs):
            group.create_task(one_after_the_other(index * BATCH))


def _hooks(file: str, qualname: str) -> TierHooks:
    spec = importlib.util.spec_from_file_location("laws_of_the_parent", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return cast("TierHooks", getattr(module, qualname)())
