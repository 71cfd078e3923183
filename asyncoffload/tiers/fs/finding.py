"""Where a block lies below a root, in whichever layout, and what left of it."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from asyncoffload.core.layout import key_of
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import GROUP_BYTES, MAX_HASH_BYTES, OffloadKey, block_hash_of
from asyncoffload.tiers.fs.departures import Departure, departures_of
from asyncoffload.tiers.fs.survey import FoundFile, LayoutDirectory, fan_out_of, files_in

SHORTEST = 4
"""Digits that a block must be named by at least."""

_DIGITS = re.compile(rf"[0-9a-f]{{{SHORTEST},{2 * (MAX_HASH_BYTES + GROUP_BYTES)}}}")


@dataclass(frozen=True, slots=True)
class PlaceOfBlock:
    """What is about a block: the block itself, one that is being written or in quarantine, or what has its name."""

    directory: LayoutDirectory
    file: FoundFile
    key: OffloadKey


def places_of(directories: list[LayoutDirectory], name: str) -> list[PlaceOfBlock]:
    """The files that are about a block. Blocks for reading one or a few directories.

    Args:
        directories: where to look.
        name: in hexadecimal digits, the key, the block hash, or the beginning of a block hash.

    Raises:
        InvalidArgument: the name is none of these.
        OSError: a directory cannot be read.
    """
    digits = _digits_of(name)
    found = []
    for directory in directories:
        for parent in fan_out_of(directory):
            if parent.startswith(digits[:2]):
                named = ((file, _key_of(parent, file)) for file in files_in(directory, parent))
                found += [PlaceOfBlock(directory, file, key) for file, key in named if key and _is(key, digits)]
    return sorted(found, key=lambda place: (place.key, place.file.path))


def departures_named(root: str, name: str) -> list[Departure]:
    """What left of a block, oldest first; ``name`` as in :func:`places_of`. Blocks.

    Raises:
        InvalidArgument: the name names no block.
    """
    digits = _digits_of(name)
    found = [*departures_of(root, digits), *departures_of(root, digits[: -2 * GROUP_BYTES] or digits)]
    left = dict.fromkeys(departure for departure in found if _is(departure.key, digits))
    return sorted(left, key=lambda departure: departure.when)


def _key_of(parent: str, file: FoundFile) -> OffloadKey | None:
    """The block that a file is about; what is no file may have the name of a block all the same."""
    return file.key or key_of(parent, os.path.basename(file.path))


def _digits_of(name: str) -> str:
    digits = name.lower().removeprefix("0x")
    if not _DIGITS.fullmatch(digits):
        raise InvalidArgument(
            f"{name!r} names no block: give the hexadecimal digits of its key (key.hex()), of its block hash, or the "
            f"first {SHORTEST} or more digits of it"
        )
    return digits


def _is(key: OffloadKey, digits: str) -> bool:
    return key.hex() == digits or block_hash_of(key).hex().startswith(digits)
