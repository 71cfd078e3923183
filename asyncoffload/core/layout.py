"""Which file a block lives in, and which blocks may share a directory.

Blocks may share a directory only if their bytes mean the same thing. Everything that decides this is spelled out by
:func:`describe`, and its hash, the :func:`fingerprint`, names the directory. Ranks hold different parts of a block, so
each has a directory of its own::

    <root>/<fingerprint>_r<rank>/config.json
    <root>/<fingerprint>_r<rank>/<hh>_g<group>/<hash>.bin

where ``hh`` are the first two hexadecimal digits of the block hash. With a uniform hash the 256 directories of a group
are made once and hold some 4,000 files each at a million blocks, which file systems with indexed directories take
lightly. A finer fan-out makes a directory or two for every block, which costs more than writing a small block does.
"""

from __future__ import annotations

import json
import re
from hashlib import blake2b

from asyncoffload.keys import GROUP_BYTES, OffloadKey, block_hash_of, group_of, make_key
from asyncoffload.types import KVLayout

FORMAT_VERSION = 1
"""Version of everything below a fingerprint directory; a change of any of it makes a new fingerprint."""

FINGERPRINT_BYTES = 16

_FAN_OUT = re.compile(r"[0-9a-f]{2}_g(?P<group>[0-9]{1,10})")
_BLOCK = re.compile(r"(?P<hash>(?:[0-9a-f]{2}){1,64})\.bin")


def describe(layout: KVLayout) -> dict[str, object]:
    """Everything that decides what the bytes of an offloaded block mean, in values that JSON keeps exactly.

    The rank is left out: it says *which* part of the blocks a process holds, not what the parts look like.
    """
    return {
        "format_version": FORMAT_VERSION,
        "model": layout.model,
        "revision": layout.revision,
        "dtype": layout.dtype,
        "block_size": layout.block_size,
        "block_size_factor": layout.block_size_factor,
        "groups": [{"page_bytes": list(group.page_bytes)} for group in layout.groups],
        "parallel": [[name, size] for name, size in layout.parallel],
    }


def fingerprint(layout: KVLayout) -> bytes:
    """BLAKE2b over the canonical JSON form of :func:`describe`, ``FINGERPRINT_BYTES`` long."""
    canonical = json.dumps(describe(layout), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return blake2b(canonical.encode(), digest_size=FINGERPRINT_BYTES).digest()


def directory_name(layout: KVLayout) -> str:
    """Name of the directory below the root that holds the blocks of this layout and rank."""
    return f"{fingerprint(layout).hex()}_r{layout.rank}"


def block_path(directory: str, key: OffloadKey) -> str:
    """Path of a block's file below the directory of its layout."""
    digits = block_hash_of(key).hex()
    return f"{directory}/{digits[:2]}_g{group_of(key)}/{digits}.bin"


def is_fan_out(name: str) -> bool:
    """Whether a name is one that :func:`block_path` may give to a directory."""
    return _FAN_OUT.fullmatch(name) is not None


def may_be_block(parent: str, name: str) -> bool:
    """Whether a file in a directory of the fan-out has the name of a block, as far as is cheap to tell."""
    return _BLOCK.fullmatch(name) is not None and name[:2] == parent[:2]


def key_of(parent: str, name: str) -> OffloadKey | None:
    """The key whose :func:`block_path` ends in ``parent/name``; None when there is no such key."""
    place, block = _FAN_OUT.fullmatch(parent), _BLOCK.fullmatch(name)
    if place is None or block is None or int(place["group"]) >= 1 << (8 * GROUP_BYTES):
        return None
    key = make_key(bytes.fromhex(block["hash"]), int(place["group"]))
    return key if block_path("", key) == f"/{parent}/{name}" else None
