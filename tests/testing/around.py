"""Hooks for a tier inside others."""

from __future__ import annotations

from contextlib import AbstractContextManager

from asyncoffload.keys import OffloadKey
from asyncoffload.testing import TierHooks, TierLaws, WrappedTier
from asyncoffload.tiers.base import SecondaryTierManager


def innermost(tier: SecondaryTierManager) -> SecondaryTierManager:
    return innermost(tier.inner) if isinstance(tier, WrappedTier) else tier


class LawsAround(TierLaws):
    """The laws for what is wrapped around a tier whose own hooks are known. Derive, and say how to wrap it."""

    __test__ = False
    inside: TierHooks

    async def raw_read(self, tier: SecondaryTierManager, key: OffloadKey) -> bytes | None:
        return await self.inside.raw_read(innermost(tier), key)

    async def raw_write(self, tier: SecondaryTierManager, key: OffloadKey, payload: bytes) -> None:
        await self.inside.raw_write(innermost(tier), key, payload)

    async def raw_delete(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        await self.inside.raw_delete(innermost(tier), key)

    async def raw_damage(self, tier: SecondaryTierManager, key: OffloadKey) -> None:
        await self.inside.raw_damage(innermost(tier), key)

    def broken_storage(self, tier: SecondaryTierManager) -> AbstractContextManager[object] | None:
        return self.inside.broken_storage(innermost(tier))
