"""Removing the files that were used longest ago."""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from asyncoffload.tiers.complaints import Complaints
from asyncoffload.tiers.fs.account_file import bucket_of
from asyncoffload.tiers.fs.counting import Candidate
from asyncoffload.tiers.fs.departures import Departures
from asyncoffload.tiers.fs.recycling import take_over
from asyncoffload.tiers.fs.system_calls import THE_SYSTEM, SystemCalls
from asyncoffload.tiers.fs.usage import Usage
from asyncoffload.types import Fate

MAX_CANDIDATES = 65_536
"""Files remembered for eviction: some 20 MB. A look at a million files then serves for 65,536 evictions."""

RECLAIM_TRIES = 16
"""Candidates that a store tries in turn, where some were used meanwhile or cannot be moved."""

_FULL = {errno.ENOSPC, errno.EDQUOT}

logger = logging.getLogger("asyncoffload.tiers.fs")


@dataclass(frozen=True, slots=True)
class Place:
    """What a store got that takes the place of another block; it counts as that block's until the store has ended.

    Attributes:
        bucket: of the block that had to go.
        nbytes: length of its file.
        has_file: whether its file may be written to.
    """

    bucket: int
    nbytes: int
    has_file: bool


class Evictor:
    """Removes files, those first that were used longest ago; one that was used since it was found is passed over.

    So is, with a complaint, one that the operating system does not let go. A file that is being read stays with its
    reader until it is closed: eviction takes only its name. Any thread; the caller has the right to keep house.

    Args:
        usage: the account of the root.
        departures: where it is written down what was removed; by default nowhere.
        calls: the operating system's calls.

    Attributes:
        is_pressed: there is so little room left that stores should rather take the place of other blocks.
        recycled: how many of the files were written to instead of being removed.
        files, nbytes: what was removed so far.
        quarantined: how many of the files were in quarantine.
    """

    def __init__(self, usage: Usage, departures: Departures | None = None, calls: SystemCalls = THE_SYSTEM) -> None:
        self.is_pressed = False
        self.recycled = 0
        self.files = 0
        self.nbytes = 0
        self.quarantined = 0
        self._removed: deque[str] = deque(maxlen=MAX_CANDIDATES)
        self._usage = usage
        self._departures = departures
        self._calls = calls
        self._complaints = Complaints(logger, time.monotonic)
        self._lock = threading.Lock()
        self._gathered: list[Candidate] = []
        self._queue: list[Candidate] = []  # the next one to go comes last

    def __len__(self) -> int:
        return len(self._queue)

    def gather(self, found: Sequence[Candidate]) -> None:
        """Files of one more bucket; they count from :meth:`found_all` on."""
        self._gathered.extend(found)
        if len(self._gathered) > 2 * MAX_CANDIDATES:
            self._gathered.sort()
            del self._gathered[MAX_CANDIDATES:]

    def found_all(self) -> None:
        """Every bucket was looked at: from now on, evict what was gathered."""
        gathered, self._gathered = self._gathered, []
        gathered.sort(reverse=True)
        del gathered[:-MAX_CANDIDATES]
        with self._lock:
            self._queue = gathered

    def start_over(self) -> None:
        """Forget what was gathered."""
        self._gathered = []

    def evict(self, nbytes: int, max_files: int = 16, why: str = "") -> int:
        """Remove files of so many bytes together, if there are so many; returns the bytes removed. Blocks.

        Args:
            nbytes: how many bytes.
            max_files: of how many files at most.
            why: the bound for whose sake.
        """
        removed = 0
        while removed < nbytes and max_files:
            max_files -= 1
            with self._lock:
                if not self._queue:
                    break
                candidate = self._queue.pop()
            removed += self._remove(candidate, why)
        return removed

    def reclaim(self, nbytes: int, temporary: str) -> Place | None:
        """Give the place of the next file to go to one of the same length; None if it has another. Blocks.

        The place goes back with :meth:`settle`.

        Args:
            nbytes: length of the new file.
            temporary: where it is to be written; if the place has a file, it lies there.

        Raises:
            OSError: the disk is full, or the file cannot be where it was to be written.
        """
        for _ in range(RECLAIM_TRIES):
            with self._lock:
                if not self._queue or self._queue[-1].nbytes != nbytes:
                    break
                candidate = self._queue.pop()
            place = self._reclaim(candidate, nbytes, temporary)
            if place is not None:
                return place
        return None

    def settle(self, place: Place) -> None:
        """The store has ended, whatever came of it."""
        self._usage.end(place.bucket, added=-place.nbytes)

    def write_down(self) -> None:
        """Write down what was removed since the last call. Blocks."""
        if self._departures is not None:
            self._departures.flush()

    def take_removed(self) -> list[str]:
        """Paths of the files that were removed since the last call. Does not block."""
        removed = []
        while self._removed:
            removed.append(self._removed.popleft())
        return removed

    def _reclaim(self, candidate: Candidate, nbytes: int, temporary: str) -> Place | None:
        """The place of a file; None if it was passed over."""
        bucket = bucket_of(candidate.path)
        self._usage.begin(bucket)
        try:
            status = os.stat(candidate.path, follow_symlinks=False)
            if candidate.modified in (0, status.st_mtime_ns) and status.st_size == nbytes:
                has_file = take_over(candidate.path, temporary, self._calls)
                self._enter(candidate, nbytes, "recycled", recycled=has_file)
                return Place(bucket, nbytes, has_file)
        except FileNotFoundError:
            self._usage.doubt(bucket)
        except BaseException as error:
            self._usage.end(bucket)
            if not isinstance(error, OSError) or error.errno in _FULL or not _may_write_to(os.path.dirname(temporary)):
                with self._lock:
                    self._queue.append(candidate)
                raise
            self._pass_over(candidate, error)
            return None
        self._usage.end(bucket)
        return None

    def _remove(self, candidate: Candidate, why: str) -> int:
        """Remove a file; returns its length, or 0 if it was passed over."""
        bucket = bucket_of(candidate.path)
        self._usage.begin(bucket)
        removed = 0
        try:
            status = os.stat(candidate.path, follow_symlinks=False)
            if candidate.modified in (0, status.st_mtime_ns):
                self._calls.unlink(candidate.path)
                removed = status.st_size
                self._enter(candidate, removed, why)
        except FileNotFoundError:
            self._usage.doubt(bucket)
        except OSError as error:
            self._pass_over(candidate, error)
        finally:
            self._usage.end(bucket, added=-removed)
        return removed

    def _pass_over(self, candidate: Candidate, error: OSError) -> None:
        text = f"{candidate.path} cannot be evicted, others are: {error}; remove it, or let this process do so"
        self._complaints.add("eviction", text)

    def _enter(self, candidate: Candidate, nbytes: int, why: str, *, recycled: bool = False) -> None:
        self._removed.append(candidate.path)
        if self._departures is not None:
            self._departures.note(candidate.path, nbytes, Fate.EVICTED if candidate.modified else Fate.DISCARDED, why)
        with self._lock:
            self.files += 1
            self.nbytes += nbytes
            self.quarantined += not candidate.modified
            self.recycled += recycled


def _may_write_to(directory: str) -> bool:
    return os.access(directory, os.W_OK | os.X_OK)
