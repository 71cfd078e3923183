"""A step-driven manager over a real region, gated tiers and a loop in a thread, and what tests do with it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import InternalError, TierUnavailable
from asyncoffload.keys import OffloadKey
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.testing import Gate, ManualClock
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    DirtyVictims,
    LookupResult,
    RequestContext,
    WritePolicy,
)
from tests.managers.gated_tier import SLOT_BYTES, GatedTier, content_of
from tests.managers.tiered_stack import keys_of

__all__ = ["HIT", "MISS", "PENDING", "RETRY", "SteppingStack", "keys_of", "named", "stepping"]

HIT, MISS = LookupResult.HIT, LookupResult.MISS
RETRY, PENDING = LookupResult.RETRY, LookupResult.HIT_PENDING

LOOP_SECONDS = 60.0
"""How long the loop may take for anything; longer than the time limit of a test would let it."""


def named(request_id: str) -> RequestContext:
    """The context of a request."""
    return RequestContext(request_id=request_id)


class SteppingStack:
    """A region, gated tiers, a manager, and the loop behind it.

    Args:
        n_slots: how many blocks the primary holds.
        n_tiers: how many tiers there are, named ``"t0"``, ``"t1"`` and so on.
        promoting: how many blocks may be under promotion at a time.
        cascading: how many blocks may be on their way to each tier at a time.
        store_threshold: a block is stored from this offer on.
        write_policy, dirty_victims: as the manager takes them.
        loop: where the tiers live.
    """

    def __init__(
        self,
        n_slots: int,
        n_tiers: int = 1,
        *,
        promoting: int = 1024,
        cascading: int = 1024,
        store_threshold: int = 1,
        write_policy: WritePolicy = "write_through",
        dirty_victims: DirtyVictims = "drop",
        loop: LoopThread | None = None,
    ) -> None:
        self.clock = ManualClock()
        self.loop = LoopThread.shared() if loop is None else loop
        self.region = HostRegion(n_slots, SLOT_BYTES)
        self.tiers = [GatedTier(self.region.view, f"t{index}") for index in range(n_tiers)]
        self.manager = SyncOffloadingManager(
            self.region,
            self.tiers,
            promotion_bytes=promoting * SLOT_BYTES,
            cascade_blocks=cascading,
            store_threshold=store_threshold,
            write_policy=write_policy,
            dirty_victims=dirty_victims,
            clock=self.clock,
            loop=loop,
        )

    @property
    def tier(self) -> GatedTier:
        """The first tier."""
        return self.tiers[0]

    # ---- on the loop

    def on_loop(self, call: Callable[[], object]) -> None:
        """Do something to a tier, on its own thread."""

        async def do() -> None:
            call()

        self.loop.run(do, LOOP_SECONDS)

    def reached(self, gate: Gate[Any], n: int = 1) -> None:
        """Wait until ``n`` jobs stand before a gate."""
        self.loop.run(lambda: gate.reached(n), LOOP_SECONDS)

    def until(self, condition: Callable[[], object]) -> None:
        """Let the loop run, without taking the core, until something holds."""

        async def look() -> None:
            for _ in iter(lambda: bool(condition()), True):
                await asyncio.sleep(0)

        self.loop.run(look, LOOP_SECONDS)

    def open_all(self) -> None:
        """Open every gate."""
        for tier in self.tiers:
            self.on_loop(tier.open_all)

    # ---- on this thread

    def ask(self, keys: Iterable[OffloadKey], ctx: RequestContext = ANONYMOUS) -> list[LookupResult]:
        """Look up each of the keys."""
        return [self.manager.lookup_block(key, ctx) for key in keys]

    def store(self, keys: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
        """Store blocks with their content, as a device would; returns what was evicted for them."""
        output = self.manager.prepare_store(keys)
        assert output is not None
        self.fill(output.keys_to_store, output.store_spec)
        self.manager.complete_store(output.keys_to_store, spec=output.store_spec)
        return output.evicted_keys

    def fill(self, keys: Iterable[OffloadKey], spec: object) -> None:
        """Write the content of keys into their slots."""
        assert isinstance(spec, CPULoadStoreSpec)
        for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
            self.region.slot(slot)[:] = content_of(key)

    def check(self, keys: Iterable[OffloadKey], spec: CPULoadStoreSpec) -> None:
        """Make sure that slots hold the content of these keys."""
        for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
            assert bytes(self.region.slot(slot)) == content_of(key), f"slot {slot} does not hold {key.hex()}"

    def load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
        """Load ready blocks and check their bytes."""
        self.check(keys, self.manager.prepare_load(keys, ctx))
        self.manager.complete_load(keys, ctx)

    def check_resident(self) -> None:
        """Every block that counts as readable has its bytes."""
        for key, slot in self.manager._primary.table.ready.items():
            assert bytes(self.region.slot(slot)) == content_of(key), f"slot {slot} does not hold {key.hex()}"

    def assert_nothing_left(self) -> None:
        """No pin, search, fetch, op, promise, quarantined or held slot is left."""
        manager = self.manager
        stats = manager.stats()
        left = {name: getattr(stats, name) for name in ("pinned", "writing", "doomed", "quarantined")}
        assert not any(left.values()), left
        planner, conductor = manager._planner, manager._conductor
        assert planner.idle, planner
        assert not planner._reads.book.open
        assert not planner._reads.book.fetches
        assert not planner._reads.book._woken
        assert not planner._promotions._in_flight
        assert not conductor.running
        assert not conductor._inbox
        assert not manager._requests._searches
        assert not manager._promises.slots()
        assert not any(map(self.region.is_held, range(self.region.n_slots)))
        assert stats.ready + stats.free == stats.slots
        assert not manager._handover.stepper


@contextmanager
def stepping(n_slots: int, n_tiers: int = 1, **options: Any) -> Iterator[SteppingStack]:
    """A stack that ends well: every gate is opened, everything that runs ends, and nothing is left over."""
    stack = SteppingStack(n_slots, n_tiers, **options)
    try:
        yield stack
    except BaseException:
        stack.open_all()
        with suppress(TierUnavailable, InternalError):
            stack.manager.shutdown(timeout=1.0)
        raise
    stack.open_all()
    stack.manager.shutdown()
    stack.assert_nothing_left()
    stack.check_resident()
