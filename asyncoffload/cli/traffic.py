"""LLM request traffic: read from a trace, strictly, or generated from a seed.

A trace is JSON lines, plain or gzip, in the format of the Mooncake FAST'25 release: one request a line with
``timestamp`` (milliseconds since the start), ``input_length`` (tokens), optionally ``output_length`` (tokens), and
``hash_ids``, one integer per block of 512 tokens. Ids are chained by prefix, so the same id always stands behind the
same parent, and the last block of a request may be partial.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from asyncoffload.errors import InvalidArgument

TOKENS_PER_BLOCK = 512
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class Request:
    """One request to a language model.

    Attributes:
        arrival: seconds since the start of the trace.
        blocks: the ids of its full blocks, in order. A partial last block is left out: it is never offloaded.
        input_tokens: length of the prompt.
        output_tokens: length of the answer.
    """

    arrival: float
    blocks: tuple[int, ...]
    input_tokens: int
    output_tokens: int = 0


def read_trace(path: Path) -> list[Request]:
    """All requests of a trace file, in its order.

    Raises:
        InvalidArgument: the file cannot be read, holds no request, or one of its lines is not a request; the message
            names the file, the line and the remedy.
    """
    try:
        requests = list(_parsed(path))
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{path}: the trace cannot be read: {error}") from error
    if not requests:
        raise InvalidArgument(f"{path}: the trace holds no request: one JSON object a line is expected")
    return requests


def _parsed(path: Path) -> Iterator[Request]:
    with path.open("rb") as raw:
        packed = raw.read(len(_GZIP_MAGIC)) == _GZIP_MAGIC
    with gzip.open(path, "rt", encoding="utf-8") if packed else path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.isspace():
                continue
            try:
                yield _request(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise InvalidArgument(f"{path}, line {number}: {error}") from error


def _request(entry: object) -> Request:
    if not isinstance(entry, dict):
        raise InvalidArgument(f"a request is a JSON object, got {_short(entry)}")
    input_tokens = _number(entry, "input_length")
    output_tokens = _number(entry, "output_length") if "output_length" in entry else 0
    if input_tokens != int(input_tokens) or output_tokens != int(output_tokens):
        raise InvalidArgument(f"lengths are whole numbers of tokens, got {input_tokens} and {output_tokens}")
    full_blocks = int(input_tokens) // TOKENS_PER_BLOCK
    ids = entry.get("hash_ids")
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < 1 << 64 for i in ids):
        raise InvalidArgument(f"hash_ids is a list of integers from 0 to 2**64 - 1, got {_short(ids)}")
    if not full_blocks <= len(ids) <= full_blocks + 1:
        raise InvalidArgument(
            f"input_length {int(input_tokens)} means {full_blocks} full blocks of {TOKENS_PER_BLOCK} tokens "
            f"and at most one partial one, but hash_ids has {len(ids)} ids"
        )
    if len(set(ids)) != len(ids):
        twice = next(i for n, i in enumerate(ids) if i in ids[:n])
        raise InvalidArgument(f"hash id {twice} appears twice in one request; ids are chained by prefix")
    return Request(_number(entry, "timestamp") / 1000, tuple(ids[:full_blocks]), int(input_tokens), int(output_tokens))


def _number(entry: dict[str, object], name: str) -> float:
    value = entry.get(name)
    if type(value) not in (int, float) or not math.isfinite(value) or value < 0:  # type: ignore[arg-type, operator]
        raise InvalidArgument(f"{name} is a number of 0 or more, got {_short(value) if name in entry else 'none'}")
    return value  # type: ignore[return-value]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
