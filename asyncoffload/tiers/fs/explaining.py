"""What a file tier can tell about one block: its file, what is like it below the root, and what left when and why.

Everything here blocks and runs in an I/O thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from asyncoffload.core.layout import describe
from asyncoffload.core.verdict import ago, merged
from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey, block_hash_of, group_of
from asyncoffload.tiers.fs.blockfile import SET_ASIDE
from asyncoffload.tiers.fs.space import BlockSpace
from asyncoffload.tiers.fs.stored_layout import read_stored_layout
from asyncoffload.tiers.fs.survey import LayoutDirectory, fan_out_of, layout_directories
from asyncoffload.types import Fate, Findings, HistoryEntry

_SHOWN = 60


def findings(space: BlockSpace, key: OffloadKey, tier: str, seen: Sequence[HistoryEntry]) -> Findings:
    """What there is to tell.

    Args:
        space: where the blocks lie.
        key: the block.
        tier: the tier's name.
        seen: what the tier has seen of it in this process.
    """
    path = space.path(key)
    left = [HistoryEntry(one.when, tier, one.what, one.why) for one in space.departures_of(key)]
    with suppress(FileNotFoundError):
        set_aside = os.stat(path + SET_ASIDE, follow_symlinks=False).st_ctime
        if not any(one.what is Fate.CORRUPT for one in left):
            left.append(HistoryEntry(set_aside, tier, Fate.CORRUPT))
    try:
        status = os.stat(path, follow_symlinks=False)
        holds, details = True, f"{path}, {status.st_size:,} bytes, last used {ago(time.time() - status.st_mtime)}"
    except FileNotFoundError:
        holds, details = False, ""
    return Findings(holds, details, merged(seen, left), [] if holds else list(_elsewhere(space, key)))


def _elsewhere(space: BlockSpace, key: OffloadKey) -> Iterable[str]:
    """The files of the same hash that are other blocks, and what sets them apart."""
    digits = block_hash_of(key).hex()
    own, place = os.path.basename(space.directory), os.path.basename(os.path.dirname(space.path(key)))
    directories: Sequence[LayoutDirectory] = ()
    with suppress(FileNotFoundError):  # the root is gone
        directories = layout_directories(space.root)
    for directory in directories:
        for parent in fan_out_of(directory):
            if not parent.startswith(f"{digits[:2]}_g") or (directory.name, parent) == (own, place):
                continue
            if os.path.exists(os.path.join(directory.path, parent, f"{digits}.bin")):
                apart = [] if directory.name == own else [_difference(directory, space.config)]
                if parent != place:
                    apart.append(f"group {parent.rpartition('_g')[2]} there, {group_of(key)} here")
                yield f"the same hash {_place_of(directory, own)}: {', '.join(apart)}"


def _place_of(directory: LayoutDirectory, own: str) -> str:
    if directory.name == own:
        return "in another group"
    if directory.fingerprint.hex() == own.partition("_")[0]:
        return "of another rank"
    return "under another fingerprint"


def _difference(directory: LayoutDirectory, ours: Mapping[str, object]) -> str:
    """What a layout has that ours has not."""
    try:
        layout = read_stored_layout(directory)
    except (OSError, ConfigError):
        return f"what it means is not known, since its {directory.name}/config.json cannot be read"
    theirs: dict[str, Any] = {"rank": layout.rank, **describe(layout)}
    different = [name for name in theirs if theirs[name] != ours[name]]
    return ", ".join(f"{name} {_short(theirs[name])} there, {_short(ours[name])} here" for name in different)


def _short(value: object) -> str:
    text = value if isinstance(value, str) and value else repr(value)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
