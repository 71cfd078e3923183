"""The step-driven engine serves, reuses what was computed, and gives every device block back."""

from __future__ import annotations

from pathlib import Path

from legacy_engine import BLOCKS_PER_TURN, CONVERSATIONS, TURNS, main


def test_every_turn_is_served_and_earlier_turns_are_reused(tmp_path: Path) -> None:
    counts = main(tmp_path)
    assert counts["requests"] == CONVERSATIONS * TURNS
    blocks = CONVERSATIONS * BLOCKS_PER_TURN * sum(range(1, TURNS + 1))
    assert counts["blocks computed"] + counts["blocks loaded"] == blocks
    assert counts["blocks loaded"] > 0
    assert counts["waits"] > 0


def test_what_one_run_stored_the_next_one_loads(tmp_path: Path) -> None:
    main(tmp_path)
    assert main(tmp_path)["blocks computed"] < CONVERSATIONS * BLOCKS_PER_TURN * TURNS
