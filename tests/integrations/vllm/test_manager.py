"""The scheduler's side: vLLM's calls in vLLM's order, over our manager and a tier in memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import pytest

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.keys import OffloadKey
from asyncoffload.memory.region import HostRegion
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.testing import GatedTier
from asyncoffload.tiers.base import SecondaryTierManager
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import KVGroup, KVLayout, WritePolicy
from tests.integrations.vllm.tier_rig import request, some_keys, step

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [pytest.mark.vllm, pytest.mark.filterwarnings("default")]

LAYOUT = KVLayout("m", "int8", 16, (KVGroup((64,)),))


class Rig:
    """A scheduler's manager without an engine."""

    def __init__(self, n_slots: int = 8, *, write_policy: WritePolicy = "write_through", **arguments: Any) -> None:
        from asyncoffload.integrations.vllm.manager import AsyncOffloadingManager, places_of

        self.region = HostRegion(n_slots, 64)
        self.tier = GatedTier(ExampleSecondaryTierManager(LAYOUT, self.region.view, "disk"))
        tiers: list[SecondaryTierManager] = [self.tier]
        self.now = 1000.0
        self.blocks = SyncOffloadingManager(
            self.region, tiers, block_size=16, write_policy=write_policy, clock=lambda: self.now
        )
        self.closed = 0
        arguments.setdefault("drain_seconds", 30)
        self.manager = AsyncOffloadingManager(
            self.blocks, places_of({"disk": "fs"}), on_shutdown=self._close, clock=lambda: self.now, **arguments
        )
        self._closing = ExitStack()
        self._closing.callback(self.region.close)
        self._closing.callback(LoopThread.shared().run, self.tier.aclose)
        self._closing.callback(self.manager.shutdown)

    def close(self) -> None:
        self.tier.before.load.open()
        self._closing.close()
        assert self.closed == 1

    def _close(self) -> None:
        self.closed += 1

    def begin(self, name: str, **filters: Any) -> Any:
        context = request(name)
        for what, value in filters.items():
            setattr(context, what, value)
        self.manager.on_new_request(context)
        return context

    def store(self, keys: Sequence[OffloadKey], context: Any) -> None:
        output = self.manager.prepare_store(keys, context)
        assert output is not None
        for key, slot in zip(output.keys_to_store, output.store_spec.slots.tolist(), strict=True):
            self.region.slot(slot)[:32] = key[:32]
        self.manager.complete_store(set(output.keys_to_store), context)

    def answers(self, keys: Sequence[OffloadKey], context: Any) -> list[str]:
        return [self.manager.lookup(key, context).name for key in keys]

    def steps_until(self, expected: list[str], keys: Sequence[OffloadKey], context: Any) -> None:
        """Step until the answers are these; the test's time limit bounds it. Leaves the step open."""
        while self.answers(keys, context) != expected:
            self.manager.on_schedule_end(step())

    def settle(self) -> None:
        self.blocks.drain_jobs(30)

    def push_to_the_tier(self, keys: Sequence[OffloadKey]) -> None:
        """Store blocks, and others after them, until these are in the tier only."""
        writer = self.begin("writer")
        self.store(keys, writer)
        self.settle()
        self.store(some_keys(self.region.n_slots, first=1000), writer)
        self.settle()
        self.manager.on_request_finished(writer)


@pytest.fixture
def rig() -> Iterator[Rig]:
    rig = Rig()
    yield rig
    rig.close()


def test_a_request_from_its_first_step_to_its_last(rig: Rig) -> None:
    keys = some_keys(4)
    context = rig.begin("first")
    assert rig.answers(keys[:1], context) == ["RETRY"]
    rig.steps_until(["MISS"], keys[:1], context)
    rig.manager.on_schedule_end(step(["first"]))
    for part in (keys[:2], keys[2:]):
        assert rig.manager.prepare_store(part, context) is not None
    rig.manager.on_request_finished(context)
    rig.manager.complete_store(set(keys[2:]), context)
    assert rig.manager._requests.keys() == {"first"}
    rig.manager.complete_store(set(keys[:2]), context)
    assert rig.manager._requests == {}

    context = rig.begin("second")
    assert rig.answers(keys, context) == ["HIT"] * 4
    spec = rig.manager.prepare_load(keys[1:], context)
    assert len(set(spec.slots.tolist())) == 3
    rig.manager.on_schedule_end(step(["second"]))
    rig.manager.on_schedule_end(step())
    rig.settle()
    assert rig.blocks.stats().pinned == 3
    rig.manager.complete_load(set(keys[1:]), context)
    assert rig.blocks.stats().pinned == 0
    rig.manager.on_request_finished(context)
    assert rig.manager._requests == {}


