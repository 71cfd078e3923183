"""What the page on vLLM shows can be copied, and says what the options say. No vLLM is needed for that."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from asyncoffload.integrations.vllm.tier_options import FileSystemTierOptions, InMemoryTierOptions

PAGE = (Path(__file__).parents[3] / "docs" / "vllm.md").read_text()
CONFIGURATIONS = [json.loads(block) for block in re.findall(r"^```json\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)]
TIERS = {"FileSystemTier": FileSystemTierOptions, "InMemoryTier": InMemoryTierOptions}


def tier_table() -> list[str]:
    """The rows of the file tier's keys."""
    return [
        f"| `{name}` | {_default(field)} | {field.description} |"
        for name, field in FileSystemTierOptions.model_fields.items()
        if name != "type"
    ]


def _default(field: FieldInfo) -> str:
    return "required" if field.is_required() else "none" if field.default is None else f"`{json.dumps(field.default)}`"


def test_each_key_of_the_file_tier_has_its_row() -> None:
    assert "\n".join(tier_table()) in PAGE


@pytest.mark.parametrize("index", range(len(CONFIGURATIONS)))
def test_configurations_are_valid(index: int) -> None:
    configuration: dict[str, Any] = CONFIGURATIONS[index]
    assert configuration["kv_connector"] == "OffloadingConnector"
    for tier in configuration["kv_connector_extra_config"].get("secondary_tiers", []):
        if "module_path" in tier:
            options = {key: value for key, value in tier.items() if key not in ("type", "module_path", "backpressure")}
            TIERS[tier["type"]](**options)


def test_each_declared_metric_is_named() -> None:
    pytest.importorskip("vllm.v1.kv_offload.tiering.spec", reason="vLLM is not installed")
    from asyncoffload.integrations.vllm.metrics import tier_metrics

    assert [name for name in tier_metrics() if f"`{name}`" not in PAGE] == []
