"""From the statistics of a stack to the values of its metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TypeAlias

from asyncoffload.aio.durations import DurationCounts
from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.config import PRIMARY_NAME
from asyncoffload.core.primary import PrimaryStats
from asyncoffload.managers.call_counts import CallStats
from asyncoffload.metrics import catalogue as m
from asyncoffload.offloader import OffloaderStats
from asyncoffload.types import Status

Reading: TypeAlias = tuple[m.Metric, tuple[str, ...], float | DurationCounts]
"""A metric, the values of its labels, and its value."""

OWN_FIGURES: Mapping[str, m.Metric] = {
    "blocks": m.TIER_RESIDENT_BLOCKS,
    "bytes": m.TIER_RESIDENT_BYTES,
    "used_bytes": m.TIER_USED_BYTES,
    "quota_bytes": m.TIER_CAPACITY_BYTES,
    "evicted": m.TIER_EVICTED,
    "evicted_files": m.TIER_EVICTED,
    "in_flight": m.TIER_CASCADING,
}
"""Names in ``OffloaderStats.tiers`` that have a metric of their own."""

SHED_BY, REFUSED_AS = "shed_by_", "refused_"
"""What names in ``OffloaderStats.tiers`` begin with whose rest is the value of a label."""

_SLOT_STATES = ("ready", "writing", "doomed", "quarantined", "free")
_TIERS_OWN_BOUND = "tier"


def readings_of(stats: OffloaderStats) -> Iterator[Reading]:
    """Every value that the statistics tell; of a metric and its labels there is at most one."""
    yield from _verbs(stats)
    yield from _primary(stats.primary, stats.slot_bytes)
    yield from _device(stats)
    for tier, figures in stats.tiers.items():
        yield from _own_figures(tier, figures)
        yield from _shed(tier, stats)
    for tier, calls in stats.tier_calls.items():
        for call, counts in calls.items():
            yield from _tier_calls(tier, call, counts)
    for tier, pool in stats.pools.items():
        yield from _pool(tier, pool)


def _verbs(stats: OffloaderStats) -> Iterator[Reading]:
    for verb, calls in stats.verbs.items():
        for result in ("ok", "cancelled", "failed"):
            yield m.CALLS, (verb, result), getattr(calls, result)
        yield m.CALL_DURATION, (verb,), calls.durations
        yield m.CALLS_IN_FLIGHT, (verb,), calls.in_flight
    if (blocks := stats.blocks) is not None:
        yield m.LOOKUP_QUERIED, (), blocks.queried
        yield m.LOOKUP_HIT, (), blocks.found
        for tier, count in blocks.loaded.items():
            yield m.LOAD_HIT, (tier,), count
        for reason, count in blocks.missed.items():
            yield m.LOAD_MISS, (reason.value,), count
        yield m.LOAD_COMPUTED, (), blocks.computed
        for result in ("stored", "present", "shed"):
            yield m.STORE_BLOCKS, (result,), getattr(blocks, result)
        yield m.TIER_SHED, (PRIMARY_NAME, "host_bytes"), blocks.shed


def _primary(primary: PrimaryStats, slot_bytes: int) -> Iterator[Reading]:
    for state in _SLOT_STATES:
        yield m.SLOTS, (state,), getattr(primary, state)
    yield m.PINNED_SLOTS, (), primary.pinned
    yield m.DIRTY_SLOTS, (), primary.dirty
    yield m.TIER_RESIDENT_BLOCKS, (PRIMARY_NAME,), primary.ready
    yield m.TIER_RESIDENT_BYTES, (PRIMARY_NAME,), primary.ready * slot_bytes
    yield m.TIER_USED_BYTES, (PRIMARY_NAME,), (primary.slots - primary.free) * slot_bytes
    yield m.TIER_CAPACITY_BYTES, (PRIMARY_NAME,), primary.slots * slot_bytes
    yield m.TIER_EVICTED, (PRIMARY_NAME,), primary.evicted
    yield m.LOST, (), primary.lost
    yield m.DEFERRED, (), primary.deferred
    yield m.REFUSED, (), primary.refused


def _device(stats: OffloaderStats) -> Iterator[Reading]:
    for direction, copies in stats.copies.items():
        yield m.TIER_BYTES, (PRIMARY_NAME, direction), copies.nbytes
        yield m.COPY_DURATION, (direction,), copies.durations
        yield m.COPIES_IN_FLIGHT, (direction,), copies.in_flight
        yield m.COPIES_FAILED, (direction,), copies.failed
    for engine, count in stats.engines.items():
        yield m.ENGINE_BATCHES, (engine,), count.batches
        yield m.ENGINE_FRAGMENTS, (engine,), count.fragments
        yield m.ENGINE_BYTES, (engine,), count.nbytes


def _own_figures(tier: str, figures: Mapping[str, float]) -> Iterator[Reading]:
    for status in Status:
        if status is not Status.DONE:
            yield m.TIER_MISSES, (tier, status.value), figures.get(REFUSED_AS + status.value, 0)
    for name, value in figures.items():
        if name == "quota_bytes" and value < 0:
            yield m.TIER_CAPACITY_BYTES, (tier,), math.inf
        elif name in OWN_FIGURES:
            yield OWN_FIGURES[name], (tier,), float(value)
        elif not name.startswith((SHED_BY, REFUSED_AS)):
            yield m.TIER_STAT, (tier, name), float(value)


def _shed(tier: str, stats: OffloaderStats) -> Iterator[Reading]:
    """What a tier shed itself is counted by its own bounds where it tells them, and else as a whole."""
    own = {
        name.removeprefix(SHED_BY): float(value)
        for name, value in stats.tiers[tier].items()
        if name.startswith(SHED_BY)
    }
    if tier in stats.pools:
        own["max_queued_bytes"] = stats.pools[tier].shed_loads + stats.pools[tier].shed_stores
    for bound, count in {**stats.shed.get(tier, {}), **own}.items():
        if bound != _TIERS_OWN_BOUND or not own:
            yield m.TIER_SHED, (tier, bound), count


def _tier_calls(tier: str, call: str, counts: CallStats) -> Iterator[Reading]:
    yield m.TIER_CALL_DURATION, (tier, call), counts.durations
    yield m.TIER_CALLS_IN_FLIGHT, (tier, call), counts.in_flight
    yield m.TIER_CALL_ERRORS, (tier, call), counts.failed
    if call != "lookup":
        yield m.TIER_BYTES, (tier, call), counts.nbytes
        for status, count in counts.blocks.items():
            yield m.TIER_BLOCKS, (tier, call, status.value), count


def _pool(tier: str, pool: PoolStats) -> Iterator[Reading]:
    yield m.QUEUED_BYTES, (tier, "load"), pool.queued_load_bytes
    yield m.QUEUED_BYTES, (tier, "store"), pool.queued_store_bytes
    yield m.IO_THREADS, (tier,), pool.threads
    yield m.HUNG_THREADS, (tier,), pool.given_up_threads
    for priority, queue in pool.queues.items():
        labels = (tier, priority.name.lower())
        yield m.QUEUED_BLOCKS, labels, queue.tasks
        yield m.QUEUE_AGE, labels, queue.age
        yield m.QUEUE_WAIT, labels, queue.waits
