"""A primary to test against: slots whose bytes can be written, recognised and watched."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from hashlib import shake_128

import numpy as np

from asyncoffload.keys import OffloadKey, group_of, make_key
from asyncoffload.types import KVGroup, KVLayout, TransferJob

CANARY = 0xCA


def small_layout() -> KVLayout:
    """Two groups: blocks of two whole pages, and blocks that end in the middle of a page."""
    return KVLayout("laws", "bfloat16", 16, (KVGroup((4096, 4096)), KVGroup((1000, 501))))


def some_keys(layout: KVLayout, count: int, name: object = "") -> list[OffloadKey]:
    """``count`` keys that no other name gives, of all groups in turn."""
    return [
        make_key(shake_128(f"{name}/{index}".encode()).digest(32), index % len(layout.groups)) for index in range(count)
    ]


def content_of(key: OffloadKey, nbytes: int) -> bytes:
    """The bytes that a block with this key has in every test: a random stream that the key seeds."""
    seed = int.from_bytes(shake_128(key).digest(16))
    return np.random.Generator(np.random.Philox(key=seed)).bytes(nbytes)


class Slots:
    """Page-aligned slots, as a primary has them.

    Args:
        layout: says how many bytes of a slot a block takes.
        n_slots: how many slots there are.
    """

    def __init__(self, layout: KVLayout, n_slots: int) -> None:
        self.layout = layout
        self.n_slots = n_slots
        self.slot_bytes = -(-layout.block_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        self._memory = mmap.mmap(-1, n_slots * self.slot_bytes)
        self.view = memoryview(self._memory).cast("B", (n_slots, self.slot_bytes))

    def nbytes(self, key: OffloadKey) -> int:
        """Bytes of a key's block."""
        return self.layout.group_bytes(group_of(key))

    def read(self, slot: int) -> bytes:
        """All bytes of a slot."""
        return self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes]

    def fill(self, slots: Iterable[int], keys: Iterable[OffloadKey]) -> None:
        """Write the content of each key into its slot, and canaries behind it."""
        for slot, key in zip(slots, keys, strict=True):
            self._write(slot, content_of(key, self.nbytes(key)))

    def guard(self, slots: Iterable[int]) -> None:
        """Fill slots with canaries."""
        for slot in slots:
            self._write(slot, b"")

    def are_untouched(self, slots: Iterable[int]) -> bool:
        """Whether nobody has written to slots that were guarded."""
        return all(self.read(slot) == bytes([CANARY]) * self.slot_bytes for slot in slots)

    def hold(self, slot: int, key: OffloadKey) -> bool:
        """Whether a slot has the content of a key, and the canaries behind it are as they were."""
        nbytes = self.nbytes(key)
        return self.read(slot) == content_of(key, nbytes) + bytes([CANARY]) * (self.slot_bytes - nbytes)

    def have(self, keys: Iterable[OffloadKey], first_slot: int = 0) -> bool:
        """Whether neighbouring slots hold the keys, in order."""
        return all(self.hold(slot, key) for slot, key in enumerate(keys, first_slot))

    def store_job(self, keys: Sequence[OffloadKey], first_slot: int = 0) -> TransferJob:
        """A job that stores the content of the keys from neighbouring slots, which are filled with it."""
        slots = range(first_slot, first_slot + len(keys))
        self.fill(slots, keys)
        return TransferJob(keys, slots)

    def load_job(self, keys: Sequence[OffloadKey], first_slot: int = 0) -> TransferJob:
        """A job that loads the keys into neighbouring slots, which are guarded."""
        slots = range(first_slot, first_slot + len(keys))
        self.guard(slots)
        return TransferJob(keys, slots)

    def _write(self, slot: int, payload: bytes) -> None:
        rest = bytes([CANARY]) * (self.slot_bytes - len(payload))
        self._memory[slot * self.slot_bytes : (slot + 1) * self.slot_bytes] = payload + rest
