"""Who has the core: a calling thread during its step, the loop's thread whenever it can have it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import get_ident

from asyncoffload.errors import WrongLoopError

GLANCE_SECONDS = 0.05
"""How often a thread that waits for the core looks whether the other one is still there."""


class Handover:
    """One lock, taken by a caller once per step, and only tried, never awaited, by the loop.

    The loop keeps the core for a fraction of a millisecond at a time, so a caller gets it at once. Two callers may
    follow each other on different threads, but not overlap.

    The lock is one that its thread may take again: an exception that a signal handler raises just after it was taken
    costs the loop its turns, but never locks out the thread itself.

    Args:
        check: raises when the loop's thread cannot give the core back any more.

    Attributes:
        stepper: identity of the thread that is in a step; 0: none.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self.stepper = 0
        self._depth = 0
        self._check = check
        self._lock = threading.RLock()

    def enter(self) -> bool:
        """Begin a step, or a call within one, on the calling thread; returns whether it is the outermost.

        Raises:
            WrongLoopError: another thread is in a step.
        """
        me = get_ident()
        if self.stepper == me:
            self._depth += 1
            return False
        if not self._lock.acquire(False):
            self._wait(me)
        self._depth = 1
        self.stepper = me
        return True

    def leave(self) -> None:
        """End what :meth:`enter` began."""
        self._depth -= 1
        if not self._depth:
            self.stepper = 0
            self._lock.release()

    def revoke(self) -> None:
        """Make nobody look like being in a step, so that a caller's shortcuts end; the core stays with who has it."""
        self.stepper = 0

    @property
    def outermost(self) -> bool:
        """Whether the next :meth:`leave` ends the step."""
        return self._depth == 1

    def _wait(self, me: int) -> None:
        while True:
            other = self.stepper
            if other:
                raise WrongLoopError(
                    f"thread {me} calls while thread {other} is in a step of the same manager: "
                    "let one thread own it, or lock around the whole steps"
                )
            if self._lock.acquire(timeout=GLANCE_SECONDS):
                return
            self._check()

    def try_enter(self) -> bool:
        """Take the core for the loop, if nobody has it."""
        return self._lock.acquire(blocking=False)

    def leave_loop(self) -> None:
        """Give back what :meth:`try_enter` took."""
        self._lock.release()
