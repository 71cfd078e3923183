"""Short calls about names, in threads of their own."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any, Generic, TypeVar

from asyncoffload.aio.io_threads import IOThreads, Submitted
from asyncoffload.errors import TierUnavailable

T = TypeVar("T")

CLERKS = 2


class _Call(Generic[T]):
    """One that was asked for.

    Attributes:
        began: seconds; infinite until a thread is in it.
        hangs: it has not come back in time.
        replaced: another thread does the work of the one that is in it.
        work: its way through the threads.
    """

    __slots__ = ("_call", "_clock", "_running", "began", "hangs", "replaced", "work")

    work: Submitted[T]

    def __init__(self, call: Callable[[], T], clock: Callable[[], float], running: set[_Call[Any]]) -> None:
        self.began = math.inf
        self.hangs = False
        self.replaced = False
        self._call = call
        self._clock = clock
        self._running = running

    def start(self, threads: IOThreads) -> asyncio.Future[T]:
        """Queue it; what comes of it."""
        self.work = threads.begin(self._run)
        return asyncio.wrap_future(self.work.future)

    def _run(self) -> T:
        self.began = self._clock()
        self._running.add(self)
        try:
            return self._call()
        finally:
            self._running.discard(self)


class Clerk:
    """Runs calls that move no blocks, and does not wait for those that hang.

    A call that waits for a thread does not hang, however long it waits, as long as those before it come back in time.

    Args:
        tier: the tier's name.
        timeout: seconds in a call after which it counts as hanging; None: never.
        hung: called, on the loop, when one does.
        clock: seconds.
    """

    def __init__(
        self,
        tier: str,
        timeout: float | None,
        hung: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tier = tier
        self._timeout = timeout
        self._hung = hung
        self._clock = clock
        self._waited_for: set[_Call[Any]] = set()
        self._running: set[_Call[Any]] = set()  # the threads write it: on the loop, take copies, made in one step
        self._threads = IOThreads(CLERKS, name=f"asyncoffload-{tier}-metadata")

    @property
    def executor(self) -> Executor:
        """The threads, for calls that somebody else looks after."""
        return self._threads

    async def run(self, call: Callable[[], T]) -> T:
        """Run a short call in a thread.

        Cancellation: leaves the call to itself.

        Raises:
            TierUnavailable: it hangs, or waited for a thread when another one did. If a thread is in it, it may still
                come to an end, which nobody will hear of.
        """
        mine = _Call(call, self._clock, self._running)
        future = mine.start(self._threads)
        self._waited_for.add(mine)
        try:
            if await self._in_time(mine, future):
                return future.result()
        finally:
            self._waited_for.discard(mine)
            future.cancel()
        raise TierUnavailable(f"tier {self._tier!r}: {self._trouble}: see whether its file system answers")

    def lacks_threads(self) -> bool:
        """Whether a call hangs whose thread could not be replaced."""
        lacking = [call for call in self._running.copy() if call.hangs and not self._replace(call)]
        return bool(lacking)

    def close(self) -> None:
        """Let the threads go when what they do has ended. Does not block."""
        self._threads.shutdown(wait=False)

    @property
    def _trouble(self) -> str:
        return f"a call about names has not returned for {self._timeout:g} seconds"

    async def _in_time(self, mine: _Call[T], future: asyncio.Future[T]) -> bool:
        patience = self._timeout
        while True:
            asked = self._clock()
            await asyncio.wait([future], timeout=patience)
            if future.done():
                return not future.cancelled()
            assert self._timeout is not None
            assert patience is not None
            now = self._clock()
            # Whatever kept the loop from coming back may have kept the thread from ending: it gets as long again.
            was_kept = now - asked > patience + self._timeout
            patience = (
                self._timeout if was_kept or mine.work.future.done() else self._left(self._before(mine, now), now)
            )
            if patience <= 0:
                self._break_off(now)
                return False

    def _before(self, mine: _Call[T], now: float) -> float:
        """When the call began, or while it waits for a thread, the last one of those that have one."""
        began = mine.began
        if math.isinf(began):
            began = max((call.began for call in self._running.copy() if not call.replaced), default=now)
        return began

    def _left(self, began: float, now: float) -> float:
        assert self._timeout is not None
        return began + self._timeout - now

    def _break_off(self, now: float) -> None:
        """Drop what waits for a thread, and do without those that hang."""
        for call in self._waited_for:
            call.work.future.cancel()  # which does nothing to one that a thread is in
        for call in self._running.copy():
            if not call.hangs and self._left(call.began, now) <= 0:
                call.hangs = True
                self._replace(call)
                self._hung(self._trouble)

    def _replace(self, call: _Call[Any]) -> bool:
        call.replaced = call.replaced or self._threads.give_up(call.work)
        return call.replaced
