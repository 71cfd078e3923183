"""Slots full of random bytes that can be recognised after a round trip."""

from __future__ import annotations

import mmap
from collections.abc import Sequence

import numpy as np
import xxhash

from asyncoffload.cli.results import size_text
from asyncoffload.errors import InvalidArgument

_SEED_WORDS = 1 << 16


class BenchMemory:
    """Page-aligned slots of different bytes, and what their bytes were.

    Args:
        n_slots: how many.
        slot_bytes: bytes of each, a multiple of a page.

    Raises:
        InvalidArgument: so much memory cannot be had.
    """

    def __init__(self, n_slots: int, slot_bytes: int) -> None:
        self.n_slots, self.slot_bytes = n_slots, slot_bytes
        try:
            self._map = mmap.mmap(-1, n_slots * slot_bytes)
        except OSError as refusal:
            raise InvalidArgument(
                f"{size_text(n_slots * slot_bytes)} of memory cannot be had ({refusal.strerror}): choose a smaller "
                "--bytes"
            ) from None
        self.flat = memoryview(self._map)
        self.view = self.flat.cast("B", (n_slots, slot_bytes))
        words = np.frombuffer(self._map, np.uint64)
        seed = np.random.default_rng(0).integers(0, 2**63, _SEED_WORDS, np.uint64)
        for begin in range(0, len(words), _SEED_WORDS):  # other words in each stretch, without making them all
            stretch = words[begin : begin + _SEED_WORDS]
            np.bitwise_xor(seed[: len(stretch)], np.uint64(begin + 1), out=stretch)
        self._digests = [xxhash.xxh3_128_digest(slot) for slot in self.slots(range(n_slots))]

    def slots(self, indices: Sequence[int]) -> list[memoryview]:
        """The bytes of some slots."""
        return [self.flat[index * self.slot_bytes : (index + 1) * self.slot_bytes] for index in indices]

    def wipe(self) -> None:
        """Overwrite everything, so that what is found later was read."""
        np.frombuffer(self._map, np.uint8).fill(0)

    def wrong_slots(self) -> int:
        """How many slots do not have the bytes that they had in the beginning."""
        slots = self.slots(range(self.n_slots))
        found = (xxhash.xxh3_128_digest(slot) for slot in slots)
        return sum(is_ != should for is_, should in zip(found, self._digests, strict=True))
