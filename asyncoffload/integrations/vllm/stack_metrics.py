"""The metrics of the whole stack, declared for vLLM and filled from what our manager and the workers count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.memory.shared import SharedRegion
from asyncoffload.sync.manager import SyncOffloadingManager

check_vllm()

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats  # noqa: E402
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata  # noqa: E402

SLOTS = "vllm:asyncoffload_slots"
BLOCKS = "vllm:asyncoffload_blocks"
CASCADING = "vllm:asyncoffload_tier_cascading"
MOVED = "vllm:asyncoffload_tier_moved"
CHECKED = "vllm:asyncoffload_checked_loads"

Values = dict[tuple[str, tuple[str, ...]], int]
"""Numbers by name and labels."""

_STATES = ("ready", "pinned", "writing", "doomed", "quarantined", "free")
_EVENTS = ("stored", "evicted", "lost", "deferred", "refused")
_CHECKS = {"compared": 1, "unknown": 2}
"""Where in its notes a worker counts the loads that it has checked."""


def stack_metrics() -> dict[str, Any]:
    """Every metric that the whole stack may report, by name."""
    return {
        SLOTS: OffloadingGaugeMetadata(f"Slots of host memory, by state ({', '.join(_STATES)}).", ("state",)),
        BLOCKS: OffloadingCounterMetadata(
            "Blocks in host memory, by event: stored; evicted; evicted while no tier had a copy (lost); offered too "
            "rarely (deferred). And calls that found no room (refused).",
            ("event",),
        ),
        CASCADING: OffloadingGaugeMetadata("Blocks on their way to a tier.", ("tier",)),
        MOVED: OffloadingCounterMetadata(
            "Blocks by tier and event: promoted from it; stored, shed or failed on their way to it; asked of it in "
            "vain (refused_missing, refused_corrupt, and so on).",
            ("tier", "event"),
        ),
        CHECKED: OffloadingCounterMetadata(
            "With verify_loads: blocks loaded, by rank, that were compared with what was stored (compared), or that "
            "an earlier process stored (unknown).",
            ("rank", "result"),
        ),
    }


class StackMetrics:
    """What the stack has done since it was last asked.

    Args:
        shared: where the workers leave their counts.
        ranks: the workers.
    """

    def __init__(self, shared: SharedRegion, ranks: Sequence[str]) -> None:
        self._shared = shared
        self._ranks = ranks
        self._counters: Values = {}
        self._gauges: Values = {}

    def __call__(self, blocks: SyncOffloadingManager) -> OffloadingConnectorStats | None:
        """Everything new since the last call; None when there is nothing."""
        counters, gauges = self._read(blocks)
        if counters == self._counters and gauges == self._gauges:
            return None
        report = OffloadingConnectorStats()
        for (name, labels), count in counters.items():
            if count > (before := self._counters.get((name, labels), 0)):
                report.increase_counter(name, count - before, labels)
        for (name, labels), value in gauges.items():
            report.set_gauge(name, value, labels)
        self._counters, self._gauges = counters, gauges
        return report

    def _read(self, blocks: SyncOffloadingManager) -> tuple[Values, Values]:
        primary, tiers = blocks.stats(), blocks.tier_counts()
        counters: Values = {(BLOCKS, (event,)): getattr(primary, event) for event in _EVENTS}
        gauges: Values = {(SLOTS, (state,)): getattr(primary, state) for state in _STATES}
        for tier, counts in tiers.items():
            gauges[CASCADING, (tier,)] = counts.pop("in_flight")
            counters.update({(MOVED, (tier, event)): count for event, count in counts.items()})
        for rank in self._ranks:
            notes = self._shared.notes_of(rank)
            counters.update({(CHECKED, (rank, result)): int(notes[place]) for result, place in _CHECKS.items()})
        return counters, gauges
