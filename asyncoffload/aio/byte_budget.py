"""A bound in bytes with a queue of those who wait for room."""

from __future__ import annotations

import asyncio

from asyncoffload.errors import ClosedError


class ByteBudget:
    """Counts bytes against a limit. What is larger than the limit fits when nothing else is there.

    Who waits is served in order of arrival. Room that was promised to a waiter is kept for it until it runs again,
    so nobody slips in between.

    Args:
        limit: bytes; None for no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.used = 0
        self._promised = 0
        self._waiting: dict[asyncio.Future[None], int] = {}
        self._closed = False

    def __repr__(self) -> str:
        limit = "unlimited" if self.limit is None else f"of {self.limit}"
        return f"<ByteBudget {self.used} {limit} bytes used, {len(self._waiting)} waiting>"

    def fits(self, nbytes: int) -> bool:
        """Whether ``nbytes`` may be taken now."""
        taken = self.used + self._promised
        return self.limit is None or taken + nbytes <= self.limit or not (taken and nbytes)

    def take(self, nbytes: int) -> None:
        """Count ``nbytes`` as used, whether they fit or not."""
        self.used += nbytes

    def release(self, nbytes: int) -> None:
        """Give ``nbytes`` back, and let those in who wait and now fit."""
        self.used -= nbytes
        self._admit()

    async def room(self, nbytes: int) -> None:
        """Wait, in order of arrival, until ``nbytes`` fit; the room is the caller's until its next await.

        Raises:
            ClosedError: the budget was closed.

        Cancellation: leaves the line at once and takes nothing.
        """
        if self._closed:
            raise ClosedError(f"{self!r} is closed")
        if not self._waiting and self.fits(nbytes):
            return
        turn = asyncio.get_running_loop().create_future()
        self._waiting[turn] = nbytes
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._waiting.pop(turn, None)
            elif turn.exception() is None:  # the promise came, but too late
                self._promised -= nbytes
            self._admit()
            raise
        self._promised -= nbytes

    def close(self) -> None:
        """Turn away all who wait, and all who come; idempotent."""
        self._closed = True
        waiting, self._waiting = self._waiting, {}
        for turn in waiting:
            if not turn.done():
                turn.set_exception(ClosedError(f"{self!r} was closed while somebody waited for room"))

    def _admit(self) -> None:
        while self._waiting:
            turn, nbytes = next(iter(self._waiting.items()))
            if not turn.cancelled():
                if not self.fits(nbytes):
                    return
                self._promised += nbytes
                turn.set_result(None)
            del self._waiting[turn]
