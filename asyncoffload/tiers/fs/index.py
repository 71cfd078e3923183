"""What a tier knows about its blocks without looking at the disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from asyncoffload.keys import OffloadKey

MISS_SECONDS = 1.0
"""How long a miss is believed. Neighbours write to the same directory, so it cannot be long; it only has to cover the
moments in which many requests ask for the same new prefix."""

MAX_MISSES = 65_536


class BlockIndex:
    """The blocks known to be there, their bytes, and those that were looked for in vain a moment ago.

    Time is an argument, in seconds of one monotonic clock. All methods belong to one thread, except ``in``.

    Args:
        file_bytes: bytes that a block takes on disk.
        miss_seconds: how long a miss is believed.
    """

    def __init__(self, file_bytes: Callable[[OffloadKey], int], *, miss_seconds: float = MISS_SECONDS) -> None:
        self.nbytes = 0
        self._file_bytes = file_bytes
        self._miss_seconds = miss_seconds
        self._present: set[OffloadKey] = set()
        self._missed: dict[OffloadKey, float] = {}

    def __len__(self) -> int:
        return len(self._present)

    def __contains__(self, key: OffloadKey) -> bool:
        return key in self._present

    def add(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """The blocks are there; returns those that were not known to be."""
        new = [key for key in keys if key not in self._present]
        self._present.update(new)
        self.nbytes += sum(map(self._file_bytes, new))
        for key in new:
            self._missed.pop(key, None)
        return new

    def remove(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """The blocks are not there; returns those that were thought to be."""
        gone = [key for key in keys if key in self._present]
        self._present.difference_update(gone)
        self.nbytes -= sum(map(self._file_bytes, gone))
        return gone

    def clear(self) -> list[OffloadKey]:
        """Nothing is known; returns what was."""
        self._missed.clear()
        return self.remove(list(self._present))

    def missed(self, keys: Iterable[OffloadKey], now: float) -> None:
        """The blocks were looked for and are not there."""
        self._missed.update(dict.fromkeys(keys, now + self._miss_seconds))
        while len(self._missed) > MAX_MISSES:
            del self._missed[next(iter(self._missed))]

    def unknown(self, keys: Sequence[OffloadKey], now: float) -> list[OffloadKey]:
        """Those of the keys that only a look at the disk can tell about."""
        present, missed = self._present, self._missed
        return [key for key in keys if key not in present and missed.get(key, now) <= now]
