"""A tiering manager over a real region and gated tiers, and what tests do with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from asyncoffload.core.policies import EvictionPolicy
from asyncoffload.errors import TierUnavailable
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.managers.tiering import TieringOffloadingManager
from asyncoffload.memory.region import HostRegion
from asyncoffload.testing import ManualClock
from asyncoffload.types import ANONYMOUS, CPULoadStoreSpec, DirtyVictims, RequestContext, WritePolicy
from tests.managers.gated_tier import SLOT_BYTES, GatedTier, content_of

CANARY = bytes([0xCA]) * SLOT_BYTES


def keys_of(n: int, start: int = 0) -> list[OffloadKey]:
    """``n`` keys, all different for different numbers."""
    return [make_key(index.to_bytes(8, "big")) for index in range(start, start + n)]


class Stack:
    """A region, gated tiers and a manager.

    Args:
        n_slots: how many blocks the primary holds.
        n_tiers: how many tiers there are, named ``"t0"``, ``"t1"`` and so on.
        promoting: how many blocks may be under promotion at a time.
        cascading: how many blocks may be on their way to each tier at a time.
        store_threshold, policy, write_policy, dirty_victims: as the manager takes them.
    """

    def __init__(
        self,
        n_slots: int,
        n_tiers: int = 1,
        *,
        promoting: int = 1024,
        cascading: int = 1024,
        store_threshold: int = 1,
        policy: EvictionPolicy | None = None,
        write_policy: WritePolicy = "write_through",
        dirty_victims: DirtyVictims = "drop",
    ) -> None:
        self.clock = ManualClock()
        self.region = HostRegion(n_slots, SLOT_BYTES)
        self.tiers = [GatedTier(self.region.view, f"t{index}") for index in range(n_tiers)]
        self.manager = TieringOffloadingManager(
            self.region,
            self.tiers,
            promotion_bytes=promoting * SLOT_BYTES,
            cascade_blocks=cascading,
            store_threshold=store_threshold,
            policy=policy,
            write_policy=write_policy,
            dirty_victims=dirty_victims,
            clock=self.clock,
        )

    @property
    def tier(self) -> GatedTier:
        """The first tier."""
        return self.tiers[0]

    async def store(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, wait: bool = False) -> None:
        """Store blocks with their content, as a device would."""
        async with self.manager.storing(keys, ctx, wait=wait) as lease:
            for key, slot in zip(lease.keys, lease.spec.block_ids.tolist(), strict=True):
                self.region.slot(slot)[:] = content_of(key)

    async def load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """Load blocks and check their bytes; returns how many there were."""
        async with self.manager.loading(keys, ctx) as lease:
            self.check(lease.keys, lease.spec)
            return len(lease.keys)

    def check(self, keys: Iterable[OffloadKey], spec: CPULoadStoreSpec) -> None:
        """Make sure that slots hold the content of these keys."""
        for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
            assert bytes(self.region.slot(slot)) == content_of(key), f"slot {slot} does not hold {key.hex()}"

    def guard(self) -> None:
        """Fill every slot with canaries."""
        for slot in range(self.region.n_slots):
            self.region.slot(slot)[:] = CANARY

    def assert_nothing_left(self) -> None:
        """No pin, ticket, fetch, op, quarantined or held slot is left."""
        stats = self.manager.stats()
        left = {name: getattr(stats, name) for name in ("pinned", "writing", "doomed", "quarantined")}
        assert not any(left.values()), left
        planner = self.manager._planner
        assert planner.idle, planner
        assert not planner._reads.book.open
        assert not planner._reads.book.fetches
        assert not planner._promotions._in_flight
        assert not self.manager._moves
        assert not self.manager._running
        assert not any(map(self.region.is_held, range(self.region.n_slots)))
        assert stats.ready + stats.free == stats.slots


@asynccontextmanager
async def tiered(n_slots: int, n_tiers: int = 1, **options: Any) -> AsyncIterator[Stack]:
    """A stack that ends well: every gate is opened, everything that runs ends, and nothing is left over."""
    stack = Stack(n_slots, n_tiers, **options)
    try:
        yield stack
    except BaseException:
        for tier in stack.tiers:
            tier.open_all()
        with suppress(TierUnavailable):
            await stack.manager.aclose(drain=False, timeout=1.0)
        raise
    for tier in stack.tiers:
        tier.open_all()
    await stack.manager.aclose()
    stack.assert_nothing_left()


async def until(condition: Callable[[], object]) -> None:
    """Give the loop turns until something holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never came to hold")


async def turns(n: int = 20) -> None:
    """Give everybody who can go on the chance to do so."""
    for _ in range(n):
        await asyncio.sleep(0)
