"""What paired calls handed out and nobody has completed yet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

from asyncoffload.keys import OffloadKey

T = TypeVar("T")


class HandedOut(Generic[T]):
    """What paired calls handed out, by batch, as long as every batch comes back as it went out.

    Nearly all do, and then their slots are known without looking up one key: what is out keeps its slot. On the first
    that does not, the caller breaks all of them up and counts by slot.
    """

    def __init__(self) -> None:
        self._batches: dict[tuple[OffloadKey, ...], tuple[T, int]] = {}

    def add(self, keys: Sequence[OffloadKey], handed_out: T) -> None:
        """A call handed this out for these keys, all different; if they are out already, it is the same."""
        batch = tuple(keys)
        _, times = self._batches.get(batch, (handed_out, 0))
        self._batches[batch] = handed_out, times + 1

    def take(self, keys: Sequence[OffloadKey]) -> T | None:
        """What was handed out for exactly these keys, once per call that did; None where none is out."""
        try:
            handed_out, times = self._batches.pop(tuple(keys))
        except (KeyError, TypeError):
            return None
        if times > 1:
            self._batches[tuple(keys)] = handed_out, times - 1
        return handed_out

    def break_up(self) -> list[tuple[T, int]]:
        """Forget the batches; returns what was handed out and is out, and how often each."""
        batches = list(self._batches.values())
        self._batches.clear()
        return batches
