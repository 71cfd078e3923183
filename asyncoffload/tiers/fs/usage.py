"""How many bytes lie below a root: one small file that all processes map which share it.

Files are counted in :data:`BUCKETS` buckets, by the first two digits of their name. The file keeps, for each bucket,
what was once counted, and for each living process a record of what it has added since. A process writes to its own
record only, without a lock; the number of bytes on disk is the sum over all. Space is granted under a lock, in slices
(:mod:`asyncoffload.tiers.fs.quota`).

Whatever changes the files of a bucket is bracketed: the process says that it begins, changes files, enters the
difference, says that it has ended. So two things are known without stopping anybody. A count of a bucket is right if
nobody was within such a bracket when it began, and nobody has entered one before it ended. And where a process dies,
only the buckets within its open brackets are in doubt, and need to be counted again.

The words of the file are 64 bits each, in the processor's order, and are written one by one: a process may die between
any two of them.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np

from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs.account_file import (
    ADDED,
    BEGUN,
    BOOT,
    BOUNDED,
    BUCKETS,
    CLEAN,
    COUNTED,
    ENDED,
    FIRST_RECORD,
    FOLDING,
    FOLDS,
    JOIN_SECONDS,
    MAX_PROCESSES,
    MIN_FREE,
    PID,
    QUOTA,
    RECORD,
    RECORDS,
    REFUSED,
    RESERVED,
    TOKEN,
    UNSURE,
    WANTED,
    WORTH,
    Worth,
    boot_id,
    record_at,
)
from asyncoffload.tiers.fs.account_file import UsageBusyError as UsageBusyError
from asyncoffload.tiers.fs.wants import Wants

ACCOUNT = "usage"
"""The file below a root in which processes keep count of its bytes."""


@dataclass(frozen=True, slots=True)
class Moment:
    """A bucket at a moment in which nobody was changing it."""

    begun: tuple[int, ...]
    folds: int
    added: int


class Usage(Wants):
    """One user of the file; a process may have several. Methods block, shortly; any thread.

    Args:
        root_dir: the root; it must exist.
        is_empty: whether nothing lies below the root, asked when the file is new.
        quota, min_free: what this user was told; None for no such bound.

    Raises:
        ConfigError: the file was made by another version, or is damaged, and is in use, or has too many users.
        UsageBusyError: somebody has held the lock for long.
        OSError: the operating system refused, or has no locks.
    """

    def __init__(
        self,
        root_dir: str,
        *,
        is_empty: Callable[[], bool] = lambda: False,
        quota: int | None = None,
        min_free: int | None = None,
    ) -> None:
        super().__init__(os.path.join(root_dir, ACCOUNT))
        try:
            with self._mutex(JOIN_SECONDS):
                self._map(is_empty)
                self._repair()
                self._fold_dead()
                alone = not any(True for _ in self._living())
                self._join(quota, min_free)
                self._see_bounds()
                if alone:
                    self._arrive_alone()
        except BaseException:
            self.close()
            raise

    # ---- what is known

    @property
    def used(self) -> int:
        """Bytes of the files below the root."""
        n = self._n_records
        return int(self._counted.sum() + self._records[:n, ADDED:].sum())

    @property
    def reserved(self) -> int:
        """Bytes granted to somebody and not used yet, and what the dead may have left uncounted."""
        return self._sum(RESERVED) + self._word(UNSURE)

    @property
    def quota(self) -> int | None:
        """The smallest quota that a user was told, in bytes."""
        return self._smallest(QUOTA, min)

    @property
    def min_free(self) -> int | None:
        """The largest ``min_free`` that a user was told, in bytes."""
        return self._smallest(MIN_FREE, max)

    @property
    def is_bounded(self) -> bool:
        """Whether any user was told a bound; true for longer than that after an unlucky death. Cheap."""
        return self._words[BOUNDED] != 0

    @property
    def users(self) -> int:
        """Users that have not left, the dead included that nobody has found yet."""
        return int(np.count_nonzero(self._records[: self._n_records, TOKEN]))

    @property
    def is_known(self) -> bool:
        """Whether every bucket has been counted at some time."""
        return bool(self._worth.min() > Worth.UNKNOWN)

    @property
    def in_doubt(self) -> list[int]:
        """The buckets that should be counted."""
        return [int(bucket) for bucket in np.flatnonzero(self._worth != Worth.EXACT)]

    # ---- changing files

    def begin(self, bucket: int) -> None:
        """Files of this bucket are about to change."""
        self._add(self._mine + BEGUN + bucket, 1)

    def end(self, bucket: int, *, added: int = 0, spent: int = 0) -> None:
        """They have changed: by so many bytes, for which so many were reserved."""
        if added:
            self._add(self._mine + ADDED + bucket, added)
        if spent:
            self._add(self._mine + RESERVED, -spent)
        self._add(self._mine + ENDED + bucket, 1)

    def add(self, bucket: int, nbytes: int) -> None:
        """Enter a difference; between :meth:`begin` and :meth:`end`."""
        self._add(self._mine + ADDED + bucket, nbytes)

    def doubt(self, bucket: int) -> None:
        """Something was seen that the count does not explain; a count that is under way does not, either."""
        self._doubt(bucket)
        self.begin(bucket)
        self.end(bucket)

    # ---- space

    def reserve(self, nbytes: int) -> None:
        """Take bytes, or give them back; to take some, hold :meth:`locked`, and look whether there are any."""
        self._add(self._mine + RESERVED, nbytes)

    def reserved_within(self, share: int) -> int:
        """As :attr:`reserved`, but of each user so many bytes at most."""
        return int(self._records[: self._n_records, RESERVED].clip(max=share).sum()) + self._word(UNSURE)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only one to grant space.

        Raises:
            UsageBusyError: somebody else is, and takes long.
        """
        with self._mutex():
            self._repair()
            yield

    def fold_dead(self) -> int:
        """Add the records of the dead to what was counted; returns how many there were.

        Raises:
            UsageBusyError: as :meth:`locked`.
        """
        with self._mutex():
            self._repair()
            return self._fold_dead()

    # ---- counting

    def moment(self, bucket: int) -> Moment | None:
        """The bucket now; None when somebody is changing it."""
        records = self._records[: self._n_records]
        folds = self._word(FOLDS)
        # In this order: who is found to have ended all that he had begun later on, was not at it in between.
        ended = tuple(records[:, ENDED + bucket].tolist())
        added = int(records[:, ADDED + bucket].sum())
        begun = tuple(records[:, BEGUN + bucket].tolist())
        return Moment(begun, folds, added) if begun == ended else None

    def counted(self, bucket: int, since: Moment, nbytes: int) -> bool:
        """Enter a count that began at a moment; False when it is void, since files have changed meanwhile.

        Raises:
            UsageBusyError: as :meth:`locked`.
        """
        with self._mutex():
            if self._word(FOLDS) != since.folds or self._begun(bucket) != since.begun:
                return False
            self._put(COUNTED + bucket, nbytes - since.added)
            self._put(WORTH + bucket, Worth.EXACT)
            if self._word(UNSURE) and not self.in_doubt:
                self._put(UNSURE, 0)
            return True

    # ---- leaving

    def leave(self) -> None:
        """Enter what this user has added into what was counted, and go; idempotent.

        What is still being changed by this user is in doubt then. Calls that come later change nothing.
        """
        with self._threads:
            if self._left:
                return
        with suppress(UsageBusyError), self._mutex(seconds=2.0):
            self._repair()
            alone = not any(True for _ in self._living())
            self._fold(self._slot)
            if alone and not self.in_doubt:
                self._put(CLEAN, 1)
        self.abandon()

    # ---- inside

    def _join(self, quota: int | None, min_free: int | None) -> None:
        for slot in range(MAX_PROCESSES):
            if slot < self._n_records and self._word(record_at(slot) + TOKEN):
                continue
            if not self._locks.take(FIRST_RECORD + slot):
                continue
            at = record_at(slot)
            os.posix_fallocate(self._fd, 8 * at, 8 * RECORD)
            for index in np.flatnonzero(self._records[slot]).tolist():
                if index != REFUSED:  # it only grows, whoever has the record
                    self._put(at + index, 0)
            self._put(at + QUOTA, -1 if quota is None else quota)
            self._put(at + MIN_FREE, -1 if min_free is None else min_free)
            self._put(at + PID, os.getpid())
            self._put(RECORDS, max(slot + 1, self._n_records))
            if quota is not None or min_free is not None:
                self._put(BOUNDED, 1)
            self._put(at + TOKEN, secrets.randbits(62) | 1)
            self._slot, self._mine = slot, at
            return
        raise ConfigError(f"{self.path} has {MAX_PROCESSES} users already: give some of the processes another root_dir")

    def _arrive_alone(self) -> None:
        """The first to come does not take it for granted that all went well before."""
        worth = Worth.DOUBTFUL if self._word(BOOT) == boot_id() or self._word(CLEAN) else Worth.UNKNOWN
        if not self.is_fresh:
            for bucket in range(BUCKETS):
                if self._worth[bucket] > worth:
                    self._put(WORTH + bucket, worth)
        self.meet()
        was_clean = self._word(CLEAN)
        self._put(BOOT, boot_id())
        self._put(CLEAN, 0)
        if was_clean:
            os.fsync(self._fd)  # a loss of power must not bring it back: what was counted would be believed

    def _living(self) -> Iterator[int]:
        """The records of others, as far as their users live."""
        for slot in range(self._n_records):
            if self._locks.is_taken_elsewhere(FIRST_RECORD + slot):
                yield slot

    def _fold_dead(self) -> int:
        mine = getattr(self, "_slot", None)
        dead = [
            slot
            for slot in np.flatnonzero(self._records[: self._n_records, TOKEN]).tolist()
            if slot != mine and not self._locks.is_taken_elsewhere(FIRST_RECORD + slot)
        ]
        for slot in dead:
            self._fold(slot)
        return len(dead)

    def _fold(self, slot: int) -> None:
        """Move a record into what was counted. Who dies meanwhile has left a note, and all of it is in doubt."""
        at = record_at(slot)
        record = self._records[slot]
        unsure = record[BEGUN:ENDED] != record[ENDED:ADDED]
        self._put(FOLDING, slot + 1)
        for bucket in np.flatnonzero(unsure).tolist():
            self._doubt(bucket)
        if unsure.any():
            self._put(UNSURE, self._word(UNSURE) + int(record[RESERVED]))
        for bucket in np.flatnonzero(record[ADDED:]).tolist():
            self._put(COUNTED + bucket, self._word(COUNTED + bucket) + int(record[ADDED + bucket]))
        self._put(FOLDS, self._word(FOLDS) + 1)
        self._clear(at)
        self._put(FOLDING, 0)
        self._see_bounds()

    def _repair(self) -> None:
        """Finish what somebody died over while it had the lock."""
        if not self._word(FOLDING):
            return
        for bucket in range(BUCKETS):
            self._doubt(bucket)
        self._put(FOLDS, self._word(FOLDS) + 1)
        at = record_at(self._word(FOLDING) - 1)
        self._put(UNSURE, self._word(UNSURE) + self._word(at + RESERVED))
        self._clear(at)
        self._put(FOLDING, 0)
        self._see_bounds()

    def _see_bounds(self) -> None:
        self._put(BOUNDED, int(self.quota is not None or self.min_free is not None))

    def _doubt(self, bucket: int) -> None:
        if self._worth[bucket] == Worth.EXACT:
            self._put(WORTH + bucket, Worth.DOUBTFUL)

    def _clear(self, at: int) -> None:
        for bucket in range(BUCKETS):
            if (begun := self._word(at + BEGUN + bucket)) != self._word(at + ENDED + bucket):
                self._put(at + ENDED + bucket, begun)
        for index in (*range(ADDED, ADDED + BUCKETS), RESERVED, WANTED, QUOTA, MIN_FREE, TOKEN):
            if self._word(at + index):
                self._put(at + index, 0)

    def _begun(self, bucket: int) -> tuple[int, ...]:
        return tuple(self._records[: self._n_records, BEGUN + bucket].tolist())

    def _smallest(self, field: int, choose: Callable[[list[int]], int]) -> int | None:
        records = self._records[: self._n_records]
        told = records[(records[:, TOKEN] != 0) & (records[:, field] >= 0), field].tolist()
        return choose(told) if told else None
