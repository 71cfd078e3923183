"""Engines with the whole stack: how they are configured, and what they count."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.integrations.vllm.engine import Answer, Engine, Expected
from tests.integrations.vllm.model import BYTES_PER_BLOCK

SMALL = 16
"""Blocks of host memory that are less than two prompts and their answers take."""

MOVED = "vllm:asyncoffload_tier_moved"
CHECKED = "vllm:asyncoffload_checked_loads"
CACHED = "vllm:prompt_tokens_cached_by_source"


def stack(root: Path | None = None, *, host_blocks: int = SMALL, **keys: Any) -> dict[str, Any]:
    """The connector's configuration, with a file tier below a directory, and with loads verified."""
    return {
        "spec_name": "AsyncOffloadingSpec",
        "spec_module_path": "asyncoffload.integrations.vllm",
        "cpu_bytes_to_use": host_blocks * BYTES_PER_BLOCK,
        "secondary_tiers": [] if root is None else [{"type": "fs", "root_dir": str(root)}],
        "verify_loads": True,
        **keys,
    }


def same(answers: Sequence[Answer], numbers: Sequence[int], expected: Expected) -> bool:
    return all(answer.same_text(expected(number)) for answer, number in zip(answers, numbers, strict=True))


def checked(engine: Engine, result: str = "compared") -> float:
    return engine.metric(CHECKED, result=result)
