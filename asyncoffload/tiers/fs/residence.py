"""A tier's life in its directory: moving in, looking through what lies there, keeping house, moving out."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError, TierUnavailable
from asyncoffload.tiers.fs.clerk import Clerk
from asyncoffload.tiers.fs.following import Follower
from asyncoffload.tiers.fs.housekeeping import EVICTING_THREADS, Housekeeping
from asyncoffload.tiers.fs.index import BlockIndex
from asyncoffload.tiers.fs.jobs import RunningJobs
from asyncoffload.tiers.fs.ledger import Ledger
from asyncoffload.tiers.fs.opening import open_space
from asyncoffload.tiers.fs.scanning import Scanner
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.tiers.fs.watch import Watch


class Residence:
    """Opens a space when it is first needed, and again when it was lost, and does what goes on there by itself.

    Args:
        tier: the tier's name.
        space: the directory.
        index: the blocks known to be there.
        ledger: where it is entered what became of blocks.
        watch: knows whether the file system answers.
        jobs: moves that are under way.
        timeout: seconds after which a call to the file system counts as hanging; None: never.
        clock: seconds.

    Attributes:
        clerk: runs short calls about names.
        is_open: the space can be used.
    """

    def __init__(
        self,
        tier: str,
        space: BlockSpace,
        index: BlockIndex,
        ledger: Ledger,
        watch: Watch,
        jobs: RunningJobs,
        timeout: float | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clerk = Clerk(tier, timeout, watch.call_hung, clock)
        watch.stays_paused_while(self.clerk.lacks_threads)
        self.is_open = False
        self._tier = tier
        self._space = space
        self._index = index
        self._ledger = ledger
        self._watch = watch
        self._jobs = jobs
        self._timeout = timeout
        self._keeper = IOThreads(EVICTING_THREADS, name=f"asyncoffload-{tier}-housekeeping")
        self._opening: asyncio.Task[None] | None = None
        self._scanner = Scanner(space, index, ledger, self.clerk, watch)
        self._follower: Follower | None = None
        self._scan: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None
        self._housekeeping: Housekeeping | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._leaving = False
        self._moving_out: asyncio.Future[None] | None = None

    @property
    def scanned(self) -> bool:
        """Whether everything that lay there when it was opened is known."""
        return self._scan is not None and self._scan.done()

    @property
    def leftovers_removed(self) -> int:
        """Temporary files of the dead that were removed."""
        found = self._housekeeping.leftovers_removed if self._housekeeping else 0
        return self._space.leftovers_removed + found

    async def open(self) -> None:
        """Have the space open. Cancellation: leaves at once, and the opening goes on.

        Raises:
            ConfigError: the directory cannot be used, or holds blocks of another sort; the message shows both.
            TierUnavailable: the file system is in trouble, or does not answer.
            ClosedError: it was left meanwhile.
        """
        while not self.is_open:
            if self._leaving:
                raise ClosedError(f"tier {self._tier!r} is closed: make a new one")
            if self._opening is None and self._jobs and self._space.is_open:
                await self._until_nobody_moves()
                continue
            if self._opening is None:
                self._opening = asyncio.create_task(self._open(), name=f"{self._tier}: opening")
            opening = self._opening
            await asyncio.wait([opening], timeout=self._timeout)
            if not opening.done():
                what = f"opening {self._space.directory} has taken {self._timeout:g} seconds"
                self._watch.call_hung(what)
                raise TierUnavailable(
                    f"tier {self._tier!r}: {what} and goes on: see whether its file system answers, then start again"
                )
            if self._opening is opening:
                self._opening = None
            opening.result()

    async def _until_nobody_moves(self) -> None:
        """A space that was lost is not left while something is moved that belongs to its owner and its account."""
        await self._jobs.ended(self._timeout)
        if self._watch.is_paused:
            raise TierUnavailable(
                f"tier {self._tier!r}: {self._space.directory} is opened anew when its file system answers"
            )

    async def until_scanned(self) -> None:
        """Return when everything that lay there is known. Cancellation: leaves at once."""
        if self._scan is not None:
            await asyncio.wait([self._scan])

    def lost(self) -> None:
        """The directory is gone: it is made anew when it is needed."""
        self.is_open = False

    def room_is_wanted(self) -> None:
        """A store has ended that may have found no room."""
        if self._housekeeping is not None and self._space.allowance.waits:
            self._housekeeping.wake()

    async def end_work(self, timeout: float | None) -> list[str]:
        """End what goes on there by itself; returns what has not ended after so many seconds, in words."""
        self._leaving = True
        left = []
        if self._opening is not None:
            await asyncio.wait([self._opening], timeout=timeout)
            if self._opening.done():
                self._opening.exception()  # it concerns nobody any more
                self._opening = None
            else:
                left.append(f"opens {self._space.directory}")
                timeout = 0
        await self._stop_background(timeout)
        if self._keeping is not None:
            left.append(f"keeps house in {self._space.root}")
        return left

    async def leave(self, timeout: float | None) -> list[str]:
        """Stop being an owner; returns what has not ended after so many seconds, in words.

        Cancellation: leaves at once, and what is under way goes on.

        Raises:
            OSError: the operating system refused.
        """
        if self._moving_out is None and self._space.is_open:
            self._moving_out = asyncio.get_running_loop().run_in_executor(self.clerk.executor, self._space.leave)
        if self._moving_out is not None:
            await asyncio.wait([self._moving_out], timeout=timeout)
            if not self._moving_out.done():
                return [f"leaves {self._space.directory}"]
            moved_out, self._moving_out = self._moving_out, None
            moved_out.result()
        self._follower = self._following = None
        self.clerk.close()
        self._keeper.shutdown(wait=False)
        return []

    async def _open(self) -> None:
        await self._stop_background(None)
        await open_space(self._space, self.clerk.executor)
        if self._follower is None:
            self._follower = Follower(self._space.root, os.path.basename(self._space.directory))
        await outlive(asyncio.get_running_loop().run_in_executor(self.clerk.executor, self._follower.begin))
        if not self._leaving:
            self._keep_house()
            self._begin_to_look()
            self.is_open = True

    def _begin_to_look(self) -> None:
        """Begin to learn what lies there, and what leaves."""
        assert self._follower is not None
        self._scan = asyncio.create_task(self._scanner.look_through(), name=f"{self._tier}: scan")
        following = self._scanner.follow(self._follower, self._enter_evicted, self._scan)
        self._following = asyncio.create_task(following, name=f"{self._tier}: following")

    def _keep_house(self) -> None:
        """Begin to keep the bounds of the root, if it has any, or gets some; without, nothing is ever removed."""
        evictor = self._space.evictor
        if evictor is not None:
            self._housekeeping = Housekeeping(
                self._space.root,
                self._space.allowance,
                evictor,
                self._keeper,
                self._report_evicted,
                self._ledger.complaints,
                self._watch,
            )
            self._keeping = asyncio.create_task(self._housekeeping.run(), name=f"{self._tier}: housekeeping")

    def _report_evicted(self) -> None:
        """After a round of the housekeeping."""
        assert self._housekeeping is not None
        if self._housekeeping.account_is_lost:
            self.lost()
        self._enter_evicted()

    def _enter_evicted(self) -> None:
        """Enter what this process removed; it may have been anybody's."""
        removed = self._space.evictor.take_removed() if self._space.evictor is not None else []
        self._ledger.evicted([key for path in removed if (key := self._space.key_at(path)) is not None])

    async def _stop_background(self, timeout: float | None) -> None:
        looking = [task for task in (self._scan, self._following) if task is not None]
        for task in looking:
            task.cancel()
        if looking:
            await asyncio.wait(looking)
        if self._housekeeping is not None and self._keeping is not None:
            self._housekeeping.stop()
            await asyncio.wait([self._keeping], timeout=timeout)
            if self._keeping.done():
                self._housekeeping = self._keeping = None
