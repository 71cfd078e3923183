"""What the page on vLLM says about the whole stack is what its options and metrics say."""

from __future__ import annotations

import json
import re

import pytest

from asyncoffload.config import FileSystemTierSettings
from asyncoffload.integrations.vllm.options import StackOptions
from tests.integrations.vllm.test_docs import CONFIGURATIONS, PAGE, _default


def stack_table() -> list[str]:
    """The rows of the stack's keys."""
    return [
        f"| `{name}` | {_default(field)} | {field.description} |"
        for name, field in StackOptions.model_fields.items()
        if name not in ("spec_name", "spec_module_path", "canonical_layout")
    ]


def test_each_key_of_the_stack_has_its_row() -> None:
    assert "\n".join(stack_table()) in PAGE


def test_each_key_of_a_file_tier_behind_the_stack_is_named() -> None:
    (paragraph,) = (text for text in PAGE.split("\n\n") if "the keys of an entry of `secondary_tiers`" in text)
    keys = FileSystemTierSettings.model_fields.keys() - {"type"}
    assert set(re.findall(r"`(\w+)`", paragraph)) == keys | {"secondary_tiers", "FileSystemTier"}


def test_its_configurations_are_valid() -> None:
    extra = [configuration["kv_connector_extra_config"] for configuration in CONFIGURATIONS]
    of_the_stack = [keys for keys in extra if keys["spec_name"] == "AsyncOffloadingSpec"]
    assert len(of_the_stack) == 2, json.dumps(extra)
    for keys in of_the_stack:
        StackOptions.parse(keys)


def test_each_metric_of_the_stack_is_named() -> None:
    pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")
    from asyncoffload.integrations.vllm.stack_metrics import stack_metrics

    assert [name for name in stack_metrics() if f"`{name}`" not in PAGE] == []