def test_a_request_that_ended_before_it_began(rig: Rig) -> None:
    context = rig.begin("untracked")
    rig.manager.on_request_finished(context)
    assert rig.manager._requests == {}


def test_blocks_come_from_the_tier_between_steps_and_say_so(rig: Rig) -> None:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource

    keys = some_keys(3)
    rig.push_to_the_tier(keys)
    context = rig.begin("reads")
    rig.tier.before.load.shut()
    rig.steps_until(["HIT_PENDING"] * 3, keys, context)
    rig.manager.on_schedule_end(step())
    assert rig.manager.has_pending_work()
    rig.tier.before.load.open()
    rig.steps_until(["HIT"] * 3, keys, context)
    spec = rig.manager.prepare_load(keys, context)
    for key, slot in zip(keys, spec.slots.tolist(), strict=True):
        assert bytes(rig.region.slot(slot)[:32]) == key[:32]
    assert {rig.manager.get_load_source(key, context) for key in keys} == {CacheHitSource.DISK}
    rig.manager.on_schedule_end(step())
    rig.manager.complete_load(set(keys), context)
    new = some_keys(1, first=50)
    rig.store(new, context)
    assert rig.manager.get_load_source(new[0], context) is CacheHitSource.HOST
    rig.manager.on_request_finished(context)
    rig.settle()
    assert not rig.manager.has_pending_work()


def test_a_request_that_may_not_read_the_tier_misses(rig: Rig) -> None:
    from vllm.v1.kv_offload.base import Medium, TierFilter, TierMatcher

    keys = some_keys(1)
    rig.push_to_the_tier(keys)
    context = rig.begin("picky", load_tier_filter=TierFilter((TierMatcher(Medium.CPU),)))
    assert rig.answers(keys, context) == ["MISS"]
    assert rig.answers(some_keys(1, first=1000), context) == ["HIT"]
    rig.manager.on_schedule_end(step())
    rig.manager.on_request_finished(context)


def test_a_tier_that_is_too_slow_is_a_miss_for_the_request_that_waited() -> None:
    rig = Rig(load_seconds=5)
    keys = some_keys(2)
    rig.push_to_the_tier(keys)
    context = rig.begin("reads")
    rig.tier.before.load.shut()
    rig.steps_until(["HIT_PENDING"] * 2, keys, context)
    rig.manager.on_schedule_end(step())
    rig.now += 4
    assert rig.answers(keys, context) == ["HIT_PENDING"] * 2
    rig.now += 2
    assert rig.answers(keys, context) == ["MISS"] * 2
    rig.manager.on_schedule_end(step())
    rig.manager.on_request_finished(context)
    rig.close()


def test_a_request_that_waits_for_the_device_does_not_lose_its_patience_with_the_tier() -> None:
    rig = Rig(load_seconds=5)
    keys = some_keys(2)
    rig.push_to_the_tier(keys)
    context = rig.begin("reads")
    rig.tier.before.load.shut()
    rig.steps_until(["HIT_PENDING"] * 2, keys, context)
    for _ in range(2):
        rig.manager.on_schedule_end(step())
    rig.now += 60
    for _ in range(2):
        assert rig.answers(keys, context) == ["HIT_PENDING"] * 2
        rig.manager.on_schedule_end(step())
        rig.now += 4
    assert rig.answers(keys, context) == ["MISS"] * 2
    rig.manager.on_schedule_end(step())
    rig.manager.on_request_finished(context)
    rig.close()


def test_what_a_request_computes_instead_of_loading_it_does_not_wait_for_it(rig: Rig) -> None:
    keys = some_keys(16)
    rig.push_to_the_tier(keys[8:])
    rig.push_to_the_tier(keys[:8])
    first, second = rig.begin("first"), rig.begin("second")
    rig.steps_until(["HIT"] * 8, keys[:8], first)
    rig.manager.on_schedule_end(step(["first"]))
    rig.steps_until(["HIT"] * 8, keys[8:], second)
    rig.manager.on_schedule_end(step())
    rig.manager.on_request_finished(first)
    rig.manager.on_request_finished(second)


