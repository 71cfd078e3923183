"""Threads that a test holds, told apart from threads that work: time may pass for the former only."""

from __future__ import annotations

import threading

from asyncoffload.aio.under_way import threads_under_way

_lock = threading.Lock()
_held = 0


def count_held(change: int) -> None:
    """So many threads more, or less, are held by a test and do no work."""
    global _held
    with _lock:
        _held += change


def threads_at_work(others: int = 0) -> int:
    """How many threads work, or are about to: the library's, and others that the caller knows; without those held."""
    return max(0, threads_under_way() + others - _held)
