"""From what was found to options: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from asyncoffload.cli.health.speed import Speed

GIB = 1 << 30
ENOUGH_OF_BEST = 0.8
WORTH_A_CHANGE = 1.15


def smallest_good_block(speeds: Sequence[Speed]) -> int:
    """The smallest block size, in bytes, that reads and writes nearly as fast as any that was measured."""
    best_store, best_load = max(speed.store for speed in speeds), max(speed.load for speed in speeds)
    return min(
        (
            speed.block_bytes
            for speed in speeds
            if speed.store >= ENOUGH_OF_BEST * best_store and speed.load >= ENOUGH_OF_BEST * best_load
        ),
        default=max(speeds, key=lambda speed: speed.load).block_bytes,
    )


def io_threads(speeds: Sequence[Speed], auto: int) -> int | str:
    """The setting ``io_threads``: ``"auto"``, unless another number of threads reads clearly faster.

    Args:
        speeds: by number of threads.
        auto: what ``"auto"`` stands for here.
    """
    best = max(speed.load for speed in speeds)
    ours = max((speed.load for speed in speeds if speed.n_threads <= auto), default=0.0)
    if best <= WORTH_A_CHANGE * ours:
        return "auto"
    return min(speed.n_threads for speed in speeds if speed.load * WORTH_A_CHANGE >= best)


def quota(free_bytes: int, ours: int) -> int:
    """A size for the root, in bytes: most of what is free and of what blocks take already, in whole GiB.

    Args:
        free_bytes: free on the file system.
        ours: bytes that lie in the root already.
    """
    most = (free_bytes + ours) * 9 // 10
    return most // GIB * GIB or most


def min_free(total_bytes: int) -> int:
    """Bytes of the file system to leave to others: a fiftieth of it."""
    return total_bytes // 50
