"""Adaptive replacement: balances recency against frequency, and learns the balance from its own mistakes.

N. Megiddo, D. S. Modha: "ARC: A Self-Tuning, Low Overhead Replacement Cache", FAST 2003. It differs from the paper in
two places, because a block is admitted in two steps (it gets its slot first and is ready later). The balance is
adapted when a returning block has *landed*, so that the victim of that very block was still chosen by the old one;
and a block that must stay when its turn comes is passed over in favour of the next one in the same order.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np

from asyncoffload.core.policies.base import EvictionPolicy
from asyncoffload.core.policies.recency import RecencyLog
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s

Ghosts = OrderedDict[OffloadKey, None]


class ARC(EvictionPolicy):
    """Evicts from the blocks seen once or from those seen again, whichever are over their share.

    With ``c`` for the number of slots the paper's laws hold after every call: ``|T1| + |T2| <= c``,
    ``|T1| + |B1| <= c`` and ``|T1| + |T2| + |B1| + |B2| <= 2c``. Ghosts are keys alone and hold no slot.
    """

    def __init__(self) -> None:
        self.reset(1)

    def reset(self, n_slots: int) -> None:
        self._n_slots = n_slots
        self._target = 0.0  # p in the paper: the share of the blocks seen once
        self._once = RecencyLog(n_slots)  # T1
        self._again = RecencyLog(n_slots)  # T2
        self._once_ghosts: Ghosts = OrderedDict()  # B1
        self._again_ghosts: Ghosts = OrderedDict()  # B2
        self._is_again = np.zeros(n_slots, dtype=np.bool_)

    def insert(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:
        known = np.zeros(len(keys), dtype=np.bool_)
        if not (self._once_ghosts.keys().isdisjoint(keys) and self._again_ghosts.keys().isdisjoint(keys)):
            known[:] = list(map(self._was_ghost, reversed(keys)))
        slots = slots[::-1]
        self._is_again[slots] = known
        self._once.use(slots[~known])
        self._again.use(slots[known])
        self._trim_ghosts()

    def touch(self, slots: Int32s) -> None:
        slots = slots[::-1]
        self._once.drop(slots[~self._is_again[slots]])
        self._again.use(slots)
        self._is_again[slots] = True

    def evict(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:
        again = self._is_again[slots]
        self._once.drop(slots[~again])
        self._again.drop(slots[again])
        for key, was_again in zip(keys, again.tolist(), strict=True):
            (self._again_ghosts if was_again else self._once_ghosts)[key] = None

    def cold(self) -> Iterator[Int32s]:
        over = len(self._once) - int(self._target)
        once = self._once.cold()
        within = np.empty(0, dtype=np.int32)
        while over > 0:
            slots = next(once)
            yield slots[:over]
            within = slots[over:]
            over -= len(slots)
        yield from self._again.cold()
        yield within
        yield from once

    def _was_ghost(self, key: OffloadKey) -> bool:
        once, again = self._once_ghosts, self._again_ghosts
        if key in once:
            self._target = min(float(self._n_slots), self._target + max(1.0, len(again) / len(once)))
            del once[key]
            return True
        if key in again:
            self._target = max(0.0, self._target - max(1.0, len(once) / len(again)))
            del again[key]
            return True
        return False

    def _trim_ghosts(self) -> None:
        once, again = self._once_ghosts, self._again_ghosts
        for _ in range(min(len(once), len(self._once) + len(once) - self._n_slots)):
            once.popitem(last=False)
        everything = len(self._once) + len(self._again) + len(once) + len(again)
        for _ in range(min(len(again), everything - 2 * self._n_slots)):
            again.popitem(last=False)

    def __repr__(self) -> str:
        return (
            f"<ARC of {self._n_slots}: {len(self._once)} once + {len(self._again)} again, "
            f"ghosts {len(self._once_ghosts)} + {len(self._again_ghosts)}, target {self._target:.1f}>"
        )
