"""Log lines about trouble, few enough that a failing disk does not fill another one."""

from __future__ import annotations

import logging
from collections.abc import Callable

INTERVAL = 30.0
"""Seconds between two lines of one kind."""


class Complaints:
    """Warnings of which each kind appears at most once per interval, with the number of those that were held back.

    Args:
        logger: where they go.
        clock: seconds.
        interval: seconds between two lines of one kind.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float], *, interval: float = INTERVAL) -> None:
        self._logger = logger
        self._clock = clock
        self._interval = interval
        self._held_back: dict[str, int] = {}
        self._silent_until: dict[str, float] = {}

    def add(self, kind: str, text: object) -> None:
        """Complain, or count it."""
        now = self._clock()
        if now < self._silent_until.get(kind, now):
            self._held_back[kind] = self._held_back.get(kind, 0) + 1
            return
        self._silent_until[kind] = now + self._interval
        held_back = self._held_back.pop(kind, 0)
        self._logger.warning("%s%s", text, f" (and {held_back} more like it before)" if held_back else "")
