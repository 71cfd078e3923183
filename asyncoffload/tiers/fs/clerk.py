"""Short calls about names, in threads of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.errors import TierUnavailable

T = TypeVar("T")

CLERKS = 2


class Clerk:
    """Runs calls that move no blocks, and does not wait for those that hang.

    Args:
        tier: the tier's name.
        timeout: seconds after which a call counts as hanging; None: never.
        hung: called, on the loop, when one does.
    """

    def __init__(self, tier: str, timeout: float | None, hung: Callable[[str], None]) -> None:
        self._tier = tier
        self._timeout = timeout
        self._hung = hung
        self._threads = IOThreads(CLERKS, name=f"asyncoffload-{tier}-metadata")

    @property
    def executor(self) -> Executor:
        """The threads, for calls that somebody else looks after."""
        return self._threads

    async def run(self, call: Callable[[], T]) -> T:
        """Run a short call in a thread.

        Cancellation: leaves the call to itself.

        Raises:
            TierUnavailable: it hangs. It may still come to an end, which nobody will hear of.
        """
        work = self._threads.begin(call)
        future = asyncio.wrap_future(work.future)
        try:
            if await self._in_time(future):
                return future.result()
        finally:
            future.cancel()
        self._threads.give_up(work)
        what = f"a call about names has not returned for {self._timeout:g} seconds"
        self._hung(what)
        raise TierUnavailable(f"tier {self._tier!r}: {what}: see whether its file system answers")

    async def _in_time(self, future: asyncio.Future[T]) -> bool:
        loop, is_late = asyncio.get_running_loop(), True
        while is_late and not future.done():
            began = loop.time()
            await asyncio.wait([future], timeout=self._timeout)
            # Whatever kept the loop from coming back may have kept the thread from ending: it gets as long again.
            is_late = self._timeout is not None and loop.time() - began > 2 * self._timeout
        return future.done()

    def close(self) -> None:
        """Let the threads go when what they do has ended. Does not block."""
        self._threads.shutdown(wait=False)
