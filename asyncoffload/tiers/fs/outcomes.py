"""From exceptions and pool results to outcomes: where foreign errors become ours."""

from __future__ import annotations

from asyncoffload.errors import CorruptBlockError, TierIOError, TransferTimeout
from asyncoffload.keys import OffloadKey
from asyncoffload.types import CANCELLED, KeyOutcome, Status

SHED_BY = {why: KeyOutcome(Status.SHED, why=why) for why in ("max_queued_bytes", "quota", "min_free", "space", "pause")}
"""What a store is told that was given up, by the bound that it ran into."""


def refused(error: OSError, key: OffloadKey, tier: str, what: str) -> KeyOutcome:
    """The outcome for a block that the operating system, or the check of its bytes, refused.

    A ``TimeoutError`` is an ``OSError``; it is the slower sort of trouble, so it keeps a status of its own.
    """
    # The frames of the traceback hold views of the slot, which would keep the region mapped for as long as somebody
    # keeps the outcome.
    error.__traceback__ = None
    text = f"{what} block {key.hex()}: {error}"
    if isinstance(error, TimeoutError):
        outcome = KeyOutcome(Status.TIMED_OUT, TransferTimeout(text, tier=tier, failed_keys=(key,)))
    else:
        mapped = TierIOError(text, errno=error.errno, tier=tier, failed_keys=(key,))
        outcome = KeyOutcome(Status.FAILED, mapped)
    assert outcome.error is not None
    outcome.error.__cause__ = error
    return outcome


def corrupt(error: CorruptBlockError) -> KeyOutcome:
    """The outcome for a file that is not the block it should be."""
    error.__traceback__ = None
    text = str(error)
    return KeyOutcome(Status.CORRUPT, error, why=text.partition(".bin: ")[2] or text)  # where it lies is known


class Pending:
    """A block that was moved, and whose outcome is known only later.

    Attributes:
        outcome: the outcome; None until it is known.
    """

    outcome: KeyOutcome | None = None


Moved = KeyOutcome | Pending
"""What became of a block that was moved, or what will know it."""


def outcome_of(result: Moved | BaseException | Status) -> KeyOutcome:
    """The outcome behind what the pool says of a task."""
    if isinstance(result, KeyOutcome):
        return result
    if isinstance(result, Pending):
        return result.outcome or CANCELLED
    if isinstance(result, Status):
        return SHED_BY["max_queued_bytes"] if result is Status.SHED else CANCELLED
    result.__traceback__ = None
    return KeyOutcome(Status.FAILED, result)
