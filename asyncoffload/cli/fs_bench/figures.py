"""What ``bench fs`` has to tell, as plain figures: the table, the JSON file and the plot are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Direction = Literal["store", "load"]
DIRECTIONS: tuple[Direction, Direction] = ("store", "load")


@dataclass(frozen=True, slots=True)
class Latency:
    """How long one block took, nothing else being under way, in milliseconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        """The latency of these samples, of which there is at least one."""
        p50, p99 = np.percentile(np.asarray(seconds) * 1e3, [50, 99])
        return cls(float(p50), float(p99))


@dataclass(frozen=True, slots=True)
class Flow:
    """One direction at one block size; speeds are medians of the rounds, in GB/s of 1e9 bytes of payload.

    Attributes:
        speed: the tier's.
        raw_speed: of bare threads.
        ratio: lower quartile, median and upper quartile of the rounds' ratios of the two.
        raw_threads: how many bare threads were best.
        latency: of a job of one block.
        raw_latency: of one file, by one thread.
    """

    speed: float
    raw_speed: float
    ratio: tuple[float, float, float]
    raw_threads: int
    latency: Latency
    raw_latency: Latency

    @classmethod
    def of(
        cls,
        nbytes: int,
        seconds: Sequence[float],
        raw_seconds: Sequence[float],
        raw_threads: int,
        latency: Latency,
        raw_latency: Latency,
    ) -> Flow:
        """The figures of rounds in which both moved ``nbytes``."""
        ratios = np.percentile([raw / ours for ours, raw in zip(seconds, raw_seconds, strict=True)], [25, 50, 75])
        low, middle, high = map(float, ratios)
        return cls(
            nbytes / 1e9 / float(np.median(seconds)),
            nbytes / 1e9 / float(np.median(raw_seconds)),
            (low, middle, high),
            raw_threads,
            latency,
            raw_latency,
        )


@dataclass(frozen=True, slots=True)
class SizeFigures:
    """The figures of one block size.

    Attributes:
        block_bytes: bytes of a block.
        blocks: blocks that each round moved.
        io_threads: threads of the tier that read, and as many that write.
        direct_io: whether the page cache was passed by.
        rounds: rounds that were measured.
        flows: the two directions.
        wrong_blocks: blocks that did not come back as they went out.
    """

    block_bytes: int
    blocks: int
    io_threads: int
    direct_io: bool
    rounds: int
    flows: Mapping[Direction, Flow]
    wrong_blocks: int


@dataclass(frozen=True, slots=True)
class FSReport:
    """Everything that was measured.

    Attributes:
        root: where.
        machine: what on, in words, by name.
        sizes: the block sizes.
        interrupted: whether that is not all of it.
    """

    root: str
    machine: Mapping[str, str]
    sizes: Sequence[SizeFigures]
    interrupted: bool = False

    @property
    def wrong_blocks(self) -> int:
        """Blocks that did not come back as they went out."""
        return sum(size.wrong_blocks for size in self.sizes)

    def as_json(self) -> dict[str, object]:
        """Plain values under names that stay."""
        return {
            "root": self.root,
            "machine": dict(self.machine),
            "interrupted": self.interrupted,
            "wrong_blocks": self.wrong_blocks,
            "sizes": [_size_json(size) for size in self.sizes],
        }


def _size_json(size: SizeFigures) -> dict[str, object]:
    return {
        "block_bytes": size.block_bytes,
        "blocks": size.blocks,
        "io_threads": size.io_threads,
        "direct_io": size.direct_io,
        "rounds": size.rounds,
        "wrong_blocks": size.wrong_blocks,
        **{direction: _flow_json(size.flows[direction]) for direction in DIRECTIONS},
    }


def _flow_json(flow: Flow) -> dict[str, object]:
    low, middle, high = flow.ratio
    return {
        "GBps": flow.speed,
        "raw_GBps": flow.raw_speed,
        "ratio": middle,
        "ratio_quartiles": [low, high],
        "raw_threads": flow.raw_threads,
        "latency_ms": {"p50": flow.latency.p50, "p99": flow.latency.p99},
        "raw_latency_ms": {"p50": flow.raw_latency.p50, "p99": flow.raw_latency.p99},
    }
