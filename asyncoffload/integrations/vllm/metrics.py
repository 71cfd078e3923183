"""The metrics of our tiers, declared for vLLM and filled from what the tiers count."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.types import DONE, JobResult

check_vllm()

from vllm.distributed.kv_transfer.kv_connector.v1.offloading.metrics import OffloadingConnectorStats  # noqa: E402
from vllm.v1.kv_offload.base import OffloadingCounterMetadata, OffloadingGaugeMetadata  # noqa: E402

KEYS = "vllm:asyncoffload_tier_keys"
SECONDS = "vllm:asyncoffload_tier_job_seconds"
PROBED = "vllm:asyncoffload_tier_probed_keys"
BLOCKS = "vllm:asyncoffload_tier_blocks"
BYTES = "vllm:asyncoffload_tier_bytes"
SCANNED = "vllm:asyncoffload_tier_scanned"
DIRECT_IO = "vllm:asyncoffload_tier_direct_io"

GAUGES = {BLOCKS: "blocks", BYTES: "bytes", SCANNED: "scanned", DIRECT_IO: "direct_io"}
"""Gauges, and what a tier's ``stats`` calls them."""

GAUGE_SECONDS = 1.0
"""How often gauges are read while no job ends."""


def tier_metrics() -> dict[str, Any]:
    """Every metric that a tier of ours may report, by name."""
    of_tier = ("tier",)
    return {
        KEYS: OffloadingCounterMetadata(
            "Blocks of finished jobs, by direction (load, store) and by what became of them (done, missing, corrupt, "
            "failed, shed, cancelled).",
            ("tier", "direction", "status"),
        ),
        SECONDS: OffloadingCounterMetadata(
            "Seconds from the submission of jobs to the collection of their results, summed, by direction.",
            ("tier", "direction"),
        ),
        PROBED: OffloadingCounterMetadata("Blocks that had to be looked for on disk.", of_tier),
        BLOCKS: OffloadingGaugeMetadata("Blocks that the tier knows to have.", of_tier),
        BYTES: OffloadingGaugeMetadata("Bytes that those blocks take.", of_tier),
        SCANNED: OffloadingGaugeMetadata("1 when the blocks of earlier processes are all known.", of_tier),
        DIRECT_IO: OffloadingGaugeMetadata("1 when files are read and written past the page cache.", of_tier),
    }


class TierMetrics:
    """What one tier has done since it was last asked.

    Args:
        tier: the tier's name, the value of the label ``tier``.
        stats: the tier's own counters and gauges.
        clock: seconds, monotonic.
    """

    def __init__(
        self, tier: str, stats: Callable[[], Mapping[str, float]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._tier = tier
        self._stats = stats
        self._clock = clock
        self._keys: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()
        self._probed = 0.0
        self._read_gauges_at = clock()

    def ended(self, result: JobResult, direction: str, seconds: float) -> None:
        """Enter a finished job."""
        n_done = result.outcomes.count(DONE)
        if n_done:
            self._keys[direction, "done"] += n_done
        if n_done < len(result.outcomes):
            self._keys.update((direction, outcome.status.value) for outcome in result.outcomes if outcome != DONE)
        self._seconds[direction] += seconds  # type: ignore[assignment]  # a Counter of floats

    def take(self) -> OffloadingConnectorStats | None:
        """Everything new since the last call; None when there is nothing."""
        now = self._clock()
        if not self._keys and now < self._read_gauges_at:
            return None
        report = OffloadingConnectorStats()
        for (direction, status), n_keys in self._keys.items():
            report.increase_counter(KEYS, n_keys, (self._tier, direction, status))
        for direction, seconds in self._seconds.items():
            report.increase_counter(SECONDS, seconds, (self._tier, direction))
        self._keys.clear()
        self._seconds.clear()
        self._read_gauges_at = now + GAUGE_SECONDS
        self._add_gauges(report, self._stats())
        return report

    def _add_gauges(self, report: OffloadingConnectorStats, stats: Mapping[str, float]) -> None:
        for name, source in GAUGES.items():
            if source in stats:
                report.set_gauge(name, stats[source], (self._tier,))
        probed = stats.get("probed", 0.0)
        if probed > self._probed:
            report.increase_counter(PROBED, probed - self._probed, (self._tier,))
            self._probed = probed
