"""Telling the tiers what is of use, although nobody asks them for it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.complaints import Complaints

logger = logging.getLogger(__name__)

MAX_WAITING = 256
"""Requests whose keys wait to be passed on; of more, the oldest are forgotten: what is of use is touched again."""


class Touches:
    """Passes on to the tiers which blocks were touched, in a task of its own, so that no request waits for it.

    Blocks that are served from host memory again and again are never loaded from the tiers behind. A tier that evicts
    would take them for forgotten, and they would be gone when host memory loses them.

    Args:
        tiers: the tiers; those that do not care are left alone.
        clock: seconds.
    """

    def __init__(self, tiers: Sequence[SecondaryTierManager], clock: Callable[[], float] = time.monotonic) -> None:
        self._tiers = [tier for tier in tiers if type(tier).touch is not SecondaryTierManager.touch]
        self._waiting: deque[Sequence[OffloadKey]] = deque(maxlen=MAX_WAITING)
        self._task: asyncio.Task[None] | None = None
        self._closed = False
        self._complaints = Complaints(logger, clock)

    @property
    def wanted(self) -> bool:
        """Whether a tier cares."""
        return bool(self._tiers) and not self._closed

    def add(self, keys: Sequence[OffloadKey]) -> None:
        """A request has used these blocks, in this order; on the loop's thread."""
        if self.wanted:
            self._waiting.append(keys)
            if self._task is None:
                self._task = asyncio.create_task(self._pass_on(), name="touches")

    def stop(self) -> None:
        """Pass on nothing more; on the loop's thread."""
        self._closed = True
        self._waiting.clear()
        if self._task is not None:
            self._task.cancel()

    async def aclose(self) -> None:
        """As :meth:`stop`, and return when no tier is being told. Cancellation: leaves at once."""
        self.stop()
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _pass_on(self) -> None:
        try:
            while self._waiting:
                keys = self._waiting.popleft()
                for tier in self._tiers:
                    try:
                        await tier.touch(keys)
                    except Exception as error:  # whatever a tier raises, it only forgets sooner than it might
                        self._complaints.add(tier.tier_type, f"tier {tier.tier_type}: touch: {error!r}")
        finally:
            self._task = None
