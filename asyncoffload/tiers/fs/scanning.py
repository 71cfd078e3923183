"""Entering the blocks of earlier processes into the index, beside a tier that serves."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from asyncoffload.errors import TierUnavailable
from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.fs.clerk import Clerk
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.tiers.fs.watch import Watch

T = TypeVar("T")

PORTION = 256
"""Blocks that are entered in one stretch of the loop."""


async def look_through(
    space: BlockSpace, index: BlockIndex, clerk: Clerk, watch: Watch, complaints: Complaints
) -> None:
    """Look through the directory once; half of the time belongs to others.

    Cancellation: leaves at once.
    """
    try:
        for parent in await _persistently(space.fan_out, clerk, watch):
            began = time.monotonic()
            with index.look() as left:
                found = await _persistently(partial(space.look_through, parent), clerk, watch)
                pause = time.monotonic() - began
                for first in range(0, len(found), PORTION):
                    index.add(key for key in found[first : first + PORTION] if key not in left)
                    await asyncio.sleep(0)
            await asyncio.sleep(pause)
        await _persistently(space.finish_looking, clerk, watch)
    except OSError as error:
        complaints.add("scan", f"looking through {space.directory} ended early: {error}")


async def _persistently(call: Callable[[], T], clerk: Clerk, watch: Watch) -> T:
    """A call that is made again when the file system, having hung, answers."""
    while True:
        await watch.answers()
        try:
            return await clerk.run(call)
        except TierUnavailable:
            continue
