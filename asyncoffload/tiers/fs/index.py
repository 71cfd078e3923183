"""What a tier knows about its blocks without looking at the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from asyncoffload.keys import OffloadKey

MISS_SECONDS = 1.0
"""How long a miss is believed. Neighbours write to the same directory, so it cannot be long; it only has to cover the
moments in which many requests ask for the same new prefix."""

MAX_MISSES = 65_536


class Look:
    """A look at the disk, from before it begins until what it found is entered.

    Attributes:
        came: blocks that were stored or loaded meanwhile.
        left: blocks that left meanwhile.
    """

    __slots__ = ("_index", "came", "left")

    def __init__(self, index: BlockIndex) -> None:
        self.came: set[OffloadKey] = set()
        self.left: set[OffloadKey] = set()
        self._index = index

    def found(self, keys: Iterable[OffloadKey]) -> None:
        """Enter blocks that it found. Those that left meanwhile are not there any more, or there again and known."""
        self._index.enter(key for key in keys if key not in self.left)

    def missed(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """Strike out blocks that it did not find; returns those that were thought to be there."""
        return self._index.remove(key for key in keys if key not in self.came)


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
        # Many small sets: a large one stands still for tens of milliseconds whenever it has to grow.
        self._present: list[set[OffloadKey]] = [set() for _ in range(256)]
        self._count = 0
        self._missed: OrderedDict[OffloadKey, float] = OrderedDict()  # by the time until which a miss is believed
        self._looks: set[Look] = set()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: OffloadKey) -> bool:
        return key in self._present[key[0]]

    def add(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """The blocks were just stored or loaded; returns those that were not known to be there."""
        keys = list(keys)
        for look in self._looks:
            look.came.update(keys)
        return self.enter(keys)

    def enter(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """The blocks are there; returns those that were not known to be."""
        new = []
        for key in keys:
            present = self._present[key[0]]
            if key not in present:
                present.add(key)
                new.append(key)
        self._count += len(new)
        self.nbytes += sum(map(self._file_bytes, new))
        for key in new:
            self._missed.pop(key, None)
        return new

    def remove(self, keys: Iterable[OffloadKey]) -> list[OffloadKey]:
        """The blocks are not there; returns those that were thought to be."""
        keys = list(keys)
        for look in self._looks:
            look.left.update(keys)
        gone = []
        for key in keys:
            present = self._present[key[0]]
            if key in present:
                present.remove(key)
                gone.append(key)
        self._count -= len(gone)
        self.nbytes -= sum(map(self._file_bytes, gone))
        return gone

    @contextmanager
    def look(self) -> Iterator[Look]:
        """A look at the disk begins."""
        look = Look(self)
        self._looks.add(look)
        try:
            yield look
        finally:
            self._looks.discard(look)

    def known(self, first_byte: int) -> list[OffloadKey]:
        """The blocks known to be there whose hash begins with a byte."""
        return list(self._present[first_byte])

    def clear(self) -> list[OffloadKey]:
        """Nothing is known; returns what was."""
        self._missed.clear()
        return self.remove([key for present in self._present for key in present])

    def missed(self, keys: Iterable[OffloadKey], now: float) -> None:
        """The blocks were looked for and are not there."""
        missed = self._missed
        for key in keys:
            missed[key] = now + self._miss_seconds
            missed.move_to_end(key)
        while missed and (len(missed) > MAX_MISSES or next(iter(missed.values())) <= now):
            missed.popitem(last=False)

    def unknown(self, keys: Sequence[OffloadKey], now: float) -> list[OffloadKey]:
        """Those of the keys that only a look at the disk can tell about."""
        present, missed = self._present, self._missed
        return [key for key in keys if key not in present[key[0]] and missed.get(key, now) <= now]
