"""Whether a file system answers, as far as anybody can tell."""

from __future__ import annotations

PROBES = 3
"""Probes in a row that have to come back well before it is relied upon again."""


class Breaker:
    """The circuit breaker of M. Nygard's *Release It!*: opened by a call that hangs, closed by probes that do not.

    Attributes:
        is_open: the file system is left alone, but for probes.
    """

    def __init__(self) -> None:
        self.is_open = False
        self._answered = 0

    def __repr__(self) -> str:
        return f"<Breaker {f'open, {self._answered} of {PROBES} probes answered' if self.is_open else 'closed'}>"

    def trip(self) -> bool:
        """A call hangs; returns whether this opened it."""
        self._answered = 0
        if self.is_open:
            return False
        self.is_open = True
        return True

    def probed(self, is_well: bool) -> None:
        """A probe came back: in time, and there are threads for what would come, or not."""
        self._answered = self._answered + 1 if is_well else 0
        if self._answered >= PROBES:
            self.is_open = False
