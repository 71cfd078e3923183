"""Small helpers for arrays of slots."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from asyncoffload.errors import InternalError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s, Int64s


def slots_in(state: dict[OffloadKey, int], keys: Sequence[OffloadKey]) -> Int64s:
    """The slots of these keys, all of which are in this state, in the type that numpy indexes by without converting.

    Raises:
        KeyError: a key is not.
    """
    return np.fromiter(map(state.__getitem__, keys), dtype=np.int64, count=len(keys))


def distinct(slots: Int64s) -> bool:
    """Whether no slot appears twice."""
    ordered = np.sort(slots)
    return not np.count_nonzero(ordered[1:] == ordered[:-1])


def check_distinct(slots: Int64s) -> None:
    """Make sure that no slot appears twice.

    Raises:
        InternalError: one does.
    """
    if not distinct(slots):
        raise InternalError(f"a slot appears twice in {slots.tolist()}: readers are counted once per call and slot")


def first(pieces: Iterable[Int32s], count: int) -> Int32s:
    """The first ``count`` elements of what the arrays hold together, or all where they hold fewer."""
    taken = [np.empty(0, dtype=np.int32)]
    for piece in pieces:
        taken.append(piece[:count])
        count -= len(taken[-1])
        if not count:
            break
    return np.concatenate(taken)
