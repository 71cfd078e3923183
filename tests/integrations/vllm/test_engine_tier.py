"""Our tiers behind vLLM's own host memory, in real engines: the same tokens and log-probabilities, sooner."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integrations.vllm.engine import CACHED_TOKENS, Expected, running, tiering
from tests.integrations.vllm.model import TOKENS_PER_BLOCK
from tests.integrations.vllm.tier_engine import KEYS, SMALL, ask_from_tier, file_tier, loaded_blocks

pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("ignore"),  # vLLM's own are many
    pytest.mark.timeout(300),
]


def test_a_load_of_zeros_is_noticed(model: Path, expected: Expected) -> None:
    """Without this, the tests below would prove nothing."""
    with running(model, tiering(zero_loads=True)) as engine:
        [answer] = engine.ask(1)
        assert answer.same_text(expected(1))
        engine.forget_device()
        [answer] = engine.ask(1)
    assert answer.cached == CACHED_TOKENS
    assert answer.tokens != expected(1).tokens


def test_after_a_reset_and_after_eviction_with_room_in_host_memory(
    model: Path, expected: Expected, tmp_path: Path
) -> None:
    with running(model, tiering(file_tier(tmp_path))) as engine:
        for answer in engine.ask(1, 2, 1):
            assert answer.cached in (0, CACHED_TOKENS)
        engine.forget_device()
        after_reset = engine.ask(1, 2)
        engine.evict_device()
        after_eviction = engine.ask(2, 1)
        assert engine.external_hits == 4 * CACHED_TOKENS
        assert loaded_blocks(engine) == 0, "everything was still in host memory"
        assert engine.metric(KEYS, direction="store") == engine.metric(KEYS, direction="store", status="done") > 0
        assert not engine.manager.has_pending_work()
    assert [answer.cached for answer in after_reset + after_eviction] == [CACHED_TOKENS] * 4
    for number, answer in zip((1, 2, 2, 1), after_reset + after_eviction, strict=True):
        assert answer.same_text(expected(number))


@pytest.fixture(scope="module")
def warm_root(model: Path, expected: Expected, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to which an engine with little host memory has stored prompts 1 to 3, and read them back."""
    root = tmp_path_factory.mktemp("warm")
    with running(model, tiering(file_tier(root), host_blocks=SMALL)) as engine:
        assert all(answer.cached == 0 for answer in engine.ask(1, 2, 3))
        for number in (1, 2, 3):
            ask_from_tier(engine, number, expected)
    return root


def test_with_little_host_memory_hits_come_from_disk(warm_root: Path) -> None:
    assert len(list(warm_root.rglob("*.bin"))) >= 3 * CACHED_TOKENS // TOKENS_PER_BLOCK


def test_in_other_processes_on_the_same_directory(model: Path, expected: Expected, warm_root: Path) -> None:
    with running(model, tiering(file_tier(warm_root), host_blocks=SMALL), processes=3) as engine:
        for number in (1, 2):
            ask_from_tier(engine, number, expected)


def test_two_ranks_share_nothing_with_one(model: Path, warm_root: Path) -> None:
    """Two ranks add in another order than one, so their answers can only be compared with their own."""
    with running(
        model, tiering(file_tier(warm_root), host_blocks=SMALL), processes=3, tensor_parallel_size=2
    ) as engine:
        [computed] = engine.ask(1)
        assert computed.cached == 0, "the blocks of one rank are not theirs"
        ask_from_tier(engine, 1, lambda _: computed)
    assert len([path for path in warm_root.iterdir() if path.is_dir()]) == 2


def test_larger_chunks_and_arc(model: Path, expected: Expected, tmp_path: Path) -> None:
    connector = tiering(file_tier(tmp_path), host_blocks=SMALL, blocks_per_chunk=2, eviction_policy="arc")
    with running(model, connector) as engine:
        engine.ask(1, 2)
        for number in (1, 2):
            ask_from_tier(engine, number, expected, chunk_blocks=2)


def test_the_tier_in_memory_with_events(model: Path, expected: Expected) -> None:
    tier = {"type": "InMemoryTier", "module_path": "asyncoffload.integrations.vllm", "enable_kv_events": True}
    events = {"enable_kv_cache_events": True, "publisher": "null"}
    connector = tiering(tier, host_blocks=SMALL, eviction_policy="arc")
    with running(model, connector, kv_events_config=events) as engine:
        published = engine.published_events()
        engine.ask(1, 2)
        for number in (1, 2):
            ask_from_tier(engine, number, expected, source="host")
        engine.settle()
    stored = [event for event in published if type(event).__name__ == "BlockStored" and event.ownership == "memory"]
    assert len({block for event in stored for block in event.block_hashes}) >= 2 * CACHED_TOKENS // TOKENS_PER_BLOCK
