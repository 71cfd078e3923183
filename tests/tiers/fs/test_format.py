"""The bytes of a block file."""

from __future__ import annotations

import pytest
import xxhash

from asyncoffload.keys import make_key
from asyncoffload.tiers.fs.format import CHECKSUM_AT, PAGE, BlockFormat, checksum, file_bytes, padding

KEY = make_key(b"\x01" * 32, 3)
FORMAT = BlockFormat(b"f" * 16, rank=5)


def test_header_names_the_block_and_fills_its_page() -> None:
    header = FORMAT.header(KEY, 1000)
    assert len(header) == CHECKSUM_AT == PAGE - 8
    assert header[:8] == b"\x89AOKV\r\n\x1a"
    assert header[8:16] == bytes([1, 0, 36, 0, 5, 0, 0, 0])
    assert header[16:32] == b"f" * 16
    assert header[32:40] == (1000).to_bytes(8, "little")
    assert header[40:76] == KEY
    assert header[76:] == bytes(CHECKSUM_AT - 76)


@pytest.mark.parametrize(("payload", "pad", "total"), [(1, 4095, 8192), (4096, 0, 8192), (4097, 4095, 12288)])
def test_files_are_whole_pages(payload: int, pad: int, total: int) -> None:
    assert padding(payload) == pad
    assert file_bytes(payload) == total


def test_checksum_covers_header_and_payload_however_cut() -> None:
    header, payload = FORMAT.header(KEY, 10), b"0123456789"
    expected = xxhash.xxh3_64_intdigest(header + payload).to_bytes(8, "little")
    assert checksum(header, [memoryview(payload)]) == expected
    assert checksum(header, [memoryview(payload)[:4], memoryview(payload)[4:]]) == expected


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (b"x" * CHECKSUM_AT, "the magic number is 7878"),
        (FORMAT.header(KEY, 1000)[:8] + b"\x09" + FORMAT.header(KEY, 1000)[9:], "the format version is 9, not 1"),
        (BlockFormat(b"g" * 16, 5).header(KEY, 1000), "the layout's fingerprint is 6767"),
        (BlockFormat(b"f" * 16, 6).header(KEY, 1000), "the rank is 6, not 5"),
        (FORMAT.header(make_key(b"\x02", 3), 1000), "the key is 0200000003, not 0101"),
        (FORMAT.header(KEY, 999), "the payload's length is 999, not 1000"),
        (FORMAT.header(KEY, 1000)[:-1] + b"x", "stray bytes"),
    ],
)
def test_difference_is_told_in_words(other: bytes, words: str) -> None:
    assert FORMAT.difference(other, KEY, 1000).startswith(words)
