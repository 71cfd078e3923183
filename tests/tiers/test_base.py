"""What the base class of tiers does by itself."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from asyncoffload.errors import InvalidArgument, TierUnavailable
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.tiers.base import SecondaryTierManager, check_job
from asyncoffload.types import (
    ANONYMOUS,
    JobResult,
    KVGroup,
    KVLayout,
    LookupResult,
    Priority,
    RequestContext,
    TransferJob,
)

KEY = make_key(b"key")


class QuietTier(SecondaryTierManager):
    """Does what it must and nothing more."""

    tier_type = "quiet"

    def __init__(self, *, starts: bool = True) -> None:
        self.starts = starts
        self.closed_with: list[bool] = []

    async def start(self) -> None:
        if not self.starts:
            raise TierUnavailable("not today")

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:  # noqa: ARG002
        return [LookupResult.MISS] * len(keys)

    async def store(self, job: TransferJob) -> JobResult:
        raise NotImplementedError

    async def load(self, job: TransferJob) -> JobResult:
        raise NotImplementedError

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:  # noqa: ARG002
        self.closed_with.append(drain)


async def test_defaults_know_nothing_and_do_nothing() -> None:
    async with QuietTier() as tier:
        assert not tier.hint(KEY)
        assert list(tier.take_events()) == []
        assert dict(tier.stats()) == {}
        tier.hurry(1, Priority.DEMAND)
        await tier.touch([KEY])
        await tier.drain()
    assert tier.closed_with == [True]


async def test_leaving_with_an_exception_drops_what_is_queued() -> None:
    tier = QuietTier()
    with pytest.raises(ZeroDivisionError):
        async with tier:
            raise ZeroDivisionError
    assert tier.closed_with == [False]


async def test_a_tier_that_does_not_start_is_closed() -> None:
    tier = QuietTier(starts=False)
    with pytest.raises(TierUnavailable):
        await tier.__aenter__()
    assert tier.closed_with == [False]


def test_jobs_are_checked_before_anything_moves() -> None:
    layout = KVLayout("m", "bf16", 16, (KVGroup((10,)), KVGroup((20,))))
    check_job(TransferJob([KEY, make_key(b"other", 1)], [0, 3]), layout, 4)
    with pytest.raises(InvalidArgument, match="slot 4 does not exist: the primary has 4 slots"):
        check_job(TransferJob([KEY], [4]), layout, 4)
    with pytest.raises(InvalidArgument, match="slot -1"):
        check_job(TransferJob([KEY], [-1]), layout, 4)
    with pytest.raises(InvalidArgument, match="group 2: the layout has 2 groups"):
        check_job(TransferJob([make_key(b"key", 2)], [0]), layout, 4)
