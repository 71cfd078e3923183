"""Which way of copying suits a batch: pure, and with its reasons in words."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from asyncoffload.device.base import Direction

LARGE_FRAGMENT = 64 << 10
FEW_FRAGMENTS = 32
LONG_HOST_RUN = 256 << 10


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where one way of copying begins to beat another.

    The defaults come from public reports on H100 and H200 over PCIe, not from measurements of this package:
    batched driver copies reach 4-7 GB/s at 4-16 KiB to the device, 28-44 at 28 KiB and 39-52 at 64 KiB (vllm#42212);
    for few fragments the driver is ahead of a kernel whatever their size (cross-over between 16 and 64 fragments of
    8 KiB, between 64 and 256 of 28 KiB); a kernel that reads host memory may stop at 35 GB/s while one that writes
    it reaches 53 (nvbandwidth#24).

    Attributes:
        load_large_fragment, store_large_fragment: bytes of a fragment from which the copy engines are fed with the
            fragments themselves.
        few_fragments: up to so many fragments, driver copies cost less than a kernel takes to start.
        long_host_run: bytes of neighbouring host memory from which staging pays: one copy of the run, and a kernel in
            device memory that spreads it.
        stage_loads, stage_stores: whether staging, where it pays, is preferred to a kernel on host memory.
    """

    load_large_fragment: int = LARGE_FRAGMENT
    store_large_fragment: int = LARGE_FRAGMENT
    few_fragments: int = FEW_FRAGMENTS
    long_host_run: int = LONG_HOST_RUN
    stage_loads: bool = True
    stage_stores: bool = False


@dataclass(frozen=True, slots=True)
class Chosen:
    """The name of a way of copying, and why it was chosen: for people."""

    name: str
    reason: str


def choose(
    direction: Direction,
    *,
    fragment_bytes: int,
    n_fragments: int,
    host_run_bytes: int,
    aligned: bool,
    pinned: bool,
    available: Collection[str],
    thresholds: Thresholds,
) -> Chosen:
    """Choose among the ways of copying that are available.

    Args:
        fragment_bytes: mean length of the fragments, neighbours merged.
        n_fragments: how many.
        host_run_bytes: mean length of the runs that the fragments form on the host side alone.
        aligned: every address and length is a multiple of 8 bytes.
        pinned: the host side is pinned memory.
        available: names; ``"torch"`` or ``"plain"`` at least.

    Returns:
        A member of ``available``.

    Raises:
        ValueError: nothing that copies anything is available.
    """
    size = f"{n_fragments} fragments of {_bytes(fragment_bytes)}"
    if not pinned:
        return _first(available, ("plain", "batched", "torch"), "the host memory is not pinned, so copies block")
    if not aligned:
        return _driver(available, f"{size}, not aligned to 8 bytes: only the copy engines take any address")
    large = thresholds.load_large_fragment if direction == "load" else thresholds.store_large_fragment
    if fragment_bytes >= large:
        return _driver(available, f"{size}: from {_bytes(large)} on the copy engines reach the link's speed")
    if n_fragments <= thresholds.few_fragments:
        return _driver(available, f"{size}: up to {thresholds.few_fragments} cost less than a kernel's start")
    stage = thresholds.stage_loads if direction == "load" else thresholds.stage_stores
    if stage and "staged" in available and host_run_bytes >= thresholds.long_host_run:
        return Chosen(
            "staged", f"{size} in host runs of {_bytes(host_run_bytes)}: one copy a run, spread on the device"
        )
    if "kernel" in available:
        why = "reads them from" if direction == "load" else "writes them to"
        return Chosen("kernel", f"{size} in host runs of {_bytes(host_run_bytes)}: one kernel {why} host memory")
    return _driver(available, f"{size}, but no kernel can be used here")


def _driver(available: Collection[str], reason: str) -> Chosen:
    return _first(available, ("batched", "plain", "torch"), reason)


def _first(available: Collection[str], names: tuple[str, ...], reason: str) -> Chosen:
    for name in names:
        if name in available:
            return Chosen(name, reason if name == names[0] else f"{reason}; {names[0]} copies are not to be had")
    raise ValueError(f"none of {names} is available, only {sorted(available)}")


def _bytes(n: int) -> str:
    return f"{n >> 10} KiB" if n >= 10 << 10 else f"{n} bytes"
