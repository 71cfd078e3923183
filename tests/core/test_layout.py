"""Which file a block lies in, and which blocks may share a directory."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncoffload.core.layout import (
    FINGERPRINT_BYTES,
    block_path,
    describe,
    directory_name,
    fingerprint,
    is_fan_out,
    key_of,
)
from asyncoffload.keys import make_key
from asyncoffload.types import KVGroup, KVLayout

LAYOUT = KVLayout("org/model", "bfloat16", 16, (KVGroup((4096, 4096)),), parallel=(("tp", 2),))


def test_path_follows_the_hash() -> None:
    key = make_key(bytes.fromhex("0123456789ab"), 7)
    assert block_path("/d", key) == "/d/01_g7/0123456789ab.bin"


@given(st.binary(min_size=1, max_size=64), st.integers(0, 2**32 - 1))
def test_paths_lead_back_to_their_keys(block_hash: bytes, group: int) -> None:
    key = make_key(block_hash, group)
    parent, name = block_path("", key)[1:].split("/")
    assert is_fan_out(parent)
    assert key_of(parent, name) == key


@pytest.mark.parametrize(
    ("parent", "name"),
    [
        ("01_g7", "0123456789ab.bin.bad"),
        ("01_g7", "0123456789ab.bin.0123456789abcdef.tmp"),
        ("01_g7", "0123456789AB.bin"),
        ("01_g7", "0123456789a.bin"),
        ("02_g7", "0123456789ab.bin"),
        ("01_g07", "0123456789ab.bin"),
        ("01_g4294967296", "0123456789ab.bin"),
        ("01_g", "0123456789ab.bin"),
        ("01_g\u0663", "0123456789ab.bin"),
        ("01", "0123456789ab.bin"),
        ("01_g7", "config.json"),
    ],
)
def test_other_names_are_no_blocks(parent: str, name: str) -> None:
    assert key_of(parent, name) is None


@pytest.mark.parametrize("name", ["owners", "config.json", "0g_g0", "012_g0", "01", "01_g", ""])
def test_other_directories_are_no_fan_out(name: str) -> None:
    assert not is_fan_out(name)


@pytest.mark.parametrize(
    "other",
    [
        replace(LAYOUT, model="org/other"),
        replace(LAYOUT, revision="main"),
        replace(LAYOUT, dtype="float16"),
        replace(LAYOUT, block_size=32),
        replace(LAYOUT, block_size_factor=2),
        replace(LAYOUT, groups=(KVGroup((8192,)),)),
        replace(LAYOUT, groups=(KVGroup((4096,)), KVGroup((4096,)))),
        replace(LAYOUT, parallel=(("tp", 1),)),
        replace(LAYOUT, parallel=(("pp", 2),)),
    ],
)
def test_whatever_decides_the_bytes_decides_the_directory(other: KVLayout) -> None:
    assert fingerprint(other) != fingerprint(LAYOUT)
    assert directory_name(other) != directory_name(LAYOUT)


def test_ranks_have_directories_of_their_own_and_one_fingerprint() -> None:
    other = replace(LAYOUT, rank=1)
    assert fingerprint(other) == fingerprint(LAYOUT)
    assert directory_name(other) == f"{fingerprint(LAYOUT).hex()}_r1"


def test_fingerprint_is_what_it_always_was() -> None:
    """Blocks on disks out there are found by it: a change needs a new format version."""
    assert len(fingerprint(LAYOUT)) == FINGERPRINT_BYTES
    assert fingerprint(LAYOUT).hex() == "7366deada068dd0cc6e587368beecfcd"
    assert describe(LAYOUT) == {
        "format_version": 1,
        "model": "org/model",
        "revision": "",
        "dtype": "bfloat16",
        "block_size": 16,
        "block_size_factor": 1,
        "groups": [{"page_bytes": [4096, 4096]}],
        "parallel": [["tp", 2]],
    }
