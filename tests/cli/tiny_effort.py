"""As little as every measurement can do with."""

from __future__ import annotations

from asyncoffload.cli.device_bench.effort import KIB, MIB, Effort

TINY = Effort(
    rounds=3,
    seconds=0.0,
    transfer_bytes=2 * MIB,
    fragments=(4 * KIB, 64 * KIB),
    samples=10,
    sample_bytes=(256 * KIB, 512 * KIB),
    model_blocks=1,
    submitted_page_bytes=(8,),
    layer_bytes=2 * MIB,
    compute_seconds=0.001,
    pinned_bytes=4 * MIB,
    sweep_counts=(32,),
)
