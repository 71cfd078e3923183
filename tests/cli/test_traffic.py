"""Traces are read strictly: what is wrong with a line is said with its number."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from asyncoffload.cli.traffic import Request, read_trace
from asyncoffload.errors import InvalidArgument

GOOD = (
    '{"timestamp": 0, "input_length": 1100, "output_length": 5, "hash_ids": [7, 8, 9]}\n'
    "\n"
    '{"timestamp": 1500, "input_length": 1024, "hash_ids": [7, 8]}\n'
)
REQUESTS = [Request(0.0, (7, 8), 1100, 5), Request(1.5, (7, 8), 1024)]


def test_plain_and_packed_traces_read_alike(tmp_path: Path) -> None:
    plain, packed = tmp_path / "plain.jsonl", tmp_path / "packed"
    plain.write_text(GOOD)
    packed.write_bytes(gzip.compress(GOOD.encode()))
    assert read_trace(plain) == read_trace(packed) == REQUESTS


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "a request is a JSON object, got [1]"),
        ('{"timestamp": 0', "Expecting"),
        ('{"input_length": 512, "hash_ids": [1]}', "timestamp is a number of 0 or more, got none"),
        ('{"timestamp": -1, "input_length": 512, "hash_ids": [1]}', "timestamp is a number of 0 or more, got -1"),
        ('{"timestamp": NaN, "input_length": 512, "hash_ids": [1]}', "timestamp is a number of 0 or more, got nan"),
        ('{"timestamp": 0, "input_length": "9", "hash_ids": [1]}', "input_length is a number of 0 or more, got '9'"),
        ('{"timestamp": 0, "input_length": true, "hash_ids": [1]}', "input_length is a number of 0 or more, got True"),
        ('{"timestamp": 0, "input_length": 512.5, "hash_ids": [1]}', "lengths are whole numbers of tokens, got 512.5"),
        ('{"timestamp": 0, "input_length": 512}', "hash_ids is a list of integers from 0 to 2**64 - 1, got None"),
        ('{"timestamp": 0, "input_length": 512, "hash_ids": [-1]}', "2**64 - 1, got [-1]"),
        ('{"timestamp": 0, "input_length": 512, "hash_ids": ["a"]}', "2**64 - 1, got ['a']"),
        ('{"timestamp": 0, "input_length": 1024, "hash_ids": [1]}', "1024 means 2 full blocks of 512 tokens"),
        ('{"timestamp": 0, "input_length": 5, "hash_ids": [1, 2]}', "5 means 0 full blocks"),
        ('{"timestamp": 0, "input_length": 1024, "hash_ids": [1, 1]}', "hash id 1 appears twice in one request"),
        ("[" * 5000, "recursion"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text(GOOD + line + "\n")
    with pytest.raises(InvalidArgument) as caught:
        read_trace(trace)
    assert str(caught.value).startswith(f"{trace}, line 4: ")
    assert message in str(caught.value)


def test_a_trace_without_requests_is_an_error(tmp_path: Path) -> None:
    trace = tmp_path / "empty"
    trace.touch()
    with pytest.raises(InvalidArgument, match="the trace holds no request"):
        read_trace(trace)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", gzip.compress(GOOD.encode())[:20]], ids=["not text", "cut off"])
def test_a_file_that_is_no_trace_is_named(tmp_path: Path, content: bytes) -> None:
    trace = tmp_path / "trace"
    trace.write_bytes(content)
    with pytest.raises(InvalidArgument, match="the trace cannot be read"):
        read_trace(trace)


def test_a_missing_trace_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"nowhere: the trace cannot be read: .*No such file"):
        read_trace(tmp_path / "nowhere")
