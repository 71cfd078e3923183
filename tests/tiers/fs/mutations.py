"""What can happen to the bytes of a block file: flips, truncations, swaps, and what a bad disk makes of pages."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from asyncoffload.tiers.fs.format import CHECKSUM_AT, PAGE

Mutation = Callable[[random.Random, bytes, Sequence[bytes]], bytes]
"""From the file and others that lie beside it, in its directory or in those of other ranks and layouts, a worse one."""

FIELDS = (0, 8, 10, 12, 16, 32, 40, 104, 108, CHECKSUM_AT, PAGE)
"""Where the fields of a header begin, and the payload."""


def flip(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """One bit, anywhere."""
    return _flipped(dice, file, dice.randrange(len(file)))


def flip_in_header(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """One bit of one of the fields."""
    field = dice.randrange(len(FIELDS) - 1)
    return _flipped(dice, file, dice.randrange(FIELDS[field], FIELDS[field + 1]))


def flip_at_the_edges(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """One bit beside the beginning or the end of a page."""
    at = dice.randrange(0, len(file) + 1, PAGE) + dice.choice([-1, 0])
    return _flipped(dice, file, min(max(at, 0), len(file) - 1))


def flip_many(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """Up to 64 bits."""
    for _ in range(dice.randrange(2, 65)):
        file = _flipped(dice, file, dice.randrange(len(file)))
    return file


def overwrite(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """A stretch of noise."""
    at = dice.randrange(len(file))
    return _patched(file, at, dice.randbytes(min(len(file) - at, dice.randrange(1, 9000))))


def truncate(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """To a length at which something begins or ends, or to any."""
    edges = [0, 1, CHECKSUM_AT, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE, len(file) // 2, len(file) - PAGE, len(file) - 1]
    return file[: dice.choice([*edges, dice.randrange(len(file))])]


def extend(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:
    """By zeros, noise, or another file."""
    n = dice.choice([1, 511, PAGE, PAGE + 1, len(file)])
    return file + dice.choice([bytes(n), dice.randbytes(n), dice.choice(others)[:n]])


def shift(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """Some bytes at some place are gone, or there are too many; the length is as it was."""
    at, n = dice.randrange(len(file)), dice.choice([1, 8, 512, PAGE])
    if dice.random() < 0.5:
        return (file[:at] + file[at + n :] + bytes(n))[: len(file)]
    return (file[:at] + dice.randbytes(n) + file[at:])[: len(file)]


def zero_pages(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """Some neighbouring pages, or all."""
    pages = len(file) // PAGE
    first = dice.randrange(pages)
    count = dice.choice([1, 1, pages - first, dice.randrange(1, pages - first + 1)])
    if dice.random() < 0.1:
        first, count = 0, pages
    return _patched(file, first * PAGE, bytes(count * PAGE))


def torn(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """Zeros from some sector on."""
    at = dice.randrange(0, len(file), 512)
    return _patched(file, at, bytes(len(file) - at))


def duplicate_page(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """One page lies where another should."""
    pages = range(0, len(file), PAGE)
    at, other = dice.choice(pages), dice.choice(pages)
    return _patched(file, at, file[other : other + PAGE])


def exchange_pages(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """Two pages have changed places."""
    pages = range(0, len(file), PAGE)
    at, other = dice.choice(pages), dice.choice(pages)
    return _patched(_patched(file, at, file[other : other + PAGE]), other, file[at : at + PAGE])


def replace(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:  # noqa: ARG001
    """By another file, whole and unchanged."""
    return dice.choice(others)


def splice(dice: random.Random, file: bytes, others: Sequence[bytes]) -> bytes:
    """The header, its checksum, the payload, or some pages of another file."""
    other = dice.choice(others)
    at, end = dice.choice([(0, PAGE), (0, CHECKSUM_AT), (CHECKSUM_AT, PAGE), (PAGE, len(file)), _pages(dice, file)])
    return _patched(file, at, other[at : min(end, len(file))])


MUTATIONS: Sequence[Mutation] = (
    flip,
    flip_in_header,
    flip_at_the_edges,
    flip_many,
    overwrite,
    truncate,
    extend,
    shift,
    zero_pages,
    torn,
    duplicate_page,
    exchange_pages,
    replace,
    splice,
)


def _pages(dice: random.Random, file: bytes) -> tuple[int, int]:
    first = dice.randrange(0, len(file), PAGE)
    return first, dice.randrange(first, len(file), PAGE) + PAGE


def _flipped(dice: random.Random, file: bytes, at: int) -> bytes:
    return _patched(file, at, bytes([file[at] ^ 1 << dice.randrange(8)]))


def _patched(file: bytes, at: int, patch: bytes) -> bytes:
    return file[:at] + patch + file[at + len(patch) :]
