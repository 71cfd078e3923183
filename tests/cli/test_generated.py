"""Generated traffic is repeatable, ordered, prefix-chained and shared as real traffic is."""

from __future__ import annotations

import pytest

from asyncoffload.cli.generated import LONGEST_CONTEXT_TOKENS, generated_traffic
from asyncoffload.cli.traffic import TOKENS_PER_BLOCK
from asyncoffload.errors import InvalidArgument


def test_the_same_seed_gives_the_same_traffic() -> None:
    assert generated_traffic(200, seed=3) == generated_traffic(200, seed=3)
    assert generated_traffic(200, seed=3) != generated_traffic(200, seed=4)


@pytest.mark.parametrize("requests", [1, 500])
def test_requests_come_in_order_of_arrival(requests: int) -> None:
    traffic = generated_traffic(requests)
    assert len(traffic) == requests
    assert [request.arrival for request in traffic] == sorted(request.arrival for request in traffic)


def test_only_full_blocks_are_named_and_the_context_is_bounded() -> None:
    for request in generated_traffic(500):
        assert len(request.blocks) == request.input_tokens // TOKENS_PER_BLOCK
        assert request.input_tokens <= LONGEST_CONTEXT_TOKENS


def test_a_block_always_stands_behind_the_same_prefix() -> None:
    parents: dict[int, int] = {}
    for request in generated_traffic(500):
        for parent, block in zip((-1, *request.blocks), request.blocks, strict=False):
            assert parents.setdefault(block, parent) == parent


def test_most_of_the_traffic_is_seen_before_and_much_of_it_only_once() -> None:
    uses: dict[int, int] = {}
    for request in generated_traffic(1000):
        for block in request.blocks:
            uses[block] = uses.get(block, 0) + 1
    assert 0.75 < 1 - len(uses) / sum(uses.values()) < 0.97
    assert sum(count == 1 for count in uses.values()) > 0.2 * len(uses)


def test_no_requests_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="at least one request is needed, got 0"):
        generated_traffic(0)
