"""Keeping the index true to what lies in the directory, beside a tier that serves.

Blocks of earlier processes are entered by looking through the directory once. From then on the journal of the root
tells what others remove; where it may not have told everything, the directory is looked through again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from asyncoffload.errors import TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.clerk import Clerk
from asyncoffload.tiers.fs.following import Follower
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.tiers.fs.ledger import Ledger
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.tiers.fs.watch import Watch

T = TypeVar("T")

PORTION = 256
"""Blocks that are entered in one stretch of the loop."""

FOLLOW_SECONDS = 0.25
"""Between two looks at the journal: as long as others take to write into it."""


class Scanner:
    """Makes the index true to the directory.

    Args:
        space: the directory; it is open.
        index: what is known of it.
        ledger: where it is entered what has left.
        clerk: runs the calls.
        watch: knows whether the file system answers.
    """

    def __init__(self, space: BlockSpace, index: BlockIndex, ledger: Ledger, clerk: Clerk, watch: Watch) -> None:
        self._space = space
        self._index = index
        self._ledger = ledger
        self._clerk = clerk
        self._watch = watch

    async def look_through(self) -> None:
        """Look through the directory once; half of the time belongs to others.

        Cancellation: leaves at once.
        """
        space = self._space
        try:
            parents: dict[str, list[str]] = {}
            for parent in await self._persistently(space.fan_out):
                parents.setdefault(parent[:2], []).append(parent)
            for first_byte in range(256):
                known = self._index.known(first_byte)
                some = parents.get(f"{first_byte:02x}", [])
                if some or known:
                    await asyncio.sleep(await self._look_at(some, known))
            await self._persistently(space.finish_looking)
        except OSError as error:
            self._ledger.complaints.add("scan", f"looking through {space.directory} ended early: {error}")

    async def follow(self, follower: Follower, before: Callable[[], None], scan: asyncio.Task[None]) -> None:
        """Strike out what others remove, as the journal tells. Never returns.

        Cancellation: leaves at once.

        Args:
            follower: reads the journal.
            before: enters what this process has removed, of which the journal tells as well.
            scan: the first look through the directory.
        """
        while True:
            try:
                with self._index.look() as look:
                    gone, may_lack = await self._persistently(partial(_gone, follower, self._space))
                    before()
                    self._ledger.missed(look, gone)
                if may_lack:
                    await asyncio.wait([scan])
                    await self.look_through()
            except OSError as error:
                self._ledger.complaints.add("following", f"what others evict is not heard of: {error}")
            await asyncio.sleep(FOLLOW_SECONDS)

    async def _look_at(self, parents: Sequence[str], known: Sequence[OffloadKey]) -> float:
        """Look at some directories, in which some blocks should be; returns the seconds that it took."""
        began = time.monotonic()
        with self._index.look() as look:
            found, gone, troubles = await self._persistently(partial(_found_in, self._space, parents, known))
            pause = time.monotonic() - began
            for first in range(0, len(found), PORTION):
                look.found(found[first : first + PORTION])
                await asyncio.sleep(0)
            self._ledger.missed(look, gone)
        for trouble in troubles:
            self._ledger.complaints.add("scan", f"looking through {self._space.directory} passes over {trouble}")
        return pause

    async def _persistently(self, call: Callable[[], T]) -> T:
        """A call that is made again when the file system, having hung, answers."""
        while True:
            await self._watch.answers()
            try:
                return await self._clerk.run(call)
            except TierUnavailable:
                continue


def _gone(follower: Follower, space: BlockSpace) -> tuple[list[OffloadKey], bool]:
    """The blocks of which the journal says anew that they left, and that are not back."""
    left, may_lack = follower.look()
    return space.which_are_gone(left), may_lack


def _found_in(
    space: BlockSpace, parents: Sequence[str], known: Sequence[OffloadKey]
) -> tuple[list[OffloadKey], list[OffloadKey], list[OSError]]:
    """The blocks in some directories, those that should be there and are not, and why some could not be listed."""
    found: list[OffloadKey] = []
    troubles = []
    for parent in parents:
        try:
            found += space.look_through(parent)
        except OSError as error:
            troubles.append(error)
    here = set(found)
    return found, space.which_are_gone([key for key in known if key not in here]), troubles
