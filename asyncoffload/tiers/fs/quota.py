"""What a process may still write: space granted in slices, under a lock, and spent block by block, without one."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs.account_file import UsageBusyError
from asyncoffload.tiers.fs.usage import Usage

MAX_SLICE = 64 << 20
"""Bytes of the largest slice: enough for the lock to be taken a few dozen times a second by the fastest disk."""

MAX_SLACK = 2 << 30
SLACK_SHARE = 32
"""The housekeeping keeps one part in so many free, 2 GiB at most, so that stores find room while it works."""

PATIENCE = 1.0
"""Seconds: nothing is asked for so long of an account that was held by somebody, and what was granted below a larger
quota is not evicted for, since it comes back."""

_ANY = 1 << 62

SMALLEST_WITH_SLACK = 2 * SLACK_SHARE
"""Blocks that a quota must hold for a part of it to be kept free ahead of need."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an operator allows, in bytes; None where there is no such bound.

    Attributes:
        quota: what the files below the root may take together.
        min_free: what is to be left free on the file system.
        block: the largest file of a block.

    Raises:
        ConfigError: the quota does not hold a single block, or ``min_free`` is negative.
    """

    quota: int | None
    min_free: int | None
    block: int

    def __post_init__(self) -> None:
        if self.quota is not None and self.quota < self.block:
            raise ConfigError(
                f"quota = {self.quota} bytes does not hold a single block, whose file takes {self.block} bytes: "
                "give the tier a larger quota, or leave it out"
            )
        if self.min_free is not None and self.min_free < 0:
            raise ConfigError(f"min_free = {self.min_free} is less than nothing: give bytes, 0 or more")

    def __bool__(self) -> bool:
        return self.quota is not None or self.min_free is not None

    def check(self, root_dir: str) -> None:
        """See whether they can be kept where the root lies. Blocks.

        Raises:
            ConfigError: no block could ever be stored.
        """
        status = os.statvfs(root_dir)
        total = status.f_blocks * status.f_frsize
        if self.min_free and total and self.min_free + self.block > total:
            raise ConfigError(
                f"min_free = {self.min_free} bytes leaves no room for a block in {root_dir}, whose file system has "
                f"{total} bytes in all: give the tier a smaller min_free, or leave it out"
            )


def free_bytes(path: str) -> int:
    """Bytes that a user without privileges may still write to a file system."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize


