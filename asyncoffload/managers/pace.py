"""How fast a tier has delivered of late."""

from __future__ import annotations

from asyncoffload.core.recompute import Route

LONGEST_PERIOD = 1.0
"""Seconds after which a busy period counts as one that has ended, so that a tier that is never idle is learned, too."""

FORGETTING = 0.8
"""What a period weighs against the one after it."""

SPREAD = 0.01
"""How unlike periods have to be, as a share of their mean bytes squared, to tell latency from bandwidth."""


class TierPace:
    """Learns the bandwidth and the latency of a tier from the calls that move blocks, several of which overlap.

    A *busy period* is a time in which something was on its way. The line through the periods, their seconds over their
    bytes, has the latency for its height and the time of a byte for its slope: least squares with exponential
    forgetting, as in adaptive filters. While all periods are alike, all of their time counts as bandwidth.
    """

    def __init__(self) -> None:
        self._in_flight = 0
        self._since = 0.0
        self._moved_bytes = 0
        self._n = self._x = self._y = self._xx = self._xy = 0.0

    def began(self, now: float) -> None:
        """A call has begun."""
        if not self._in_flight:
            self._since, self._moved_bytes = now, 0
        self._in_flight += 1

    def ended(self, moved_bytes: int, now: float) -> None:
        """A call has ended; so many bytes arrived."""
        self._in_flight -= 1
        self._moved_bytes += moved_bytes
        seconds = now - self._since
        if self._moved_bytes and seconds > 0 and (not self._in_flight or seconds > LONGEST_PERIOD):
            self._learn(self._moved_bytes, seconds)
            self._since, self._moved_bytes = now, 0

    def route(self, queued_bytes: int = 0) -> Route | None:
        """What to expect of it behind so many bytes; None while nothing was seen."""
        if not self._n:
            return None
        mean_x, mean_y = self._x / self._n, self._y / self._n
        spread = self._xx / self._n - mean_x * mean_x
        slope, latency = mean_y / mean_x, 0.0
        if spread > SPREAD * mean_x * mean_x:
            fitted = (self._xy / self._n - mean_x * mean_y) / spread
            if 0 < fitted < slope:
                slope, latency = fitted, mean_y - fitted * mean_x
        return Route(1 / slope, latency, queued_bytes)

    def _learn(self, nbytes: int, seconds: float) -> None:
        self._n = self._n * FORGETTING + 1
        self._x = self._x * FORGETTING + nbytes
        self._y = self._y * FORGETTING + seconds
        self._xx = self._xx * FORGETTING + float(nbytes) * nbytes
        self._xy = self._xy * FORGETTING + nbytes * seconds
