"""Adaptive replacement: balances recency against frequency, and learns the balance from its own mistakes.

N. Megiddo, D. S. Modha: "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. Two places differ from the
paper, because a block is admitted in two steps (its slot is handed out first, and it becomes ready later). The
balance is adapted when a returning block *lands*, so the victim of that very block was still chosen by the old one;
and a block that is pinned when its turn comes is passed over in favour of the next one of the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import chain, islice

from asyncoffload.core.policies.base import EvictionPolicy
from asyncoffload.keys import OffloadKey

Order = OrderedDict[OffloadKey, None]


class ARC(EvictionPolicy):
    """Evicts from the blocks seen once or from those seen again, whichever is over its share.

    With ``c`` for the capacity, the paper's laws hold after every call: ``|T1| + |T2| <= c``,
    ``|T1| + |B1| <= c`` and ``|T1| + |T2| + |B1| + |B2| <= 2c``. Ghosts are keys alone; they hold no slot.
    """

    def __init__(self) -> None:
        self._capacity = 0
        self._target = 0.0  # p in the paper: the share of the blocks seen once
        self._once: Order = OrderedDict()  # T1
        self._again: Order = OrderedDict()  # T2
        self._once_ghosts: Order = OrderedDict()  # B1
        self._again_ghosts: Order = OrderedDict()  # B2

    def reset(self, capacity: int) -> None:
        self._capacity = capacity
        self._target = 0.0
        for order in (self._once, self._again, self._once_ghosts, self._again_ghosts):
            order.clear()

    def insert(self, keys: Sequence[OffloadKey]) -> None:
        once, again, once_ghosts, again_ghosts = self._once, self._again, self._once_ghosts, self._again_ghosts
        for key in reversed(keys):
            if key in once_ghosts:
                self._target = min(self._capacity, self._target + max(1.0, len(again_ghosts) / len(once_ghosts)))
                del once_ghosts[key]
                again[key] = None
            elif key in again_ghosts:
                self._target = max(0.0, self._target - max(1.0, len(once_ghosts) / len(again_ghosts)))
                del again_ghosts[key]
                again[key] = None
            else:
                once[key] = None
        self._trim_ghosts()

    def touch(self, keys: Sequence[OffloadKey]) -> None:
        once, again = self._once, self._again
        for key in reversed(keys):
            if key in again:
                again.move_to_end(key)
            elif key in once:
                del once[key]
                again[key] = None

    def remove(self, keys: Sequence[OffloadKey], *, evicted: bool) -> None:
        once, again, once_ghosts, again_ghosts = self._once, self._again, self._once_ghosts, self._again_ghosts
        for key in keys:
            if key in once:
                del once[key]
                if evicted:
                    once_ghosts[key] = None
            else:
                del again[key]
                if evicted:
                    again_ghosts[key] = None

    def cold(self) -> Iterator[OffloadKey]:
        over = max(0, len(self._once) - int(self._target))
        return chain(islice(self._once, over), self._again, islice(self._once, over, None))

    def _trim_ghosts(self) -> None:
        seen_once = len(self._once) + len(self._once_ghosts)
        for _ in range(min(seen_once - self._capacity, len(self._once_ghosts))):
            self._once_ghosts.popitem(last=False)
        seen = len(self._once) + len(self._once_ghosts) + len(self._again) + len(self._again_ghosts)
        for _ in range(min(seen - 2 * self._capacity, len(self._again_ghosts))):
            self._again_ghosts.popitem(last=False)

    def __repr__(self) -> str:
        return (
            f"<ARC of {self._capacity}: {len(self._once)} once + {len(self._again)} again, "
            f"ghosts {len(self._once_ghosts)} + {len(self._again_ghosts)}, target {self._target:.1f}>"
        )
