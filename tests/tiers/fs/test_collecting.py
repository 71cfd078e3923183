"""What goes to get down to a size: the least that is enough, oldest first, unused layouts before others."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from asyncoffload.core.layout import block_path
from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.collecting import Collection
from asyncoffload.tiers.fs.owner import Owner
from asyncoffload.tiers.fs.survey import Kind, fan_out_of, files_in, layout_directories
from asyncoffload.tiers.fs.usage import Usage

NOW = 2_000_000_000.0
USED, UNUSED = "aa" * 16 + "_r0", "bb" * 16 + "_r0"

blocks = st.lists(st.tuples(st.booleans(), st.integers(0, 30_000), st.integers(0, 50)), max_size=30)
"""Whether its layout is used, its bytes, and how many days ago it was used."""

alike = st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=30)
"""Whether its layout is used, and how many days ago it was used, for blocks of one size."""


def lay_out(root: str, wanted: Sequence[tuple[bool, int, int]], apart: int = 1) -> None:
    for number, (used, nbytes, days) in enumerate(wanted):
        path = Path(block_path(os.path.join(root, USED if used else UNUSED), make_key(number.to_bytes(4, "big") * 4)))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(nbytes)
        last_used = int((NOW - days * 86400) * 1e9) + number * apart
        os.utime(path, ns=(last_used, last_used))


def left(root: str) -> list[tuple[bool, int, int]]:
    """Of each block that is left: whether its layout is used, when it was used, and its bytes."""
    return [
        (directory.name == USED, file.modified_ns, file.nbytes)
        for directory in layout_directories(root)
        for parent in fan_out_of(directory)
        for file in files_in(directory, parent)
        if file.kind is Kind.BLOCK
    ]


@settings(max_examples=60, deadline=None)
@given(wanted=blocks, quota=st.none() | st.integers(0, 400_000), older_than=st.none() | st.integers(0, 50))
def test_the_least_that_is_enough_goes(
    wanted: list[tuple[bool, int, int]], quota: int | None, older_than: int | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        os.makedirs(os.path.join(root, USED))
        owner = Owner(os.path.join(root, USED))
        try:
            lay_out(root, wanted)
            before = sorted(left(root))
            seconds = None if older_than is None else older_than * 86400.0
            collection = Collection(root, now=NOW, quota=quota, older_than=seconds)
            collection.plan()
            planned = sum(layout.removal.counted_bytes for layout in collection.layouts)
            usage = Usage(root)
            try:
                removed = collection.carry_out(usage)
            finally:
                usage.leave()
            after = sorted(left(root))
        finally:
            owner.leave()

    # A model: those that are old go; of the rest, in the order of eviction, as many as it takes.
    old_ns = -1 if seconds is None else int((NOW - seconds) * 1e9)
    stay = [block for block in before if block[1] > old_ns]
    while quota is not None and sum(nbytes for _, _, nbytes in stay) > quota:
        stay.remove(min(stay))
    assert after == stay
    assert removed.counted_bytes == planned == sum(b[2] for b in before) - sum(b[2] for b in after)


@settings(max_examples=60, deadline=None)
@given(wanted=alike, quota=st.integers(0, 31), older_than=st.none() | st.integers(0, 2))
def test_of_blocks_that_were_used_at_once_only_as_many_go_as_must(
    wanted: list[tuple[bool, int]], quota: int, older_than: int | None
) -> None:
    with tempfile.TemporaryDirectory() as root:
        lay_out(root, [(used, 1000, days) for used, days in wanted], apart=0)
        before = sorted(left(root))
        seconds = None if older_than is None else older_than * 86400.0
        collection = Collection(root, now=NOW, quota=1000 * quota, older_than=seconds)
        collection.plan()
        planned = sum(layout.removal.counted_bytes for layout in collection.layouts)
        usage = Usage(root)
        try:
            removed = collection.carry_out(usage)
        finally:
            usage.leave()
        after = sorted(left(root))

    old_ns = -1 if seconds is None else int((NOW - seconds) * 1e9)
    stay = [block for block in before if block[1] > old_ns]
    times = sorted(when for _, when, _ in stay)[max(0, len(stay) - quota) :]
    assert sorted(when for _, when, _ in after) == times
    assert removed.counted_bytes == planned == 1000 * (len(before) - len(after))
