"""Which way of copying is chosen, and that the reasons can be read."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.device.base import Direction
from asyncoffload.device.cuda.engines.choosing import (
    FEW_FRAGMENTS,
    LARGE_FRAGMENT,
    LONG_HOST_RUN,
    Chosen,
    Thresholds,
    choose,
)

EVERYTHING = ("batched", "plain", "kernel", "staged", "torch")
KIB = 1024

directions = st.sampled_from(get_args(Direction))
thresholds = st.builds(
    Thresholds,
    load_large_fragment=st.integers(0, 1 << 21),
    store_large_fragment=st.integers(0, 1 << 21),
    few_fragments=st.integers(0, 4096),
    long_host_run=st.integers(0, 1 << 24),
    stage_loads=st.booleans(),
    stage_stores=st.booleans(),
)


def _choose(
    direction: Direction = "load",
    *,
    fragment_bytes: int = 16 * KIB,
    n_fragments: int = 1000,
    host_run_bytes: int = 1 << 20,
    aligned: bool = True,
    pinned: bool = True,
    without: tuple[str, ...] = (),
    thresholds: Thresholds | None = None,
) -> Chosen:
    return choose(
        direction,
        fragment_bytes=fragment_bytes,
        n_fragments=n_fragments,
        host_run_bytes=host_run_bytes,
        aligned=aligned,
        pinned=pinned,
        available=[name for name in EVERYTHING if name not in without],
        thresholds=thresholds or Thresholds(),
    )


@given(
    direction=directions,
    fragment_bytes=st.integers(1, 1 << 22),
    n_fragments=st.integers(1, 1 << 16),
    host_run_bytes=st.integers(1, 1 << 26),
    aligned=st.booleans(),
    pinned=st.booleans(),
    others=st.sets(st.sampled_from(EVERYTHING)),
    always=st.sampled_from(("plain", "torch")),
    thresholds=thresholds,
)
def test_what_is_chosen_is_there_and_can_copy_it(
    direction: Direction,
    fragment_bytes: int,
    n_fragments: int,
    host_run_bytes: int,
    aligned: bool,
    pinned: bool,
    others: set[str],
    always: str,
    thresholds: Thresholds,
) -> None:
    available = others | {always}
    chosen = choose(
        direction,
        fragment_bytes=fragment_bytes,
        n_fragments=n_fragments,
        host_run_bytes=host_run_bytes,
        aligned=aligned,
        pinned=pinned,
        available=available,
        thresholds=thresholds,
    )
    assert chosen.name in available
    assert chosen.reason
    if chosen.name in ("kernel", "staged"):
        assert aligned
        assert pinned
        assert n_fragments > thresholds.few_fragments
    if chosen.name == "staged":
        assert host_run_bytes >= thresholds.long_host_run


@given(
    direction=directions,
    sizes=st.tuples(st.integers(1, 1 << 22), st.integers(1, 1 << 22)),
    n_fragments=st.integers(1, 5000),
    thresholds=thresholds,
)
def test_larger_fragments_never_go_back_to_a_kernel(
    direction: Direction, sizes: tuple[int, int], n_fragments: int, thresholds: Thresholds
) -> None:
    names = [
        _choose(direction, fragment_bytes=size, n_fragments=n_fragments, thresholds=thresholds).name
        for size in sorted(sizes)
    ]
    assert names != ["batched", "kernel"]
    assert names != ["batched", "staged"]


@pytest.mark.parametrize("direction", get_args(Direction))
def test_large_fragments_go_to_the_copy_engines(direction: Direction) -> None:
    assert _choose(direction, fragment_bytes=LARGE_FRAGMENT).name == "batched"
    assert _choose(direction, fragment_bytes=LARGE_FRAGMENT, without=("batched",)).name == "plain"
    assert _choose(direction, fragment_bytes=LARGE_FRAGMENT - 1).name != "batched"


def test_small_loads_are_staged_where_host_runs_are_long() -> None:
    assert _choose(host_run_bytes=LONG_HOST_RUN).name == "staged"
    assert _choose(host_run_bytes=LONG_HOST_RUN - 1).name == "kernel"
    assert _choose(thresholds=Thresholds(stage_loads=False)).name == "kernel"


def test_small_stores_are_written_to_the_host_by_a_kernel() -> None:
    assert _choose("store").name == "kernel"
    assert _choose("store", thresholds=Thresholds(stage_stores=True)).name == "staged"


def test_few_fragments_go_to_the_copy_engines() -> None:
    assert _choose(n_fragments=FEW_FRAGMENTS).name == "batched"
    assert _choose(n_fragments=FEW_FRAGMENTS + 1).name == "staged"


@pytest.mark.parametrize(
    ("aligned", "pinned", "without", "name", "word"),
    [
        (False, True, (), "batched", "aligned"),
        (False, True, ("batched",), "plain", "aligned"),
        (True, False, (), "plain", "pinned"),
        (True, True, ("kernel", "staged"), "batched", "no kernel"),
        (True, True, ("kernel", "staged", "batched", "plain"), "torch", "batched copies are not to be had"),
    ],
)
def test_what_rules_the_kernels_out_is_the_reason(
    aligned: bool, pinned: bool, without: tuple[str, ...], name: str, word: str
) -> None:
    chosen = _choose(aligned=aligned, pinned=pinned, without=without)
    assert chosen.name == name
    assert word in chosen.reason


def test_reasons_name_the_sizes_that_decided() -> None:
    chosen = _choose(fragment_bytes=16 * KIB, n_fragments=1000, host_run_bytes=2048 * KIB)
    assert "1000 fragments of 16 KiB" in chosen.reason
    assert "2048 KiB" in chosen.reason


def test_nothing_to_choose_from_is_refused() -> None:
    with pytest.raises(ValueError, match="available"):
        _choose(without=EVERYTHING)
