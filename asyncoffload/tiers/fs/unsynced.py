"""A file that is written and not yet durable, and who waits for it."""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from contextlib import suppress

from asyncoffload.tiers.fs.outcomes import Pending
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.types import KeyOutcome


class Unsynced(Pending, ABC):
    """A file whose bytes are written and which waits to be made durable. Its methods block.

    Args:
        calls: the operating system's calls.
        fd: the open file; it is closed as soon as its bytes are durable, or cannot be.
        path: its name, once it has it.

    Attributes:
        passed_by_cache: its bytes did not go through the page cache, which tells nobody but the descriptors of a file
            for certain that it has lost some.
        waiter: who waits for its outcome.
    """

    def __init__(self, calls: SystemCalls, fd: int, path: str) -> None:
        self.calls = calls
        self.path = path
        self.passed_by_cache = False
        self.waiter: Waiter | None = None
        self._fd = fd

    @property
    def directory(self) -> str:
        """Where its name is."""
        return os.path.dirname(self.path)

    def sync_bytes(self) -> None:
        """Make its bytes durable; once is enough.

        Raises:
            OSError: they are not. The operating system may call them clean from now on, so they must not be used.
        """
        if self._fd >= 0:
            self.calls.sync_file(self._fd)
            self.close()

    def close(self) -> None:
        """Let go of the descriptor; idempotent."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                os.close(fd)

    @abstractmethod
    def give_name(self) -> None:
        """Its bytes are durable: let it appear under its name.

        Raises:
            OSError: the operating system refused.
        """

    @abstractmethod
    def enter(self) -> KeyOutcome:
        """Its name is durable, too: enter it as stored."""

    @abstractmethod
    def undo(self, error: BaseException) -> KeyOutcome:
        """It could not be made durable: remove it, under whichever name it is."""


class Waiter:
    """Somebody waits for the last of so many files."""

    def __init__(self, left: int) -> None:
        self.left = left
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[None] = self.loop.create_future()

    def let_go(self) -> None:
        """All of them have their outcomes; any thread."""
        with suppress(RuntimeError):  # the loop is closed, and nobody waits any more
            self.loop.call_soon_threadsafe(self._end)

    def _end(self) -> None:
        if not self.future.done():
            self.future.set_result(None)
