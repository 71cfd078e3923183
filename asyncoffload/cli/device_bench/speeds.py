"""How fast blocks move, against the fastest copy there is, and against the loop that everybody writes first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from asyncoffload.cli.device_bench import aims
from asyncoffload.cli.device_bench.blocks import LAYERS, Blocks, blocks_of, mover_of
from asyncoffload.cli.device_bench.effort import KIB, Effort
from asyncoffload.cli.device_bench.figures import RATIO, Figure, gigabytes_per_second, size_name
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.timing import Pairs
from asyncoffload.device.base import Direction

DIRECTIONS: Sequence[Direction] = ("store", "load")

MODEL_PAGE_BYTES = 64 * KIB
"""A block of 16 tokens of one layer of an 8 B model: 8 KV heads of 128 elements of bf16, K and V."""


BOTH_PAGE_BYTES = (64 * KIB, 16 * KIB)


def each_direction(side: Side, effort: Effort, page_bytes: int) -> Iterator[Figure]:
    """One transfer at a time, in pages of this size."""
    n_blocks = effort.transfer_bytes // (LAYERS * page_bytes)
    with (
        side.raw(effort.transfer_bytes) as raw,
        blocks_of(side, page_bytes=page_bytes, n_blocks=n_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm(*DIRECTIONS)
        pairs = {d: Pairs(lambda d=d: mover.move(d), lambda d=d: raw.one(d)) for d in DIRECTIONS}  # type: ignore[misc]
        for _ in effort.paced():
            blocks.poison()
            for direction in DIRECTIONS:
                pairs[direction].measure()
            blocks.check(*DIRECTIONS)
        for direction, pair in pairs.items():
            yield Figure.of(
                f"{direction}, pages of {size_name(page_bytes)}",
                pair.ratios,
                RATIO,
                aim=aims.speed(side.kind, page_bytes),
                notes={**_speeds(side, blocks, pair), **mover.chosen(direction)},
            )


def both_directions(side: Side, effort: Effort, page_bytes: int) -> Iterator[Figure]:
    """A store and a load at once, against a raw copy each way at once."""
    n_blocks = effort.transfer_bytes // (LAYERS * page_bytes)
    with (
        side.raw(effort.transfer_bytes) as raw,
        blocks_of(side, page_bytes=page_bytes, n_blocks=n_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm(*DIRECTIONS)
        pair = Pairs(mover.both, raw.both)
        for _ in effort.paced():
            blocks.poison()
            pair.measure()
            blocks.check(*DIRECTIONS)
        yield Figure.of(
            f"store and load at once, pages of {size_name(page_bytes)}",
            pair.ratios,
            RATIO,
            aim=aims.on_cuda(side.kind, aims.BOTH_AT_ONCE) if page_bytes >= 64 * KIB else None,
            notes=_speeds(side, blocks, pair, times=2),
        )


def against_a_loop(side: Side, effort: Effort, direction: Direction) -> Iterator[Figure]:
    """Against ``tensor.copy_(non_blocking=True)`` for every block and layer."""
    with (
        blocks_of(side, page_bytes=MODEL_PAGE_BYTES, n_blocks=effort.model_blocks) as blocks,
        mover_of(blocks) as mover,
    ):
        mover.warm(direction)
        pair = Pairs(lambda: mover.move(direction), lambda: _loop(blocks, direction))
        for _ in effort.paced():
            blocks.poison()
            pair.measure()
            blocks.check(direction)
        yield Figure.of(
            f"{direction} of {blocks.n_blocks} blocks x {LAYERS} layers",
            pair.ratios,
            RATIO,
            aim=aims.on_cuda(side.kind, aims.LOOP_OF_COPIES),
            notes={
                "ours_GBps": gigabytes_per_second(blocks.nbytes, pair.ours),
                "loop_GBps": gigabytes_per_second(blocks.nbytes, pair.reference),
                **mover.chosen(direction),
            },
        )


def _loop(blocks: Blocks, direction: Direction) -> None:
    host = blocks.region.tensor.view(-1, blocks.layers, blocks.page_bytes)
    if direction == "store":
        for block, slot in zip(blocks.stored_blocks.tolist(), blocks.stored_slots.tolist(), strict=True):
            for layer, cache in enumerate(blocks.caches):
                host[slot, layer].copy_(cache[block], non_blocking=True)
    else:
        for block, slot in zip(blocks.loaded_blocks.tolist(), blocks.loaded_slots.tolist(), strict=True):
            for layer, cache in enumerate(blocks.caches):
                cache[block].copy_(host[slot, layer], non_blocking=True)
    blocks.side.settle()


def _speeds(side: Side, blocks: Blocks, pair: Pairs, *, times: int = 1) -> dict[str, float | str]:
    nbytes = blocks.nbytes * times
    return {
        "against": side.raw_name,
        "ours_GBps": gigabytes_per_second(nbytes, pair.ours),
        "raw_GBps": gigabytes_per_second(nbytes, pair.reference),
    }
