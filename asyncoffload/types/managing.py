"""What managers answer and announce."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from asyncoffload.keys import OffloadKey
from asyncoffload.types.specs import CPULoadStoreSpec

WritePolicy: TypeAlias = Literal["write_through", "demote"]
"""When blocks of the primary are written to the tiers: as soon as they are stored, or when they are about to leave."""

DirtyVictims: TypeAlias = Literal["drop", "refuse"]
"""What happens where only blocks that no tier has could make room: they are dropped, or what needs room is refused."""


@dataclass(frozen=True, slots=True)
class PrepareStoreOutput:
    """What :meth:`OffloadingManager.prepare_store` decided.

    Attributes:
        keys_to_store: the keys to be written, in the order of the call, without those already present.
        store_spec: where to write them.
        evicted_keys: the keys that had to go to make room.
    """

    keys_to_store: Sequence[OffloadKey]
    store_spec: CPULoadStoreSpec
    evicted_keys: Sequence[OffloadKey]

    @property
    def block_hashes_to_store(self) -> Sequence[OffloadKey]:
        """The older name of :attr:`keys_to_store`."""
        return self.keys_to_store

    @property
    def block_hashes_evicted(self) -> Sequence[OffloadKey]:
        """The older name of :attr:`evicted_keys`."""
        return self.evicted_keys


@dataclass(frozen=True, slots=True)
class OffloadingEvent:
    """Blocks appeared in a medium or left it.

    Attributes:
        keys: the blocks.
        block_size: tokens per offloaded block; 0 where the source does not know it.
        medium: ``"CPU"`` for the primary, else the tier's name.
        removed: they left; otherwise they appeared.
        lost: how many earlier events this subscriber's full queue dropped just before this one.
    """

    keys: Sequence[OffloadKey]
    block_size: int
    medium: str
    removed: bool
    lost: int = 0

    @property
    def block_hashes(self) -> Sequence[OffloadKey]:
        """The older name of :attr:`keys`."""
        return self.keys
