"""Whether a process grows: samples taken at rest, and a trend that single outliers do not make."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import statistics
import threading
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import combinations

MIB = 1 << 20
PAGE = os.sysconf("SC_PAGE_SIZE")

_return_free_memory = partial(ctypes.CDLL(None).malloc_trim, 0)  # what is free, and only kept for later, is no growth


@dataclass(frozen=True)
class Sample:
    """A process at rest.

    Attributes:
        rss: bytes of it that are in memory.
        objects: that the garbage collector knows, after a collection.
        threads, descriptors, tasks: how many there are.
    """

    rss: int
    objects: int
    threads: int
    descriptors: int
    tasks: int


class Growth:
    """Samples of one process. What is there before the first one does not count, and costs nothing, until it is closed.

    Args:
        warm_up: how many samples are not judged: until caches are full and every thread has been started.
    """

    def __init__(self, warm_up: int) -> None:
        self.samples: list[Sample] = []
        self._warm_up = warm_up
        self._before: Counter[str] = Counter()
        self._types: Counter[str] = Counter()
        gc.collect()
        gc.freeze()

    def close(self) -> None:
        """Let the garbage collector look at everything again."""
        gc.unfreeze()

    def take(self) -> Sample:
        """One more sample; the process has nothing to do."""
        gc.collect()
        _return_free_memory()
        objects = gc.get_objects()
        self._types = Counter(type(each).__qualname__ for each in objects)
        if len(self.samples) == self._warm_up:
            self._before = self._types
        with open("/proc/self/statm", encoding="ascii") as file:
            pages = int(file.read().split()[1])
        descriptors = len(os.listdir("/proc/self/fd"))
        sample = Sample(pages * PAGE, len(objects), threading.active_count(), descriptors, len(asyncio.all_tasks()))
        self.samples.append(sample)
        return sample

    @property
    def judged(self) -> list[Sample]:
        """The samples after the warm-up."""
        return self.samples[self._warm_up :]

    def over_all(self, what: str) -> float:
        """By how much something has grown over the judged samples, as their trend says.

        The trend is the median of the slopes between any two samples (Theil 1950, Sen 1968).
        """
        values: list[int] = [getattr(sample, what) for sample in self.judged]
        slopes = [(b - a) / (j - i) for (i, a), (j, b) in combinations(enumerate(values), 2)]
        return statistics.median(slopes) * (len(values) - 1)

    def report(self) -> str:
        """What there is to see, for a message."""
        more = Counter({name: count - self._before[name] for name, count in self._types.items()})
        lines = [
            f"{n:3} rss {each.rss / MIB:.1f} MiB, {each.objects} objects, {each.threads} threads, "
            f"{each.descriptors} descriptors, {each.tasks} tasks"
            for n, each in enumerate(self.samples)
        ]
        return "\n".join([*lines, f"more objects since the warm-up: {more.most_common(8)}"])
