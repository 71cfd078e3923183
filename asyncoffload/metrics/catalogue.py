"""Every metric: its name, its kind, its labels, and what it means."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PREFIX = "asyncoffload_"

Kind = Literal["counter", "gauge", "histogram"]


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric as Prometheus sees it.

    Attributes:
        name: with prefix, unit and, for counters, ``_total``.
        kind: counters and histograms only grow, for as long as the process lives.
        labels: names of the labels, in the order in which their values are given.
        help: what it counts or measures.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    help: str


def _metric(kind: Kind, name: str, labels: str, text: str) -> Metric:
    return Metric(PREFIX + name, kind, tuple(labels.split()), text)


# The calls of the stack.
CALLS = _metric(
    "counter",
    "calls_total",
    "call result",
    "Calls of lookup, load, prefetch and store that ended: ok, cancelled or failed.",
)
CALL_DURATION = _metric(
    "histogram",
    "call_duration_seconds",
    "call",
    "How long calls of lookup, load, prefetch and store took, however they ended.",
)
CALLS_IN_FLIGHT = _metric("gauge", "calls_in_flight", "call", "Calls of lookup, load, prefetch and store under way.")
LOOKUP_QUERIED = _metric("counter", "lookup_queried_blocks_total", "", "Blocks that lookups asked for.")
LOOKUP_HIT = _metric("counter", "lookup_hit_blocks_total", "", "Blocks of lookups that some tier had, as a prefix.")
LOAD_HIT = _metric(
    "counter", "load_hit_blocks_total", "tier", "Blocks that loads brought to the device, by the tier they came from."
)
LOAD_MISS = _metric(
    "counter", "load_miss_blocks_total", "reason", "Blocks of loads that did not come, by what ended the prefix."
)
LOAD_COMPUTED = _metric(
    "counter", "load_computed_blocks_total", "", "Blocks of loads that were left out, since computing them is quicker."
)
STORE_BLOCKS = _metric(
    "counter",
    "store_blocks_total",
    "result",
    "Blocks of stores: stored; present, or kept out by the store threshold; shed, as there was no room in time.",
)

# Tiers; "CPU" is the primary, which the device copies to and from.
TIER_BYTES = _metric(
    "counter", "tier_bytes_total", "tier direction", "Bytes of blocks that a tier gave (load) and took (store)."
)
TIER_BLOCKS = _metric(
    "counter",
    "tier_blocks_total",
    "tier direction outcome",
    "Blocks that a tier was told to load or store, by what became of them.",
)
TIER_MISSES = _metric(
    "counter", "tier_misses_total", "tier reason", "How often a tier could not give a block that was wanted, and why."
)
TIER_CALL_DURATION = _metric(
    "histogram", "tier_call_duration_seconds", "tier call", "How long calls of a tier took; one call has many blocks."
)
TIER_CALLS_IN_FLIGHT = _metric("gauge", "tier_calls_in_flight", "tier call", "Calls of a tier under way.")
TIER_CALL_ERRORS = _metric(
    "counter", "tier_call_errors_total", "tier call", "Calls of a tier that raised, or did not answer for every block."
)
TIER_CASCADING = _metric(
    "gauge", "tier_cascading_blocks", "tier", "Blocks on their way into a tier; their slots cannot be evicted."
)
TIER_SHED = _metric(
    "counter",
    "tier_shed_blocks_total",
    "tier bound",
    "Blocks that a tier put off, by the bound that they ran into.",
)
TIER_EVICTED = _metric(
    "counter", "tier_evicted_blocks_total", "tier", "Blocks that this process removed from a tier to make room."
)
TIER_APPEARED = _metric("counter", "tier_appeared_blocks_total", "tier", "Blocks that became available in a tier.")
TIER_REMOVED = _metric(
    "counter",
    "tier_removed_blocks_total",
    "tier",
    "Blocks that left a tier: evicted, corrupt, void, gone.",
)
TIER_RESIDENT_BLOCKS = _metric("gauge", "tier_resident_blocks", "tier", "Blocks that a tier knows to have.")
TIER_RESIDENT_BYTES = _metric("gauge", "tier_resident_bytes", "tier", "Bytes that those blocks take.")
TIER_USED_BYTES = _metric(
    "gauge", "tier_used_bytes", "tier", "Bytes that count against a tier's bound, of all processes that share it."
)
TIER_CAPACITY_BYTES = _metric(
    "gauge", "tier_capacity_bytes", "tier", "What those bytes may come to; +Inf where nothing bounds them."
)
TIER_STAT = _metric(
    "gauge", "tier_stat", "tier name", "What else Offloader.stats().tiers says of a tier, under its name there."
)
LOST = _metric("counter", "lost_blocks_total", "", "Blocks evicted from the primary while no other tier had a copy.")
DEFERRED = _metric("counter", "deferred_blocks_total", "", "Blocks offered less often than the store threshold.")
REFUSED = _metric("counter", "refused_writes_total", "", "Attempts to write to the primary that found no room.")
SLOTS = _metric(
    "gauge",
    "slots",
    "state",
    "Slots of the primary: ready, writing, doomed (void and still held), quarantined (left and still in use), free.",
)
DIRTY_SLOTS = _metric("gauge", "dirty_slots", "", "Ready slots whose blocks no other tier has a copy of.")
PINNED_SLOTS = _metric("gauge", "pinned_slots", "", "Ready slots that somebody reads, and that cannot be evicted.")

# The queues before the threads of a tier.
QUEUED_BLOCKS = _metric(
    "gauge", "tier_queued_blocks", "tier priority", "Blocks that wait for a thread of a tier, by priority."
)
QUEUED_BYTES = _metric(
    "gauge", "tier_queued_bytes", "tier direction", "Bytes that wait for a thread of a tier, by direction."
)
QUEUE_AGE = _metric(
    "gauge", "tier_queue_age_seconds", "tier priority", "How long the oldest block that waits has waited."
)
QUEUE_WAIT = _metric(
    "histogram", "tier_queue_wait_seconds", "tier priority", "How long slices of jobs waited before a thread took them."
)
IO_THREADS = _metric("gauge", "tier_io_threads", "tier", "Threads of a tier that are alive, hung ones included.")
HUNG_THREADS = _metric("gauge", "tier_hung_threads", "tier", "Threads of a tier that hang and have been replaced.")

# Between device and host memory.
COPY_DURATION = _metric(
    "histogram",
    "device_copy_duration_seconds",
    "direction",
    "How long copies to the device (load) and from it (store) took, from their submission.",
)
COPIES_IN_FLIGHT = _metric("gauge", "device_copies_in_flight", "direction", "Copies to or from the device under way.")
COPIES_FAILED = _metric(
    "counter", "device_copies_failed_total", "direction", "Copies that failed or were stopped before their end."
)
ENGINE_BATCHES = _metric("counter", "device_engine_batches_total", "engine", "Calls of each way of copying.")
ENGINE_FRAGMENTS = _metric(
    "counter", "device_engine_fragments_total", "engine", "Contiguous pieces copied, by the way of copying."
)
ENGINE_BYTES = _metric("counter", "device_engine_bytes_total", "engine", "Bytes copied, by the way of copying.")

# The event loop, and the metrics themselves.
LOOP_LAG = _metric(
    "histogram", "event_loop_lag_seconds", "", "By how much wake-ups of the event loop were late; sampled all the time."
)
LOOP_STALLED = _metric(
    "gauge",
    "event_loop_stalled_seconds",
    "",
    "How late the event loop is at this moment; it grows while it is stuck.",
)
EVENTS_LOST = _metric(
    "counter", "events_lost_total", "", "Events that were not counted, as the event loop was too late to take them."
)
COLLECTION_ERRORS = _metric(
    "counter", "collection_errors_total", "", "Scrapes that could not read the stack and repeated what was known."
)
BUILD_INFO = _metric("gauge", "build_info", "version", "Always 1; its label is the version of asyncoffload.")

METRICS = tuple(value for value in list(globals().values()) if isinstance(value, Metric))
