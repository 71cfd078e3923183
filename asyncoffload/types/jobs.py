"""Batches of blocks on the move, and what became of each block.

What happened to a block is a value, so that one bad block never turns a batch into an exception.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from asyncoffload.errors import (
    CorruptBlockError,
    InvalidArgument,
    TierIOError,
    TransferError,
    TransferTimeout,
)
from asyncoffload.keys import OffloadKey
from asyncoffload.types.vocabulary import Priority, Status


@dataclass(frozen=True, slots=True)
class KeyOutcome:
    """What became of one key, and the exception that explains it.

    Attributes:
        status: what became of it.
        error: the exception that explains it.
        why: the name of the bound that it ran into, or a few words; empty where the exception says all.
    """

    status: Status
    error: BaseException | None = None
    why: str = field(default="", compare=False)

    @property
    def ok(self) -> bool:
        """Whether the block arrived."""
        return self.status is Status.DONE


DONE = KeyOutcome(Status.DONE)
MISSING = KeyOutcome(Status.MISSING)
SHED = KeyOutcome(Status.SHED)
CANCELLED = KeyOutcome(Status.CANCELLED)

_job_ids = itertools.count(1)


@dataclass(slots=True, eq=False)
class TransferJob:
    """A batch of blocks to move between slots of the primary and one tier.

    Attributes:
        keys: the blocks.
        slots: the primary slot of each key, in the same order.
        priority: how urgent the job is.
        deadline: seconds of ``time.monotonic()`` by which somebody hopes to have it; an ordering hint.
        unwanted: keys that nobody waits for any more. It grows (and may shrink) while the job runs: look at it
            between blocks, and answer CANCELLED for what was skipped.
        job_id: unique within the process.
        depths: how many blocks of its request come before each key; None where nobody knows.
        report: takes the outcomes of an abandoned job; set by whoever can make use of them.
    """

    keys: Sequence[OffloadKey]
    slots: Sequence[int]
    priority: Priority = Priority.DEMAND
    deadline: float | None = None
    unwanted: set[OffloadKey] = field(default_factory=set)
    job_id: int = field(default_factory=_job_ids.__next__)
    depths: Sequence[int] | None = None
    report: Callable[[Sequence[KeyOutcome]], None] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if len(self.keys) != len(self.slots):
            raise InvalidArgument(f"{len(self.keys)} keys need as many slots, not {len(self.slots)}")

    def abandon(self, outcomes: Sequence[KeyOutcome]) -> None:
        """For tiers: a call of the operating system hangs, and nobody should wait for it. On the loop's thread.

        Whoever waits goes on with these outcomes, one per key. The slots stay in use: they are quarantined until the
        tier's coroutine returns, as late as that may be, and what it then answers is of no account any more. May be
        called again, and then does nothing.
        """
        if self.report is not None:
            report, self.report = self.report, None
            report(outcomes)


_ERRORS: dict[Status, type[TransferError]] = {
    Status.CORRUPT: CorruptBlockError,
    Status.TIMED_OUT: TransferTimeout,
}


@dataclass(frozen=True, slots=True)
class JobResult:
    """How a tier job ended, key by key.

    Attributes:
        job_id: the job's id.
        keys: the job's keys.
        outcomes: one outcome per key, in the same order.
        tier: name of the tier.
    """

    job_id: int
    keys: Sequence[OffloadKey]
    outcomes: Sequence[KeyOutcome]
    tier: str = ""

    @property
    def success(self) -> bool:
        """Whether every block arrived."""
        return all(outcome.status is Status.DONE for outcome in self.outcomes)

    @property
    def successful_keys(self) -> list[OffloadKey]:
        """The keys whose blocks arrived."""
        return [key for key, outcome in zip(self.keys, self.outcomes, strict=True) if outcome.ok]

    @property
    def failed_keys(self) -> list[OffloadKey]:
        """The keys whose blocks did not arrive."""
        return [key for key, outcome in zip(self.keys, self.outcomes, strict=True) if not outcome.ok]

    def raise_for_failures(self) -> None:
        """Raise for the first block that did not arrive; do nothing when all did.

        Raises:
            CorruptBlockError, TransferTimeout, TierIOError, TransferError: by the first failed key's status and cause.
        """
        bad = next(((k, o) for k, o in zip(self.keys, self.outcomes, strict=True) if not o.ok), None)
        if bad is None:
            return
        key, outcome = bad
        failed = self.failed_keys
        what = f"{len(failed)} of {len(self.keys)} blocks failed at {self.tier or 'the tier'}"
        text = f"{what}; first: key {key.hex()} {outcome.status.value}: {outcome.error or 'no further cause'}"
        done = self.successful_keys
        if outcome.status not in _ERRORS and isinstance(outcome.error, OSError):
            raise TierIOError(
                text, errno=outcome.error.errno, tier=self.tier, done_keys=done, failed_keys=failed
            ) from outcome.error
        error = _ERRORS.get(outcome.status, TransferError)
        raise error(text, tier=self.tier, done_keys=done, failed_keys=failed) from outcome.error


@dataclass(frozen=True, slots=True)
class TransferResult:
    """How a device transfer ended.

    Attributes:
        job_id: the id that was submitted.
        success: every byte arrived.
        transfer_size: bytes moved.
        transfer_time: seconds from submission to completion.
        transfer_type: source and destination medium.
        error: why it failed.
    """

    job_id: int
    success: bool
    transfer_size: int = 0
    transfer_time: float = 0.0
    transfer_type: tuple[str, str] = ("", "")
    error: BaseException | None = None
