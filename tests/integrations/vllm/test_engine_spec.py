"""The whole stack in a real engine, all in one process: the same tokens and log-probabilities, wherever blocks are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from asyncoffload.errors import CorruptBlockError
from asyncoffload.memory import shared
from tests.integrations.vllm.engine import CACHED_TOKENS, PROMPT_TOKENS, Answer, Expected, prompt, running
from tests.integrations.vllm.model import TOKENS_PER_BLOCK
from tests.integrations.vllm.stack_engine import CACHED, MOVED, checked, same, stack

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM's own are many
    pytest.mark.timeout(300),
]


def spoil_host_memory() -> None:
    """Zero all slots behind everybody's back."""
    [group] = shared._groups.values()
    group.region.tensor.zero_()


def test_host_memory_alone_and_a_load_of_zeros(model: Path, expected: Expected) -> None:
    with running(model, stack(host_blocks=256, verify_loads=False)) as engine:
        assert same(engine.ask(1, 2), (1, 2), expected)
        engine.forget_device()
        after_reset = engine.ask(1, 2)
        engine.evict_device()
        after_eviction = engine.ask(2, 1)
        assert same(after_reset + after_eviction, (1, 2, 2, 1), expected)
        assert {answer.cached for answer in after_reset + after_eviction} == {CACHED_TOKENS}
        assert engine.external_hits == 4 * CACHED_TOKENS == engine.metric(CACHED, source="host")
        engine.settle()
        assert not engine.manager.has_pending_work()

        spoil_host_memory()
        engine.forget_device()
        [spoilt] = engine.ask(1)
        assert spoilt.cached == CACHED_TOKENS
        assert spoilt.tokens != expected(1).tokens, "without this, the rest would prove nothing"
    assert not shared._groups, "the engine has left the shared memory"


def test_hits_from_disk_when_host_memory_is_small(model: Path, expected: Expected, tmp_path: Path) -> None:
    numbers = (1, 2, 3, 4)
    with running(model, stack(tmp_path)) as engine:
        for number in numbers:
            assert same(engine.ask(number), (number,), expected)
            engine.settle()  # what host memory has no room for is on disk before the next prompt pushes it out
        for _ in range(2):
            engine.evict_device()
            hits = engine.external_hits
            answers = engine.ask(*numbers)
            assert same(answers, numbers, expected)
            assert engine.external_hits - hits == sum(answer.cached for answer in answers) == 4 * CACHED_TOKENS
        engine.settle()
        assert engine.metric(CACHED, source="disk") == 8 * CACHED_TOKENS
        assert engine.metric(MOVED, event="promoted") >= 8 * CACHED_TOKENS // TOKENS_PER_BLOCK
        assert (checked(engine), checked(engine, "unknown")) == (8 * CACHED_TOKENS // TOKENS_PER_BLOCK, 0)
        assert not engine.manager.has_pending_work()

        # Blocks that were damaged on disk are computed, and stored anew.
        for number, path in enumerate(tmp_path.rglob("*.bin")):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content[: len(content) - 5] if number % 2 else content)
        engine.evict_device()
        assert same(engine.ask(*numbers), numbers, expected)
        engine.settle()
        assert engine.metric(MOVED, event="refused_corrupt") > 0
        engine.evict_device()
        answers = engine.ask(*numbers)
        assert same(answers, numbers, expected)
        assert {answer.cached for answer in answers} == {CACHED_TOKENS}

        # Voiding host memory makes the next answers come from disk again, or be computed; never wrong.
        assert engine.llm.reset_prefix_cache(reset_connector=True)
        again = engine.ask(*numbers)
        assert same(again, numbers, expected)
        assert {answer.cached for answer in again} == {CACHED_TOKENS}
        engine.settle()
        state = engine.manager._blocks.stats()
        assert (state.doomed, state.writing, state.pinned) == (0, 0, 0)


def test_larger_chunks_entered_part_way_and_arc(model: Path, expected: Expected, tmp_path: Path) -> None:
    connector = stack(tmp_path, blocks_per_chunk=2, eviction_policy="arc")
    with running(model, connector) as engine:
        assert same(engine.ask(1, 2), (1, 2), expected)
        engine.evict_device()
        # Three blocks on the device: two loaded as a chunk, one computed. The whole prompt then begins to load in
        # the middle of its second chunk.
        [short] = engine.complete([prompt(1)[: 3 * TOKENS_PER_BLOCK + 1]])
        assert short.cached == 2 * TOKENS_PER_BLOCK
        hits = engine.external_hits
        [whole] = engine.ask(1)
        assert whole.same_text(expected(1))
        whole_chunks = PROMPT_TOKENS // TOKENS_PER_BLOCK // 2 * 2 * TOKENS_PER_BLOCK
        assert whole.cached == whole_chunks
        assert engine.external_hits - hits == whole_chunks - 3 * TOKENS_PER_BLOCK
        engine.evict_device()
        answers = engine.ask(1, 2)
        assert same(answers, (1, 2), expected)
        assert [answer.cached for answer in answers] == [whole_chunks] * 2
        engine.settle()
        assert checked(engine) > 0 == checked(engine, "unknown")


def test_demotion_to_durable_files_and_the_next_engine(model: Path, expected: Expected, tmp_path: Path) -> None:
    numbers = (1, 2, 3, 4)
    files = {"type": "fs", "root_dir": str(tmp_path), "durability": "fsync"}
    connector = stack(
        write_policy="demote",
        dirty_victims="refuse",
        flush_at_shutdown=True,
        drain_seconds=30.0,
        secondary_tiers=[files],
    )
    with running(model, connector) as engine:
        for number in numbers:
            assert same(engine.ask(number), (number,), expected)
            engine.settle()
        engine.evict_device()
        assert same(engine.ask(*numbers), numbers, expected)
        engine.settle()
        assert engine.manager._blocks.stats().lost == 0
    with running(model, connector) as engine:
        answers = engine.ask(*numbers)
        assert same(answers, numbers, expected)
        assert {answer.cached for answer in answers} == {CACHED_TOKENS}
        engine.settle()
        assert engine.metric(CACHED, source="disk") == 4 * CACHED_TOKENS


def test_an_engine_ends_when_it_loads_other_bytes_than_it_stored(model: Path) -> None:
    with running(model, stack(host_blocks=64)) as engine:
        engine.ask(1)
        spoil_host_memory()
        engine.forget_device()
        with pytest.raises(CorruptBlockError, match="verify_loads: the block of key"):
            engine.ask(1)


def test_groups_of_layers_with_and_without_a_window(model: Path, tmp_path: Path) -> None:
    hybrid = tmp_path / "model"
    shutil.copytree(model, hybrid)
    configuration = json.loads((hybrid / "config.json").read_text())
    configuration |= {
        "sliding_window": 2 * TOKENS_PER_BLOCK,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    }
    (hybrid / "config.json").write_text(json.dumps(configuration))
    with running(hybrid) as engine:
        alone = engine.ask(1, 2)
    with running(hybrid, stack(tmp_path / "kv", host_blocks=12)) as engine:
        assert all(map(Answer.same_text, engine.ask(1, 2), alone))
        for _ in range(2):
            engine.evict_device()
            answers = engine.ask(1, 2)
            assert all(map(Answer.same_text, answers, alone))
            assert [answer.cached for answer in answers] == [CACHED_TOKENS] * 2
        engine.settle()
        assert engine.metric(MOVED, event="promoted") > 0
        assert checked(engine) > 0 == checked(engine, "unknown")
