"""What the laws need to know about a tier: how it is made, and how to get at its storage around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from pathlib import Path
from typing import ClassVar

from asyncoffload.keys import OffloadKey
from asyncoffload.testing.slots import small_layout
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.types import KVLayout


class TierHooks(ABC):
    """Implement these for a tier. The laws reach its storage through them, so that no verb vouches for itself.

    Attributes:
        persistent: blocks survive the process; the laws of restart and kill hold.
    """

    persistent: ClassVar[bool] = False

    def layout(self) -> KVLayout:
        """The layout to test with: several groups, if the tier can."""
        return small_layout()

    @abstractmethod
    def make_tier(self, layout: KVLayout, view: memoryview, place: Path) -> SecondaryTierManager:
        """A new tier, not started.

        Args:
            layout: as :meth:`layout`.
            view: the primary's slots.
            place: an existing directory. Two tiers with the same place share their blocks, if the tier persists.
        """

    @abstractmethod
    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        """The payload that the tier's storage has for a key; None when it has none."""

    @abstractmethod
    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        """Put a block into the storage, as a neighbour would that shares it."""

    @abstractmethod
    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        """Remove a block from the storage, behind the tier's back."""

    @abstractmethod
    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        """Change a bit of the payload that the storage has for a key."""

    def broken_storage(self, tier: SecondaryTierManager) -> AbstractContextManager[object] | None:  # noqa: ARG002
        """While entered, the storage refuses everything with an ``OSError``; None when that cannot happen."""
        return None
