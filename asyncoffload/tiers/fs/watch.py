"""Nobody waits for a file system that does not answer: calls that hang are abandoned, and the tier pauses."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.errors import TransferTimeout
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.breaker import Breaker
from asyncoffload.tiers.fs.jobs import RunningJobs
from asyncoffload.tiers.fs.syncing import SyncGroups
from asyncoffload.types import KeyOutcome, Status

T = TypeVar("T")

logger = logging.getLogger("asyncoffload.tiers.fs")

LOOKS = 4
"""How often within the time that a call may take it is looked whether one has taken it."""

PROBE_SECONDS = 1.0
"""Between two probes of a file system that did not answer."""


class Watch:
    """Looks after the calls of a tier that block, as long as there are any.

    A thread in a call on a dead disk or file server cannot be taken back. But its waiters can be told, another thread
    can do the work of the next ones, and no further calls need to be made until the file system answers again.

    Args:
        tier: the tier's name.
        timeout: seconds that a single call may take; None: as long as it likes.
        jobs: the tier's jobs.
        probe: makes a few calls of the sorts that the tier makes; blocks.
        clock: seconds.
        syncs: makes stored blocks durable; None where nobody does.

    Attributes:
        breaker: whether the tier pauses.
        hung: how many calls did not come back in time, so far.
    """

    def __init__(
        self,
        tier: str,
        timeout: float | None,
        jobs: RunningJobs,
        probe: Callable[[], object],
        clock: Callable[[], float],
        syncs: SyncGroups | None = None,
    ) -> None:
        self.breaker = Breaker()
        self.hung = 0
        self._tier = tier
        self._timeout = timeout
        self._jobs = jobs
        self._probe = probe
        self._clock = clock
        self._syncs = syncs
        self._threads = IOThreads(1, name=f"asyncoffload-{tier}-probe")
        self._timer: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._others_lack_threads: list[Callable[[], bool]] = []
        self._stopped = False
        self._answers = asyncio.Event()
        self._answers.set()

    @property
    def is_paused(self) -> bool:
        """Whether the file system is left alone."""
        return self.breaker.is_open

    def stays_paused_while(self, lacks_threads: Callable[[], bool]) -> None:
        """Others make calls, too: whether more of those hang than there are threads to replace."""
        self._others_lack_threads.append(lacks_threads)

    def refusal(self, key: OffloadKey) -> KeyOutcome:
        """What becomes of a block that is to be loaded meanwhile."""
        return self._timed_out("answer", key)

    def _timed_out(self, what: str, *keys: OffloadKey) -> KeyOutcome:
        text = f"the file system did not {what} within {self._timeout:g} seconds"
        return KeyOutcome(Status.TIMED_OUT, TransferTimeout(text, tier=self._tier, failed_keys=keys))

    def look_after(self) -> None:
        """A job has begun."""
        if self._timeout is not None and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_at(loop.time() + self._timeout / LOOKS, self._look)

    def call_hung(self, what: str) -> None:
        """A call did not come back in time: pause, and drop what waits for a thread."""
        self.hung += 1
        if not self._stopped and self.breaker.trip():
            logger.warning("tier %s pauses: %s; it answers misses until the file system answers", self._tier, what)
            self._answers.clear()
            self._jobs.break_off(self.refusal)
            self._probing = asyncio.create_task(self._probe_until_it_answers(), name=f"{self._tier}: probes")

    async def end_of(self, work: asyncio.Future[T], what: str, steps: Callable[[], object]) -> T:
        """Wait for work that may take long, and say so if a call in it hangs: nobody else waits for it.

        Args:
            work: many calls, in a thread.
            what: what they are for.
            steps: something else after each call.

        Cancellation: leaves the work to itself.
        """
        hangs = False
        while not work.done():
            before, asked = steps(), self._clock()
            await asyncio.wait([work], timeout=self._timeout)
            if self._timeout is None or hangs or work.done() or steps() != before:
                continue
            # Whatever kept the loop from coming back may have kept the thread from getting on.
            if self._clock() - asked <= 2 * self._timeout:
                hangs = True
                self.call_hung(f"{what} has not got on for {self._timeout:g} seconds")
        return work.result()

    async def answers(self) -> None:
        """Wait until the file system answers. Cancellation: leaves at once."""
        await self._answers.wait()

    def stop(self) -> None:
        """Look after nothing any more."""
        self._stopped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._probing is not None:
            self._probing.cancel()
        self._threads.shutdown(wait=False)

    def _look(self) -> None:
        assert self._timeout is not None
        assert self._timer is not None
        late, self._timer = asyncio.get_running_loop().time() - self._timer.when(), None
        # Whatever kept the loop from looking may have kept the threads from ending: they get a while longer.
        if late < self._timeout / LOOKS:
            self._give_up_what_hangs(self._timeout)
        if self._jobs:
            self.look_after()

    def _give_up_what_hangs(self, timeout: float) -> None:
        for key in self._jobs.abandon_hanging(timeout, self.refusal):
            self.call_hung(f"block {key.hex()} has not been moved within {timeout:g} seconds")
        if self._syncs is not None and self._syncs.give_up(timeout, self._timed_out("sync")):
            self.call_hung(f"stored blocks have not been synced within {timeout:g} seconds")

    def _lacks_threads(self) -> bool:
        """Whether what is asked now would wait for a thread that hangs, and nobody would be told."""
        assert self._timeout is not None
        return self._jobs.lacks_threads(self._timeout) or any(lacks() for lacks in self._others_lack_threads)

    async def _probe_until_it_answers(self) -> None:
        assert self._timeout is not None
        was_told = False
        while self.breaker.is_open:
            await asyncio.sleep(min(PROBE_SECONDS, self._timeout))
            began = self._clock()
            with suppress(OSError):  # an error is an answer
                await asyncio.get_running_loop().run_in_executor(self._threads, self._probe)
            in_time, lacking = self._clock() - began <= self._timeout, self._lacks_threads()
            self.breaker.probed(in_time and not lacking)
            if in_time and lacking and not was_told:
                was_told = True
                logger.warning(
                    "tier %s stays paused: its file system answers, but of the earlier calls more hang than there are "
                    "threads to replace theirs; it goes on when some return, or after a restart",
                    self._tier,
                )
        logger.warning("tier %s goes on: its file system answers", self._tier)
        self._answers.set()
