"""The keys of the whole stack: what is accepted, and how mistakes are explained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncoffload.config import FileSystemTierSettings
from asyncoffload.errors import ConfigError
from asyncoffload.integrations.vllm.options import StackOptions


def test_a_whole_configuration_as_json_gives_it() -> None:
    options = StackOptions.parse(
        {
            "spec_name": "AsyncOffloadingSpec",
            "spec_module_path": "asyncoffload.integrations.vllm",
            "cpu_bytes_to_use": "8GiB",
            "eviction_policy": "arc",
            "store_threshold": 2,
            "blocks_per_chunk": 4,
            "drain_seconds": 1,
            "secondary_tiers": [{"type": "fs", "root_dir": "/kv", "io_threads": 4}, {"type": "memory"}],
        }
    )
    assert options.cpu_bytes_to_use == 8 << 30
    stack = options.stack()
    assert (stack.policy, stack.store_threshold) == ("arc", 2)
    assert stack.journal_blocks == 0, "nobody in an engine can ask for an explanation"
    assert isinstance(stack.tiers[0], FileSystemTierSettings)
    assert stack.tiers[0].root_dir == Path("/kv")


def test_what_vllm_makes_of_kv_offloading_size_is_accepted() -> None:
    options = StackOptions.parse({"cpu_bytes_to_use": 2.5 * (1 << 30)})
    assert options.cpu_bytes_to_use == 5 << 29
    assert options.stack().store_threshold == 1


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({}, "cpu_bytes_to_use is missing: Host memory"),
        (
            {"cpu_bytes_to_use": 1, "secondary_tier": []},
            "unknown setting 'secondary_tier': did you mean 'secondary_tiers'",
        ),
        ({"cpu_bytes_to_use": 1, "eviction_policy": "fifo"}, "eviction_policy is 'fifo': choose one of lru, arc"),
        ({"cpu_bytes_to_use": 1, "canonical_layout": True}, "canonical_layout is true"),
        ({"cpu_bytes_to_use": 1, "verify_loads": "yes"}, "verify_loads = 'yes'"),
        ({"cpu_bytes_to_use": 1, "load_seconds": 0}, "load_seconds = 0"),
        ({"cpu_bytes_to_use": 1, "secondary_tiers": [{"type": "memory"}] * 2}, "the name 'memory' is taken"),
        ({"cpu_bytes_to_use": 1, "secondary_tiers": [{"type": "FileSystemTier"}]}, 'say type = "fs"'),
    ],
)
def test_mistakes_are_named_with_their_remedy(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StackOptions.parse(keys)
