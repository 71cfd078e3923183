"""Clean bits and copies under way, against a model of sets."""

from __future__ import annotations

import random

import numpy as np
import pytest

from asyncoffload.core.copies import Copies

N_SLOTS, N_TIERS = 12, 3


@pytest.mark.parametrize("seed", range(20))
def test_copies_are_counted_as_by_sets(seed: int) -> None:
    dice = random.Random(seed)
    copies = Copies(N_SLOTS)
    has: set[tuple[int, int]] = set()
    gets: set[tuple[int, int]] = set()
    for _ in range(200):
        tier = dice.randrange(N_TIERS)
        chosen = dice.sample(range(N_SLOTS), dice.randrange(1, 6))
        slots = np.array(chosen, dtype=np.int32)
        pairs = {(slot, tier) for slot in chosen}
        match dice.randrange(6):
            case 0 | 1:
                copies.add(slots, tier)
                has |= pairs
            case 2:
                copies.remove(slots, tier)
                has -= pairs
            case 3:
                gone = {(slot, one) for slot in chosen for one in range(N_TIERS)} & has
                assert copies.forget(slots) == len({slot for slot, _ in gone})
                has -= gone
            case 4:
                new = [slot for slot in chosen if (slot, tier) not in gets]
                copies.begin(np.array(new, dtype=np.int64), tier)
                gets |= {(slot, tier) for slot in new}
            case 5:
                old = [slot for slot in chosen if (slot, tier) in gets]
                copies.end(np.array(old, dtype=np.int64), tier)
                gets -= {(slot, tier) for slot in old}
        everything = np.arange(N_SLOTS, dtype=np.int32)
        assert copies.clean == len({slot for slot, _ in has}) == int(copies.has_any(everything).sum())
        assert copies.under_way == len({slot for slot, _ in gets})
        assert copies.readers(everything).tolist() == [
            sum((s, t) in gets for t in range(N_TIERS)) for s in range(N_SLOTS)
        ]
        for one in range(N_TIERS):
            expected = [slot for slot in range(N_SLOTS) if (slot, one) not in has | gets]
            assert copies.missing(everything, one).tolist() == expected
    copies.forget_all()
    assert copies.clean == 0
