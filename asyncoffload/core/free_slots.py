"""Slots that hold nothing, and those of them whose memory somebody still uses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

HeldAmong = Callable[[Sequence[int]], set[int]]
"""Those of some slots whose memory is used by somebody the table of blocks does not know."""


class FreeSlots:
    """Hands out slots. One that is given back while its memory is in use is quarantined until it is released.

    Args:
        n_slots: the slots are ``0`` to ``n_slots - 1``, all free at first.
        held_among: those of some slots whose memory is in use.

    Attributes:
        quarantine: slots given back whose memory is in use.
        stranded: slots, given back or not, whose memory stays in use for longer than anybody should wait.
    """

    def __init__(self, n_slots: int, held_among: HeldAmong | None) -> None:
        self.quarantine: set[int] = set()
        self.stranded: set[int] = set()
        self._held_among = held_among
        self._free = list(range(n_slots - 1, -1, -1))

    def __len__(self) -> int:
        return len(self._free)

    def take(self, count: int) -> list[int]:
        """Hand out so many slots; there must be as many."""
        taken = self._free[: -count - 1 : -1]
        del self._free[-count:]
        return taken

    def add(self, slots: Iterable[int]) -> None:
        """Take back slots whose memory nobody uses."""
        self._free.extend(slots)

    def give_back(self, slots: Iterable[int]) -> None:
        """Take back slots whose memory may be in use."""
        if self._held_among is None:
            self._free.extend(slots)
            return
        freed = list(slots)
        held = self._held_among(freed)
        self.quarantine |= held
        self._free.extend(slot for slot in freed if slot not in held)

    def release(self, slots: Iterable[int]) -> None:
        """The memory of these slots is not in use any more."""
        self.stranded.difference_update(slots)
        released = self.quarantine.intersection(slots)
        self.quarantine -= released
        self._free.extend(released)
