"""Driver events, made when all others are in use and kept for the next user."""

from __future__ import annotations

import logging
import threading
from typing import Final

from asyncoffload.device.cuda.driver import Driver

LAST_USERS_SECONDS: Final = 5.0

_log = logging.getLogger(__name__)


class Mark:
    """A driver event on loan. It goes back to its pool when the last of its users has given it back: an event that is
    recorded anew while somebody still waits at it would make him wait for other work."""

    __slots__ = ("handle", "users")

    def __init__(self, handle: int) -> None:
        self.handle = handle
        self.users = 0


class MarkPool:
    """The driver events of one device: as many as were ever in use at once. From any thread, with a context bound.

    Attributes:
        made: driver events that exist.
        lent: of those, how many are in use.
    """

    def __init__(self, driver: Driver) -> None:
        self.made = 0
        self.lent = 0
        self._driver = driver
        self._free: list[Mark] = []
        self._lock = threading.Lock()
        self._all_back = threading.Condition(self._lock)

    def take(self) -> Mark:
        """An event for one user.

        Raises:
            DeviceError: there is none left, and the driver makes no more.
        """
        with self._lock:
            mark = self._free.pop() if self._free else None
            self.lent += 1
        if mark is None:
            try:
                mark = Mark(self._driver.create_event())
            except BaseException:
                with self._lock:
                    self.lent -= 1
                    self._all_back.notify_all()
                raise
            with self._lock:
                self.made += 1
        mark.users = 1
        return mark

    def share(self, mark: Mark) -> Mark:
        """One more user of an event that has one."""
        with self._lock:
            mark.users += 1
        return mark

    def give_back(self, mark: Mark) -> None:
        """A user needs the event no more."""
        with self._lock:
            mark.users -= 1
            if not mark.users:
                self._free.append(mark)
                self.lent -= 1
                if not self.lent:
                    self._all_back.notify_all()

    def drain(self) -> list[int]:
        """Hand over the handles of all events, to be destroyed. All work they mark has ended.

        Blocks until nobody uses one, which takes moments: a user that has not come back after
        :data:`LAST_USERS_SECONDS` was interrupted by an exception from outside, and its event is left alone.
        """
        with self._lock:
            if not self._all_back.wait_for(lambda: not self.lent, LAST_USERS_SECONDS):
                _log.warning("%r at its end: those in use are not destroyed", self)
            handles = [mark.handle for mark in self._free]
            self._free.clear()
            self.made -= len(handles)
        return handles

    def __repr__(self) -> str:
        return f"MarkPool({self.lent} of {self.made} events in use)"
