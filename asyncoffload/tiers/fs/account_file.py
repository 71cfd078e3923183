"""The file that all processes map which share a root: its words, and the lock on it."""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs.lock_file import LockFile
from asyncoffload.tiers.fs.locks import ByteLocks

BUCKETS = 256
MAX_PROCESSES = 128

LOCK_SECONDS = 0.2
"""How long the lock is tried for. It is held for some 50 us, unless its holder was stopped in that moment."""

JOIN_SECONDS = 3.0
"""How long it is tried for by who comes, and cannot do without."""

MAGIC = 0x31_45_47_41_53_55_4F_41  # "AOUSAGE1"
MUTEX, HOUSEKEEPING, FIRST_RECORD = 1 << 40, (1 << 40) + 1, (1 << 40) + 16
HEAD = 1024  # words before the records: fields, then what was counted, then what it is worth
RECORD = 1024
COUNTED, WORTH = 256, 512
BEGUN, ENDED, ADDED = 256, 512, 768
MAGIC_AT, BOOT, RECORDS, FOLDS, FOLDING, UNSURE, CLEAN, BOUNDED, KEEPER, BEATS, MET = range(11)
TOKEN, RESERVED, WANTED, QUOTA, MIN_FREE, PID, REFUSED = range(7)


class Worth(IntEnum):
    """What the count of a bucket is worth."""

    UNKNOWN = 0
    DOUBTFUL = 1
    EXACT = 2


class UsageBusyError(Exception):
    """Somebody has held the lock for long; nothing was changed."""

    def __init__(self, root_dir: str) -> None:
        super().__init__(
            f"{root_dir}: another process has held the account of the root for long: see whether a process that uses "
            "it was stopped (asyncoffload inspect names them), and try again"
        )


class AccountFile(LockFile):
    """The file, mapped; any thread.

    The words are 64 bits each, in the processor's order: some fields, what was counted of each bucket, what that is
    worth, and the records of the users.

    Args:
        path: where it is, or is to be; with the file open, its user maps it under the lock.

    Attributes:
        is_fresh: the file was new.

    Raises:
        ConfigError: the file was made by another version, or is damaged, and is in use.
        OSError: the operating system refused, or has no locks.
    """

    def __init__(self, path: str) -> None:
        super().__init__(path, os.O_CREAT)
        self.path = path
        self.is_fresh = False
        self._locks = ByteLocks(self._fd)
        self._threads = threading.Lock()
        self._writing = threading.Lock()
        self._left = False

    @property
    def is_there(self) -> bool:
        """Whether the file still has its name; others cannot see what is entered into one that has not."""
        with suppress(FileNotFoundError):
            return os.path.samestat(os.stat(self.path, follow_symlinks=False), os.fstat(self._fd))
        return False

    def abandon(self) -> None:
        """Go without a word, as a process does that dies; idempotent."""
        with self._writing:
            if self._left:
                return
            self._left = True
            # The last state stays readable; the mapping goes with the last thread that looks at it.
            n_words = HEAD + self._n_records * RECORD
            last = bytearray(8 * (HEAD + MAX_PROCESSES * RECORD))
            last[: 8 * n_words] = self._words[:n_words].tobytes()
            self._look_at(last)
        self.close()

    def forget(self) -> None:
        # Threads of the parent that are not here may hold these, and the mapping is the parent's account.
        self._threads, self._writing, self._left = threading.Lock(), threading.Lock(), True
        super().forget()

    @property
    def _n_records(self) -> int:
        return self._word(RECORDS)

    def _map(self, is_empty: Callable[[], bool]) -> None:
        size = 8 * (HEAD + MAX_PROCESSES * RECORD)
        self.is_fresh = fresh = not _is_sound(os.pread(self._fd, 8 * WORTH, 0))
        if fresh and any(self._locks.is_taken_elsewhere(FIRST_RECORD + slot) for slot in range(MAX_PROCESSES)):
            raise ConfigError(
                f"{self.path} is in use by another version of asyncoffload, or damaged: stop the processes that use "
                "this root_dir before you start this one"
            )
        if fresh:
            os.ftruncate(self._fd, 0)
        # A store to a page that the disk has no room for would kill the process, so nothing is written to that was
        # not allocated; and nothing is read, since some file systems allocate for that as well.
        os.posix_fallocate(self._fd, 0, 8 * HEAD)
        if os.fstat(self._fd).st_size < size:
            os.ftruncate(self._fd, size)
        # A mapping keeps a descriptor of its own. It must not be one of the description that has the locks.
        fd = os.open(f"/proc/self/fd/{self._fd}", os.O_RDWR | os.O_CLOEXEC)
        try:
            self._look_at(mmap.mmap(fd, size))
        finally:
            os.close(fd)
        if fresh:
            worth = Worth.EXACT if is_empty() else Worth.UNKNOWN
            for bucket in range(BUCKETS):
                self._put(WORTH + bucket, worth)
            self._put(MAGIC_AT, MAGIC)

    def _look_at(self, memory: mmap.mmap | bytearray) -> None:
        self._words = memoryview(memory).cast("q")
        words: npt.NDArray[np.int64] = np.frombuffer(memory, np.int64)
        self._counted, self._worth = words[COUNTED:WORTH], words[WORTH : WORTH + BUCKETS]
        self._records = words[HEAD:].reshape(MAX_PROCESSES, RECORD)

    @contextmanager
    def _mutex(self, seconds: float = LOCK_SECONDS) -> Iterator[None]:
        give_up = time.monotonic() + seconds
        if not self._threads.acquire(timeout=seconds):
            raise UsageBusyError(os.path.dirname(self.path))
        try:
            pause = 0.0001
            while self._left or not self._locks.take(MUTEX):
                if self._left or time.monotonic() > give_up:
                    raise UsageBusyError(os.path.dirname(self.path))
                time.sleep(pause)
                pause = min(2 * pause, 0.005)
            try:
                yield
            finally:
                self._locks.drop(MUTEX)
        finally:
            self._threads.release()

    def _word(self, index: int) -> int:
        return self._words[index]

    def _add(self, index: int, difference: int) -> None:
        with self._writing:
            if not self._left:
                self._put(index, self._words[index] + difference)

    def _put(self, index: int, value: int) -> None:
        """The one place that writes to the file."""
        self._words[index] = value


def _is_sound(head: bytes) -> bool:
    """Whether the first words are those of an account that can be worked with."""
    if len(head) < 8 * WORTH:
        return False
    words = memoryview(head).cast("q")
    return words[MAGIC_AT] == MAGIC and 0 <= words[FOLDING] <= words[RECORDS] <= MAX_PROCESSES


def record_at(slot: int) -> int:
    """The first word of a record."""
    return HEAD + slot * RECORD


def bucket_of(path: str) -> int:
    """The bucket of a file, from its path: the two digits that the name of its directory begins with."""
    slash = path.rindex("/")
    begin = path.rindex("/", 0, slash) + 1
    return int(path[begin : begin + 2], 16)


def boot_id() -> int:
    """A number that changes when the machine is started anew; 0 where the system does not tell."""
    with suppress(OSError, ValueError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return int(file.read().strip().replace("-", "")[:15], 16)
    return 0