def test_what_is_read_for_requests_is_touched(rig: Rig) -> None:
    keys = some_keys(8)
    context = rig.begin("reads")
    rig.store(keys, context)
    rig.settle()
    assert rig.answers(keys[:3], context) == ["HIT"] * 3
    rig.manager.prepare_load(keys[:3], context)
    rig.manager.on_schedule_end(step())
    rig.manager.complete_load(set(keys[:3]), context)
    rig.manager.on_schedule_end(step())
    rig.store(some_keys(5, first=50), context)
    assert rig.answers(keys[:3], context) == ["HIT"] * 3
    rig.manager.on_schedule_end(step())


def test_no_room_is_none_and_nothing_is_kept_of_it(rig: Rig) -> None:
    context = rig.begin("large")
    assert rig.manager.prepare_store(some_keys(9), context) is None
    rig.manager.on_request_finished(context)
    assert rig.manager._requests == {}


def test_after_a_reset_slots_are_left_alone_until_the_workers_have_waited() -> None:
    rig = Rig(steps_in_flight=2)
    keys = some_keys(6)
    context = rig.begin("reads and writes")
    rig.store(keys[:3], context)
    rig.settle()
    assert rig.answers(keys[:3], context) == ["HIT"] * 3
    rig.manager.prepare_load(keys[:3], context)
    rig.manager.on_schedule_end(step())
    assert rig.manager.prepare_store(keys[3:], context) is not None
    done = rig.begin("done")
    assert rig.manager.prepare_store(some_keys(1, first=50), done) is not None
    rig.manager.on_request_finished(done)

    rig.manager.reset_cache()
    assert rig.manager._requests.keys() == {"reads and writes"}
    assert (rig.blocks.stats().doomed, rig.blocks.stats().free) == (7, 1)
    # vLLM stores the same blocks anew, but as long as the old ones are held nothing is accepted.
    output = rig.manager.prepare_store(keys, context)
    assert output is not None
    assert output.keys_to_store == []
    for _ in range(2):
        rig.manager.on_schedule_end(step())
        assert rig.blocks.stats().doomed == 7
    rig.manager.on_schedule_end(step())
    assert (rig.blocks.stats().doomed, rig.blocks.stats().free) == (0, 8)
    rig.store(keys, context)
    assert rig.answers(keys, context) == ["HIT"] * 6
    rig.manager.on_schedule_end(step())
    rig.manager.on_request_finished(context)
    assert rig.manager._requests == {}
    rig.close()


def test_events_say_whose_blocks_they_are() -> None:
    from vllm.v1.kv_offload.base import Medium

    silent = Rig()
    silent.store(some_keys(1), silent.begin("writes"))
    assert list(silent.manager.take_events()) == []
    silent.close()
    rig = Rig(announce=True)
    keys = some_keys(2)
    rig.store(keys, rig.begin("writes"))
    rig.settle()
    found: set[Any] = set()
    while len(found) < 4:
        for event in rig.manager.take_events():
            found |= {(event.medium, event.ownership, event.removed, key) for key in event.keys}
        rig.settle()
    places = ((Medium.CPU, None), (Medium.STORAGE, "disk"))
    assert found == {(*place, False, key) for place in places for key in keys}
    rig.close()


@pytest.mark.parametrize("flush", [False, True])
def test_a_stopping_engine_writes_what_no_tier_has_if_it_is_told_to(flush: bool) -> None:
    rig = Rig(64, write_policy="demote", flush_at_shutdown=flush)
    rig.store(some_keys(4), rig.begin("writes"))
    rig.manager.shutdown()
    assert rig.tier.inner.get_num_blocks() == (4 if flush else 0)
    rig.close()


def test_a_stopping_engine_waits_for_the_tiers_and_closes_once(rig: Rig) -> None:
    keys = some_keys(4)
    rig.store(keys, rig.begin("writes"))
    rig.manager.shutdown()
    assert rig.tier.inner.get_num_blocks() == 4
    rig.manager.shutdown()
