"""Keeping a root within its bounds, ahead of need: one process at a time counts, collects and evicts.

Whoever has the housekeeping lock keeps house until it leaves or dies; the others look now and then whether the lock is
free. Nobody who loads or stores ever waits for it. What it does is cut into rounds of a few milliseconds, with pauses
between them, so that a root with millions of files is looked through beside a server that has other things to do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import Executor

from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.fs.account_file import BUCKETS, UsageBusyError
from asyncoffload.tiers.fs.counting import Census
from asyncoffload.tiers.fs.eviction import Evictor
from asyncoffload.tiers.fs.quota import Allowance
from asyncoffload.tiers.fs.watch import Watch

ROUND_SECONDS = 0.005
"""How long a round looks at directories before it pauses; it finishes the one that it is at."""

PAUSE = 3.0
"""Pauses between such rounds, as a multiple of their length, unless a store waits for room."""

BUSY_SECONDS, IDLE_SECONDS = 0.02, 0.25
"""Between two looks at the account, while it changes and while it does not."""

RECYCLE_AHEAD = 2
"""Stores take the place of other blocks when so many times the slack is lacking, so that the slack stays free."""

LOOK_AHEAD = 4
"""Candidates for eviction are looked for when so many times the slack is lacking."""

EVICTING_THREADS = 4
"""Removing a file waits for the file system's journal, a millisecond and more beside stores at full speed: one thread
alone does not keep up with them."""

STOPPED_SECONDS = 5.0
"""Who keeps house looks many times a second at what others want, unless it was stopped, or its disk hangs."""

FILES_OF_A_THREAD = 8
"""Each of several threads may remove a file too many; where there are fewer to remove, one thread does it."""

TROUBLED_SECONDS = 10.0
"""After a look that could not see all of a root, until it is counted again."""

_NOTHING = -1, -1
_SECOND = 1.0  # between two looks for the dead, and after a search that found nothing to evict


class Housekeeping:
    """Runs in a task of its own, from :meth:`run` until :meth:`stop`.

    Args:
        root_dir: the root.
        allowance: this process's dealings with the bounds.
        evictor: removes files.
        executor: where to block; it has :data:`EVICTING_THREADS`.
        report: called on the loop after each round.
        complaints: where trouble is reported.
        watch: is told of calls that hang.

    Attributes:
        leftovers_removed: temporary files of the dead that were removed.
        is_ours: whether this process keeps house.
        account_is_lost: somebody removed the root's account; it has to be opened anew.
    """

    def __init__(
        self,
        root_dir: str,
        allowance: Allowance,
        evictor: Evictor,
        executor: Executor,
        report: Callable[[], None],
        complaints: Complaints,
        watch: Watch,
    ) -> None:
        self.leftovers_removed = 0
        self.is_ours = False
        self.account_is_lost = False
        self._root_dir = root_dir
        self._allowance = allowance
        self._usage = allowance.usage
        self._evictor = evictor
        self._executor = executor
        self._report = report
        self._complaints = complaints
        self._watch = watch
        self._wake = asyncio.Event()
        self._stopping = False
        self._census: Census | None = None
        self._todo: list[int] = []
        self._is_search = False
        self._found = 0
        self._next_second = 0.0
        self._next_search = 0.0
        self._next_count = 0.0
        self._files_before = -1
        self._seen = _NOTHING
        self._seen_beats = -1
        self._beaten_at = 0.0

    def wake(self) -> None:
        """A store waits for room."""
        self._wake.set()

    def stop(self) -> None:
        """Let :meth:`run` end after the round that is under way."""
        self._stopping = True
        self._wake.set()

    async def run(self) -> None:
        """Keep house. Not to be cancelled while a round runs: it uses the account until it ends."""
        loop = asyncio.get_running_loop()
        while not self._stopping:
            self._wake.clear()
            try:
                a_round = loop.run_in_executor(self._executor, self.round)
                pause = await self._watch.end_of(a_round, f"housekeeping in {self._root_dir}", self._steps)
            except UsageBusyError as error:
                self._complaints.add("account", error)
                pause = IDLE_SECONDS
            except Exception as error:  # if it ended here, stores would find no room, and nobody would know why
                self._complaints.add("housekeeping", f"housekeeping in {self._root_dir} failed: {error!r}")
                self._give_up_search()
                pause = _SECOND
            self._report()
            if pause:
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    pass

    def _steps(self) -> tuple[int, int]:
        """What has been done so far; any thread."""
        census = self._census
        return self._evictor.files, census.files if census else 0

    def round(self) -> float:
        """A few milliseconds of work, in a thread; returns the seconds after which to come again.

        Raises:
            UsageBusyError: somebody has the account for long.
            OSError: the operating system refused.
        """
        now = time.monotonic()
        a_second_is_over = now >= self._next_second
        self._evictor.write_down()
        if a_second_is_over:
            self._next_second = now + _SECOND
            self._allowance.give_back_spare()
            self.account_is_lost = not self._usage.is_there
        if not self._allowance.is_bounded:
            self._evictor.is_pressed = False
            self._give_up_search()
            return _SECOND
        self._allowance.give_back_excess()
        self.is_ours = self._usage.take_housekeeping()
        if not self.is_ours:
            self._allowance.waits = False
            self._look_at_keeper(now)
            return IDLE_SECONDS
        if self._usage.wanted:
            self._usage.beat()
        if a_second_is_over or self._allowance.waits:
            self._allowance.waits = False
            self._usage.fold_dead()
        lacking = self._allowance.lacking()
        # Stores of this process make their own room then, and leave what there is to others.
        self._evictor.is_pressed = self._allowance.lacking(RECYCLE_AHEAD) > 0
        if lacking and self._evict(lacking):
            self._seen = _NOTHING  # or a root to which as much is added as was removed would look idle
            self._plan(now, lacking)
            return self._search(lacking) if self._census else 0.0
        self._plan(now, lacking)
        if self._census:
            return self._search(lacking)
        seen = self._usage.used, self._usage.reserved
        active, self._seen = seen != self._seen, seen
        return BUSY_SECONDS if active else IDLE_SECONDS

    def _look_at_keeper(self, now: float) -> None:
        """Say so if stores wait for room, and whoever keeps house makes none."""
        beats = self._usage.beats
        if beats != self._seen_beats or not self._usage.wanted:
            self._seen_beats, self._beaten_at = beats, now
        elif now - self._beaten_at >= STOPPED_SECONDS:
            self._complaints.add(
                "keeper",
                f"{self._root_dir}: stores find no room, and process {self._usage.keeper or '?'}, which keeps house "
                f"there, has not looked for {now - self._beaten_at:.0f} seconds: see whether it was stopped; when it "
                "ends, another one takes over",
            )

    def _evict(self, nbytes: int) -> int:
        """Remove some files, in several threads if there are many; returns the bytes removed."""
        few = FILES_OF_A_THREAD * self._allowance.bounds.block
        threads = min(EVICTING_THREADS, max(1, nbytes // few))
        share, why = -(-nbytes // threads), self._allowance.tightest
        others = [self._executor.submit(self._evictor.evict, share, why=why) for _ in range(threads - 1)]
        removed = self._evictor.evict(share, why=why) + sum(other.result() for other in others)
        if removed:
            self._usage.meet()
        return removed

    def _plan(self, now: float, lacking: int) -> None:
        """Begin to look through the root if that is of use."""
        if self._census and (self._is_search or not lacking):
            return
        few = len(self._evictor) <= self._found // 4
        if few and now >= self._next_search and (lacking or self._allowance.lacking(LOOK_AHEAD)):
            self._is_search, self._todo = True, list(range(BUCKETS))
        elif not self._census and now >= self._next_count and (doubtful := self._usage.in_doubt):
            self._is_search, self._todo = False, doubtful
        else:
            return
        self._census = Census(self._root_dir, self._usage)

    def _search(self, lacking: int) -> float:
        """Look at some buckets."""
        assert self._census is not None
        began = now = time.monotonic()
        while self._todo and now < began + ROUND_SECONDS:
            found, _ = self._census.count(self._todo.pop())
            if self._is_search:
                self._evictor.gather(found)
            now = time.monotonic()
        if not self._todo:
            self._finish_search(now)
        starving = lacking and not len(self._evictor)
        return 0.0 if starving else PAUSE * (now - began)

    def _finish_search(self, now: float) -> None:
        assert self._census is not None
        self._census.finish()
        self.leftovers_removed += self._census.leftovers_removed
        for trouble in self._census.troubles:
            text = f"{trouble}: what is there is neither counted nor evicted; let this process read it"
            self._complaints.add("count", text)
            self._next_count = now + TROUBLED_SECONDS
        self._census = None
        if self._is_search:
            self._evictor.found_all()
            self._found = len(self._evictor)
            was_of_use, self._files_before = self._evictor.files != self._files_before, self._evictor.files
            self._next_search = now + (0.0 if self._found and was_of_use else _SECOND)

    def _give_up_search(self) -> None:
        self._census = None
        self._evictor.start_over()
