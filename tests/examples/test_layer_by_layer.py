"""Both ways of computing a prompt see the same bytes."""

from __future__ import annotations

from layer_by_layer import LAYERS, main


async def test_layers_that_are_computed_as_they_arrive_give_the_same_answers() -> None:
    answers = await main()
    assert len(answers["side_by_side"]) == LAYERS
    assert answers["side_by_side"] == answers["one_after_the_other"]
    assert min(answers["side_by_side"]) > 0
