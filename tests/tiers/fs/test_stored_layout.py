"""A ``config.json`` leads back to exactly the layout that wrote it, or to a clear refusal."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncoffload.core.layout import directory_name
from asyncoffload.errors import ConfigError
from asyncoffload.tiers.fs.config_file import agree_on_config, config_of
from asyncoffload.tiers.fs.stored_layout import read_stored_layout
from asyncoffload.tiers.fs.survey import LayoutDirectory, layout_directories
from asyncoffload.types import KVGroup, KVLayout

counts = st.integers(1, 1 << 40)
groups = st.lists(st.lists(counts, min_size=1, max_size=3).map(lambda pages: KVGroup(tuple(pages))), min_size=1)
layouts = st.builds(
    KVLayout,
    model=st.text(),
    dtype=st.text(),
    block_size=counts,
    groups=groups.map(tuple),
    revision=st.text(),
    block_size_factor=counts,
    parallel=st.lists(st.tuples(st.text(), counts), max_size=3).map(tuple),
    rank=st.integers(0, 2**32 - 1),
)


def placed(root: Path, layout: KVLayout, text: str) -> LayoutDirectory:
    path = root / directory_name(layout)
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(text, encoding="utf-8")
    return next(each for each in layout_directories(str(root)) if each.path == str(path))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(layout=layouts)
def test_there_and_back(tmp_path: Path, layout: KVLayout) -> None:
    assert read_stored_layout(placed(tmp_path, layout, json.dumps(config_of(layout)))) == layout


LAYOUT = KVLayout("m", "bfloat16", 16, (KVGroup((4096,)),))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fingerprint": "00"}, "is not what a tier writes"),
        ({"block_size": "16"}, "is not what a tier writes"),
        ({"block_size": 0}, "is not what a tier writes"),
        ({"extra": 1}, "is not what a tier writes"),
        ({"groups": 3}, "is not what a tier writes"),
        ({"format_version": 99}, "is of format version 99"),
        (config_of(KVLayout("other", "bfloat16", 16, (KVGroup((4096,)),))), "was renamed, or the file copied"),
    ],
)
def test_a_config_that_says_something_else_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    directory = placed(tmp_path, LAYOUT, json.dumps(config_of(LAYOUT) | change))
    with pytest.raises(ConfigError, match=message):
        read_stored_layout(directory)


def test_a_directory_without_config(tmp_path: Path) -> None:
    directory = placed(tmp_path, LAYOUT, "")
    (Path(directory.path) / "config.json").unlink()
    with pytest.raises(FileNotFoundError):
        read_stored_layout(directory)


def test_one_that_is_nested_too_deeply_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not JSON"):
        read_stored_layout(placed(tmp_path, LAYOUT, "[" * 100_000))


def _placed_file(root: Path) -> Path:
    return Path(placed(root, LAYOUT, "[" * 100_000).path) / "config.json"


async def test_a_tier_refuses_such_a_one(tmp_path: Path) -> None:
    path = str(await asyncio.to_thread(_placed_file, tmp_path))
    with ThreadPoolExecutor(1) as threads, pytest.raises(ConfigError, match="describes other blocks"):
        await agree_on_config(path, config_of(LAYOUT), f"{path}.tmp", threads)