class Allowance:
    """One process's dealings with the bounds of a root. Any thread, unless said otherwise; methods block shortly.

    A store asks for the bytes of its block before it writes: :meth:`take`. Then it says what became of it: :meth:`put`,
    or :meth:`give_back`, or :meth:`refuse` if there was no room. Every change of files is within a bracket of
    :class:`~asyncoffload.tiers.fs.usage.Usage`.

    Args:
        usage: the account of the root.
        bounds: of this process; the tightest of all living processes holds, whether this one has any or not.
        free: bytes free on the file system.
        clock: seconds.

    Attributes:
        shed_by_quota: blocks that found no room below the quota.
        shed_by_space: blocks that found no room on the file system, or less than ``min_free``.
        waits: a store has asked in vain since the housekeeping last looked.
    """

    def __init__(
        self, usage: Usage, bounds: Bounds, free: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.usage = usage
        self.bounds = bounds
        self.shed_by_quota = 0
        self.shed_by_space = 0
        self.waits = False
        self._free = free
        self._clock = clock
        self._busy_until = clock()
        self._patient_until = clock()
        self._seen_quota = 0
        self._spare = 0
        self._spent = 0
        self._spent_before = 0
        self._disk_is_full = False
        self._lock = threading.Lock()
        self._asking = threading.Lock()

    def take(self, bucket: int, nbytes: int) -> bool:
        """Begin to store a file of this length; False when there is no room for it."""
        if not self.usage.is_bounded:
            # It is reserved all the same, for a neighbour with bounds that comes before it is written.
            self.usage.begin(bucket)
            self.usage.reserve(nbytes)
            return True
        if self._spend(bucket, nbytes):
            return True
        with self._asking:
            if self._spend(bucket, nbytes):
                return True
            if self._clock() < self._busy_until:
                return False
            try:
                return self._ask(nbytes) and self._spend(bucket, nbytes)
            except UsageBusyError:
                self._busy_until = self._clock() + PATIENCE
                return False

    @property
    def is_bounded(self) -> bool:
        """Whether the root has bounds now, whoever set them."""
        return self.usage.is_bounded

    def take_place(self, bucket: int) -> None:
        """Begin to store a file in the place of one that was evicted for it."""
        self.usage.begin(bucket)
        self.usage.want(0)

    def put(self, bucket: int, nbytes: int, *, in_place: bool = False) -> None:
        """A file for which :meth:`take` said yes, or that took a place, has its name."""
        self.usage.end(bucket, added=nbytes, spent=0 if in_place else nbytes)

    def replaced(self, bucket: int, nbytes: int) -> None:
        """It took the name of another one; before :meth:`put`."""
        self.usage.add(bucket, -nbytes)

    def give_back(self, bucket: int, nbytes: int, *, in_place: bool = False) -> None:
        """It was not made after all."""
        if not in_place:
            with self._lock:
                self._spare += nbytes
        self.usage.end(bucket)

    def refuse(self, nbytes: int, *, disk_is_full: bool = False) -> str:
        """A store is given up for want of room: let the housekeeping make some for a file of this length.

        Args:
            nbytes: its length.
            disk_is_full: the file system said so, whatever the bounds say.

        Returns:
            The bound that it ran into: ``"quota"``, ``"min_free"``, or ``"space"`` where the disk is full.
        """
        on_disk = disk_is_full or self._disk_is_full
        if on_disk:
            self.shed_by_space += 1
        else:
            self.shed_by_quota += 1
        self.usage.want(nbytes)
        if disk_is_full:
            self.usage.refuse(nbytes)
        self.waits = True
        return "quota" if not on_disk else "min_free" if self.usage.min_free and not disk_is_full else "space"

    def doubt(self, bucket: int) -> None:
        """Files of this bucket have changed in a way that cannot be counted."""
        self.usage.doubt(bucket)

    @property
    def holds_files(self) -> bool:
        """Whether there is anything that could be removed."""
        return self.usage.used > 0

    def give_back_spare(self) -> None:
        """Return what was granted and not used since the last call, so that a process at rest holds nothing back."""
        with self._lock:
            if self._spent == self._spent_before:
                self._keep_spare(0)
            self._spent_before = self._spent

    def give_back_excess(self) -> None:
        """Return what is more than would be granted now: the quota was larger, or there were fewer to share it."""
        quota = self.usage.quota
        with self._lock:
            if quota is not None:
                self._keep_spare(max(self.bounds.block, self._share(quota)))

    def lacking(self, factor: int = 1) -> int:
        """Bytes that should be removed, so that there is room for what is wanted, and the slack.

        Args:
            factor: how many times the slack is meant.
        """
        return max(0, self._below_quota(factor), self._on_disk(factor))

    @property
    def tightest(self) -> str:
        """The bound of which most is lacking: ``"quota"``, ``"min_free"``, or ``"space"`` where the disk is full."""
        if self._on_disk(1) <= self._below_quota(1):
            return "quota"
        return "min_free" if self.usage.min_free else "space"

    def _below_quota(self, factor: int) -> int:
        usage = self.usage
        if (quota := usage.quota) is None:
            return -_ANY
        if quota < self._seen_quota:
            self._patient_until = self._clock() + PATIENCE
        self._seen_quota = quota
        is_patient = self._clock() < self._patient_until
        reserved = usage.reserved_within(max(self.bounds.block, self._share(quota))) if is_patient else usage.reserved
        return usage.used + reserved + max(usage.wanted, factor * self.slack(quota)) - quota

    def _on_disk(self, factor: int) -> int:
        usage = self.usage
        # For want of something else than bytes, such as inodes; and of it some are made free ahead of need, too.
        refused = min(usage.refused, max(self.bounds.block, usage.used // SLACK_SHARE)) or -_ANY
        if not (wanted := usage.wanted) and usage.min_free is None:
            return refused
        min_free = usage.min_free or 0
        ahead = max(wanted, factor * self._free_slack(min_free))
        return max(refused, min_free + ahead + usage.reserved - self._free())

    def slack(self, quota: int) -> int:
        """Bytes of a quota that are kept free ahead of need."""
        if quota < SMALLEST_WITH_SLACK * self.bounds.block:
            return 0
        return min(quota // SLACK_SHARE, MAX_SLACK)

    def _share(self, quota: int) -> int:
        """The most of a quota that is granted to one user, unless a block takes more."""
        return min(MAX_SLICE, quota // (4 * max(1, self.usage.users)))

    def _keep_spare(self, nbytes: int) -> None:
        if self._spare > nbytes:
            self.usage.reserve(nbytes - self._spare)
            self._spare = nbytes

    def _free_slack(self, min_free: int) -> int:
        return min(min_free // SLACK_SHARE, MAX_SLACK)

    def _spend(self, bucket: int, nbytes: int) -> bool:
        with self._lock:
            if self._spare < nbytes:
                return False
            self._spare -= nbytes
            self._spent += 1
        self.usage.begin(bucket)
        return True

    def _ask(self, nbytes: int) -> bool:
        """Have a slice granted; False when there is no room."""
        usage = self.usage
        with usage.locked():
            below_quota, on_disk = self._room()
            room = min(below_quota, on_disk)
            with self._lock:
                lacking = max(0, nbytes - self._spare)
                granted = room >= lacking
                if granted:
                    # Slices get smaller as the room does, so that nobody holds much of what others need.
                    some = max(lacking, min(MAX_SLICE, room // (4 * max(1, usage.users))))
                    usage.reserve(some)
                    self._spare += some
            self._disk_is_full = on_disk < lacking <= below_quota
            if granted:
                usage.want(0)
        return granted

    def _room(self) -> tuple[int, int]:
        """Bytes that may be granted now, as far as the quota and the file system go."""
        usage = self.usage
        reserved = usage.reserved
        on_disk = self._free() - (usage.min_free or 0) - reserved
        if (quota := usage.quota) is None:
            return _ANY, on_disk
        # What was never counted may be anything: writing on would be a guess.
        return (quota - usage.used - reserved if usage.is_known else 0), on_disk


class Unaccounted(Allowance):
    """Stands in where there are no bounds, and no account can be had: on file systems without locks."""

    def __init__(self) -> None:
        self.shed_by_quota = self.shed_by_space = 0
        self.waits = False

    @property
    def is_bounded(self) -> bool:
        return False

    def take(self, bucket: int, nbytes: int) -> bool:  # noqa: ARG002
        return True

    def put(self, bucket: int, nbytes: int, *, in_place: bool = False) -> None:
        pass

    def replaced(self, bucket: int, nbytes: int) -> None:
        pass

    def give_back(self, bucket: int, nbytes: int, *, in_place: bool = False) -> None:
        pass

    def doubt(self, bucket: int) -> None:
        pass
