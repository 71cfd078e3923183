"""Making blocks durable, many at a time: bytes first, then names, and only then is a block stored.

As in a database's group commit, one thread leads, and whatever comes while it is at it is in its next turn. A turn does
two things side by side: it makes the bytes of the new files durable and gives each its name then, and it makes the
names durable that the turn before has given. So a name never leads to bytes that a loss of power could take back, each
directory is synced once for all names that it got, and stores that keep coming wait for two turns each.

Loads never come by here.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Literal

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.waiting import outlive
from asyncoffload.errors import ClosedError
from asyncoffload.tiers.fs.outcomes import outcome_of
from asyncoffload.tiers.fs.system_calls import SystemCalls
from asyncoffload.tiers.fs.unsynced import Unsynced, Waiter
from asyncoffload.tiers.fs.whole_sync import FEWEST
from asyncoffload.types import KeyOutcome

Durability = Literal["none", "fsync"]

SYNC_THREADS = 8
"""Threads that sync at the same time. File systems make one commit of what several ask for at once."""

MAX_GIVEN_UP = 4
"""Turns that may hang while others go on."""

MAX_OPEN = 128
"""Files that wait for their turn with an open descriptor. Where more come, each is synced by the thread that wrote it,
which then writes no faster than the disk can sync."""


class Leader:
    """Whoever syncs for all.

    Attributes:
        turn_began: seconds.
        files: of this turn.
    """

    def __init__(self, turn_began: float) -> None:
        self.turn_began = turn_began
        self.files: Sequence[Unsynced] = ()


class SyncGroups:
    """Files on their way to durability.

    Args:
        name: prefix of the threads' names.
        clock: seconds.
    """

    def __init__(self, name: str = "asyncoffload-sync", clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._turns = 0
        self._synced = 0
        self._threads = IOThreads(SYNC_THREADS, name=name)
        self._lock = threading.Lock()
        self._waiting: list[Unsynced] = []
        self._leader: Leader | None = None
        self._given_up: set[Leader] = set()

    def stats(self) -> dict[str, float]:
        """``synced_blocks`` that became durable, and in how many ``sync_turns``."""
        return {"synced_blocks": self._synced, "sync_turns": self._turns}

    def add(self, file: Unsynced) -> None:
        """Have a file made durable; from the thread that wrote it. Returns at once, unless there are too many."""
        if len(self._waiting) >= MAX_OPEN:
            try:
                file.sync_bytes()
            except OSError as error:
                self._settle([(file, _undone(file, error))])
                return
        with self._lock:
            self._waiting.append(file)
            if self._leader is not None:
                return
            leader = self._leader = Leader(self._clock())
            lead = partial(self._lead, leader)
            threads = self._threads
        try:
            threads.start(lead)
        except (RuntimeError, ClosedError):  # the system has no thread left to give
            lead()

    async def settled(self, results: Iterable[object]) -> None:
        """Wait until all files among the results of some calls have their outcomes.

        Cancellation: raises when they have them.
        """
        with self._lock:
            files = [file for file in results if isinstance(file, Unsynced) and file.outcome is None]
            if not files:
                return
            waiter = Waiter(len(files))
            for file in files:
                file.waiter = waiter
        await outlive(waiter.future)

    def shutdown(self) -> None:
        """Let the threads go when they have nothing to do any more. Does not block."""
        self._threads.shutdown(wait=False)

    def give_up(self, older_than: float, outcome: KeyOutcome) -> bool:
        """Whether a turn has taken more than so many seconds. Then its files, and those that wait, have this outcome.

        If they become durable after all, they are removed; others lead the files that come from now on. That can
        happen a few times. Then nothing is synced any more until a turn has come to its end.
        """
        with self._lock:
            leader = self._leader
            if leader is None or self._clock() - leader.turn_began <= older_than:
                return False
            files = [*leader.files, *self._waiting]
            if len(self._given_up) < MAX_GIVEN_UP:
                self._given_up.add(leader)
                self._leader = None
                self._threads.shutdown(wait=False)
                self._threads = IOThreads(SYNC_THREADS, name=self._name)
        pending = [(file, outcome) for file in files if file.outcome is None]
        self._settle(pending)
        return bool(pending)

    def _lead(self, leader: Leader) -> None:
        """Take turns until nothing is left."""
        named: list[Unsynced] = []
        while True:
            with self._lock:
                written = []
                if leader not in self._given_up:
                    written, self._waiting = self._waiting, written
                if not (written or named):
                    self._given_up.discard(leader)
                    if self._leader is leader:
                        self._leader = None
                    return
                leader.turn_began, leader.files = self._clock(), [*written, *named]
            try:
                named = self._turn(written, named)
            except BaseException as error:  # whatever it is, nobody must wait for ever
                self._settle([(file, _undone(file, error)) for file in leader.files if file.outcome is None])
                named = []

    def _turn(self, written: Sequence[Unsynced], named: Sequence[Unsynced]) -> list[Unsynced]:
        """Make the bytes of some files durable and the names of others; returns those that got a name."""
        troubles: dict[str, OSError] = {}
        places = {file.directory: file.calls for file in named}
        # A directory may be as new as the file in it, whoever made it.
        places |= {os.path.dirname(directory): calls for directory, calls in places.items()}
        failed: list[tuple[Unsynced, BaseException]] = []
        work = [partial(_sync_and_name, file, failed) for file in written]
        try:
            if self._sync_whole(len(written) + len(places), [*written, *named][0]):
                for file in written:
                    if file.passed_by_cache:
                        file.close()
            else:
                work[:0] = [partial(_sync_names, directory, calls, troubles) for directory, calls in places.items()]
        except OSError as error:
            work, failed, troubles = [], [(file, error) for file in written], dict.fromkeys(places, error)
        self._side_by_side(work)
        outcomes = [(file, _undone(file, error)) for file, error in failed]
        for file in named:
            trouble = troubles.get(file.directory) or troubles.get(os.path.dirname(file.directory))
            if file.outcome is not None:  # it was given up
                trouble = _too_late()
            outcomes.append((file, _entered(file) if trouble is None else _undone(file, trouble)))
            self._synced += trouble is None
        self._turns += 1
        self._settle(outcomes)
        return [file for file in written if file not in dict(failed)]

    def _sync_whole(self, count: int, file: Unsynced) -> bool:
        """Make everything durable in one go, where that is cheaper; False when it was not done.

        Raises:
            OSError: something was lost, and nobody knows what.
        """
        if count < FEWEST:
            return False
        try:
            if not file.calls.may_sync_whole(file.directory):
                return False
            file.calls.sync_whole(file.directory)
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            return False  # it cannot be done, or somebody else has no room left: each file tells for itself
        return True

    def _side_by_side(self, calls: Sequence[Callable[[], None]]) -> None:
        """Make some calls, which do not raise, in several threads."""
        todo = deque(calls)
        helpers: list[Future[None]] = []
        with suppress(RuntimeError, ClosedError):
            while len(helpers) < min(SYNC_THREADS, len(calls)) - 1:
                helpers.append(self._threads.submit(_work_off, todo))
        _work_off(todo)
        for helper in helpers:
            helper.result()

    def _settle(self, outcomes: Sequence[tuple[Unsynced, KeyOutcome]]) -> None:
        ended = []
        with self._lock:
            for file, outcome in outcomes:
                if file.outcome is not None:
                    continue
                file.outcome = outcome
                if file.waiter is not None:
                    file.waiter.left -= 1
                    if not file.waiter.left:
                        ended.append(file.waiter)
        for waiter in ended:
            waiter.let_go()


def _work_off(todo: deque[Callable[[], None]]) -> None:
    while True:
        try:
            call = todo.popleft()
        except IndexError:
            return
        call()


def _sync_and_name(file: Unsynced, failed: list[tuple[Unsynced, BaseException]]) -> None:
    try:
        if file.outcome is None:
            file.sync_bytes()
        if file.outcome is not None:
            raise _too_late()
        file.give_name()
    except BaseException as error:
        failed.append((file, error))


def _too_late() -> OSError:
    return TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT))


def _sync_names(directory: str, calls: SystemCalls, troubles: dict[str, OSError]) -> None:
    try:
        calls.sync_directory(directory)
    except OSError as error:
        troubles[directory] = error


def _entered(file: Unsynced) -> KeyOutcome:
    try:
        return file.enter()
    except BaseException as error:
        return outcome_of(error)


def _undone(file: Unsynced, error: BaseException) -> KeyOutcome:
    file.close()
    try:
        return file.undo(error)
    except BaseException as another:
        return outcome_of(another)
