"""What a block file looks like: one header page, then the payload, filled up with zeros to whole pages.

======  =====  ==========================================================
offset  bytes  field (little-endian)
======  =====  ==========================================================
0       8      magic
8       2      format version
10      2      bytes of the key
12      4      rank
16      16     fingerprint of the layout
32      8      bytes of the payload
40      68     key, filled up with zeros
108     3980   zeros
4088    8      XXH3-64 of every other byte of the file
======  =====  ==========================================================

The header takes a whole page so that the payload begins at an aligned offset: with ``O_DIRECT`` the device then reads
and writes the slot itself, without a copy. Since the checksum covers every byte, zeros included, and the header names
the block, a file can be whole only under the key, layout and rank that it was written for.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import NamedTuple

import xxhash

from asyncoffload.core.layout import FORMAT_VERSION
from asyncoffload.keys import MAX_HASH_BYTES, OffloadKey

PAGE = 4096
"""Alignment of offsets, lengths and addresses that ``O_DIRECT`` accepts on every common device, in bytes."""

MAGIC = b"\x89AOKV\r\n\x1a"
CHECKSUM_AT = PAGE - 8

_FIELDS = struct.Struct(f"<8sHHI16sQ{MAX_HASH_BYTES + 4}s")
_CHECKSUM = struct.Struct("<Q")
_REST = bytes(CHECKSUM_AT - _FIELDS.size)


class Header(NamedTuple):
    """What the beginning of a file says, whether it is true or not."""

    magic: bytes
    version: int
    key: bytes
    rank: int
    fingerprint: bytes
    payload_bytes: int


def read_header(page: bytes) -> Header:
    """The fields at the beginning of a header page; ``page`` has at least ``CHECKSUM_AT`` bytes."""
    magic, version, key_bytes, rank, fingerprint, payload_bytes, padded_key = _FIELDS.unpack_from(page)
    return Header(magic, version, padded_key[:key_bytes], rank, fingerprint, payload_bytes)


def padding(payload_bytes: int) -> int:
    """Zeros that fill a payload up to whole pages, in bytes."""
    return -payload_bytes % PAGE


def file_bytes(payload_bytes: int) -> int:
    """Length of the file of a block, in bytes."""
    return PAGE + payload_bytes + padding(payload_bytes)


class BlockFormat:
    """The headers of one layout and rank.

    Args:
        fingerprint: the layout's fingerprint, 16 bytes.
        rank: the rank whose part of the blocks is meant.
    """

    def __init__(self, fingerprint: bytes, rank: int) -> None:
        self._fingerprint = fingerprint
        self._rank = rank

    def header(self, key: OffloadKey, payload_bytes: int) -> bytes:
        """The header page of a block up to its checksum: ``CHECKSUM_AT`` bytes."""
        fields = _FIELDS.pack(MAGIC, FORMAT_VERSION, len(key), self._rank, self._fingerprint, payload_bytes, key)
        return fields + _REST

    def difference(self, found: bytes, key: OffloadKey, payload_bytes: int) -> str:
        """In words, how the beginning of a header page differs from :meth:`header`."""
        says = read_header(found)
        facts = (
            ("the magic number", says.magic.hex(), MAGIC.hex()),
            ("the format version", says.version, FORMAT_VERSION),
            ("the layout's fingerprint", says.fingerprint.hex(), self._fingerprint.hex()),
            ("the rank", says.rank, self._rank),
            ("the key", says.key.hex(), key.hex()),
            ("the payload's length", says.payload_bytes, payload_bytes),
        )
        return next((f"{what} is {one}, not {other}" for what, one, other in facts if one != other), "stray bytes")


def checksum(header: bytes, payload: Iterable[memoryview]) -> bytes:
    """XXH3-64 over a header up to its checksum and the payload's pieces; lets other threads run meanwhile."""
    # The incremental form is the one that releases the GIL.
    digest = xxhash.xxh3_64(header)
    for piece in payload:
        digest.update(piece)
    return _CHECKSUM.pack(digest.intdigest())
