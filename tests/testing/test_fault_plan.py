"""A fault that could never strike is refused when it is planned, so that no test passes for want of it."""

from __future__ import annotations

import errno

import pytest

from asyncoffload.errors import InvalidArgument
from asyncoffload.testing import FaultyDisk, FaultyTier, Refused, Slots, small_layout, some_keys
from asyncoffload.tiers.example import ExampleSecondaryTierManager
from asyncoffload.types import Status

LAYOUT = small_layout()
(KEY,) = some_keys(LAYOUT, 1)


@pytest.fixture
def tier() -> FaultyTier[ExampleSecondaryTierManager]:
    return FaultyTier(ExampleSecondaryTierManager(LAYOUT, Slots(LAYOUT, 1).view))


def test_calls_that_there_are_not(tier: FaultyTier[ExampleSecondaryTierManager]) -> None:
    with pytest.raises(InvalidArgument, match="no call 'lod': choose one of lookup, store, load"):
        tier.answers("lod", Status.CORRUPT)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="no call 'stroe'"):
        tier.raises("stroe", OSError(errno.EIO, "odd"))  # type: ignore[arg-type]


def test_what_is_no_outcome_or_no_exception(tier: FaultyTier[ExampleSecondaryTierManager]) -> None:
    with pytest.raises(InvalidArgument, match="'corrupt' is no outcome: give a Status, a KeyOutcome or an OSError"):
        tier.answers("load", "corrupt")  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match="<class 'OSError'> is no exception: give one, such as"):
        tier.raises("load", OSError)  # type: ignore[arg-type]


def test_one_key_in_place_of_keys(tier: FaultyTier[ExampleSecondaryTierManager]) -> None:
    with pytest.raises(InvalidArgument, match=r"keys=\[key\]"):
        tier.answers("load", Status.CORRUPT, keys=KEY)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgument, match=r"keys=\[key\]"):
        FaultyDisk().add("read", Refused(errno.EIO), keys=KEY)  # type: ignore[arg-type]
