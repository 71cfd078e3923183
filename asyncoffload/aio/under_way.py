"""How much the library's own threads have to do: for tests that let time stand still meanwhile."""

from __future__ import annotations

import threading
from typing import Protocol
from weakref import WeakSet


class Threads(Protocol):
    """Owns threads, and knows how many of them work."""

    @property
    def under_way(self) -> int:
        """Threads that work, or are about to since work is queued for them. It may be asked from any thread.

        A thread counts until what it did has been reported, so that nothing is on its way when it is zero.
        """
        ...


_lock = threading.Lock()
_all: WeakSet[Threads] = WeakSet()


def count_in(threads: Threads) -> None:
    """Let :func:`threads_under_way` count these threads too, as long as their owner lives."""
    with _lock:
        _all.add(threads)


def threads_under_way() -> int:
    """How many of the library's threads work, or are about to, in this process."""
    with _lock:
        owners = list(_all)
    return sum(owner.under_way for owner in owners)
