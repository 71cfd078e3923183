"""Garbage collection, kept out of what is measured."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def still_heap() -> Iterator[None]:
    """Keep what was imported out of garbage collections, whose pauses would be measured as lag of the event loop."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
