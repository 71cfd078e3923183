"""For how long a search asks in vain while nobody gives a slot back."""

from __future__ import annotations

from asyncoffload.core.keeping import Turn
from asyncoffload.core.tickets import Fetch

PATIENCE = 1024
"""In how many rounds a key is asked for in vain, with slots kept for others who do not use them, until it is a miss."""

NO_WAY_OUT = 128
"""As how many rounds one counts in which all slots are kept for the very search that wants more of them."""


class Standstill:
    """Whether all slots are kept for searches, and what that costs of the patience of those who want one.

    A caller who has found all it wants will use it, and go. That may take long where many wait for their turn on the
    device, but not for ever: somebody may want more than one request at a time, and they may not fit together.

    Attributes:
        lasts: nothing could be had when somebody last tried.
    """

    def __init__(self) -> None:
        self.lasts = False
        self._round = 0
        self._hopeless: Turn | None = None

    def over(self) -> None:
        """Slots may be had again, or not: somebody tries."""
        self.lasts = False

    def found(self, hopeless: Turn | None) -> None:
        """Nothing can be had.

        Args:
            hopeless: the turn for which all slots are kept and which wants more; None: some are kept for others.
        """
        self._round += 1
        self.lasts = True
        self._hopeless = hopeless

    def ends_patience(self, fetch: Fetch) -> bool:
        """A key without a slot is asked for; returns whether that was in vain often enough."""
        if fetch.last_stall != self._round:
            fetch.last_stall = self._round
            fetch.stalls += NO_WAY_OUT if fetch.turn == self._hopeless else 1
        return fetch.stalls >= PATIENCE
