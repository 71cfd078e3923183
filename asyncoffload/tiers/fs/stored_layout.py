"""From a ``config.json`` back to the layout that it describes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from asyncoffload.core.layout import FORMAT_VERSION, directory_name
from asyncoffload.errors import ConfigError, InvalidArgument
from asyncoffload.tiers.fs.config_file import CONFIG, config_of
from asyncoffload.tiers.fs.survey import LayoutDirectory
from asyncoffload.types import KVGroup, KVLayout


def read_stored_layout(directory: LayoutDirectory) -> KVLayout:
    """The layout whose blocks lie in a directory. Blocks for one small read.

    Raises:
        FileNotFoundError: the directory has no ``config.json``, as one that was just made.
        ConfigError: the file is damaged, of another format version, or describes another directory's blocks.
        OSError: the operating system refused.
    """
    path = os.path.join(directory.path, CONFIG)
    with open(path, encoding="utf-8", errors="replace") as file:
        text = file.read()
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{path} is not JSON ({error}): tiers will refuse the directory; move the file away, and the next tier "
            "that opens the directory writes it anew"
        ) from None
    if isinstance(config, dict) and config.get("format_version") not in (None, FORMAT_VERSION):
        raise ConfigError(
            f"{path} is of format version {config['format_version']!r}, this version of asyncoffload reads "
            f"{FORMAT_VERSION}: use the version that wrote it, or remove the directory"
        )
    layout = _layout_of(config)
    if layout is None or config_of(layout) != config:
        raise ConfigError(
            f"{path} is not what a tier writes: {' '.join(text.split())[:400]}\n"
            "Tiers will refuse the directory; move the file away, and the next tier that opens it writes it anew."
        )
    if directory_name(layout) != directory.name:
        raise ConfigError(
            f"{path} describes the blocks of {directory_name(layout)}, not of {directory.name}: a directory was "
            "renamed, or the file copied; give the directory its name back, or move the file away"
        )
    return layout


def _layout_of(config: Any) -> KVLayout | None:
    if not isinstance(config, Mapping):
        return None
    try:
        return KVLayout(
            model=config["model"],
            revision=config["revision"],
            dtype=config["dtype"],
            block_size=config["block_size"],
            block_size_factor=config["block_size_factor"],
            groups=tuple(KVGroup(tuple(group["page_bytes"])) for group in config["groups"]),
            parallel=tuple((name, size) for name, size in config["parallel"]),
            rank=config["rank"],
        )
    except (KeyError, TypeError, ValueError, InvalidArgument):
        return None
