"""What the figures should reach, on each kind of device; the rest is reported without an aim."""

from __future__ import annotations

from asyncoffload.cli.device_bench.effort import KIB
from asyncoffload.cli.device_bench.figures import Aim

LOOP_OF_COPIES = Aim(5.0)
BOTH_AT_ONCE = Aim(0.90)
COMPUTE_BESIDE_LOAD = Aim(0.97)
TO_COROUTINE_P50_US = Aim(150.0, at_least=False)
TO_COROUTINE_P99_US = Aim(1300.0, at_least=False)


def speed(kind: str, page_bytes: int) -> Aim | None:
    """One direction, against one contiguous copy of as many bytes."""
    if page_bytes >= 64 * KIB:
        return Aim(0.92 if kind == "cuda" else 0.8)
    if kind == "cuda" and page_bytes >= 4 * KIB:
        return Aim(0.80 if page_bytes >= 16 * KIB else 0.50)
    return None


def on_cuda(kind: str, aim: Aim) -> Aim | None:
    """The aim on CUDA; elsewhere the figure is reported only."""
    return aim if kind == "cuda" else None


def submission_ms(engine: str) -> Aim:
    """On the caller's thread, 1,024 blocks of 32 layers: the driver takes a descriptor per page, others take ids."""
    return Aim(10.0 if engine in ("batched", "plain", "torch") else 1.0, at_least=False)
