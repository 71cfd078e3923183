"""Shorthands for tests of our tiers in real engines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integrations.vllm.engine import CACHED_TOKENS, Engine, Expected
from tests.integrations.vllm.model import TOKENS_PER_BLOCK

SMALL = 16
"""Blocks of host memory that are less than two prompts and their answers take."""

KEYS = "vllm:asyncoffload_tier_keys"


def file_tier(root: Path, **options: Any) -> dict[str, Any]:
    return {
        "type": "FileSystemTier",
        "module_path": "asyncoffload.integrations.vllm",
        "root_dir": str(root),
        "max_queued_bytes": "64MiB",  # the default would be a few blocks of so little host memory
        **options,
    }


def loaded_blocks(engine: Engine) -> float:
    return engine.metric(KEYS, direction="load", status="done")


def cached_from(engine: Engine, source: str) -> float:
    """Tokens that vLLM counts as coming from this medium."""
    return engine.metric("vllm:prompt_tokens_cached_by_source", source=source)


def ask_from_tier(
    engine: Engine, number: int, expected: Expected, *, chunk_blocks: int = 1, source: str = "disk"
) -> None:
    """Ask a prompt whose blocks are nowhere but in the tier, and compare the answer and everybody's counts."""
    engine.evict_device()
    hits, loaded, by_source = engine.external_hits, loaded_blocks(engine), cached_from(engine, source)
    [answer] = engine.ask(number)
    assert answer.same_text(expected(number))
    chunk_tokens = chunk_blocks * TOKENS_PER_BLOCK
    whole_chunks = CACHED_TOKENS // chunk_tokens
    assert answer.cached == whole_chunks * chunk_tokens
    assert engine.external_hits - hits == answer.cached
    assert loaded_blocks(engine) - loaded == whole_chunks
    assert cached_from(engine, source) - by_source == answer.cached
