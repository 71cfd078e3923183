"""The copy kernel in the Triton language. The one module that imports Triton, so import it only when it is needed."""

# mypy: ignore-errors
# The Triton language is not typed, and most places that check this project do not have it.

import triton
import triton.language as tl


@triton.jit
def _descriptors(dst, src, words, row, n, PAIRS: tl.constexpr):  # noqa: N803
    """The rows' places to write and to read, as pointers, and their lengths; past the end the length is 0."""
    inside = row < n
    to = tl.load(dst + row, mask=inside, other=0).to(tl.pointer_type(tl.int64))
    source = tl.load(src + row, mask=inside, other=0).to(tl.pointer_type(tl.int64))
    length = tl.load(words + row, mask=inside, other=0)
    if PAIRS:
        # Only hints on the results of operations count, and only those that say it of the pointers themselves.
        to = tl.multiple_of(to, 16)
        source = tl.multiple_of(source, 16)
        length = tl.multiple_of(length, 2)
    return to, source, length


@triton.jit
def copy_fragments(dst, src, words, n, ROWS: tl.constexpr, WORDS: tl.constexpr, PAIRS: tl.constexpr):  # noqa: N803
    """Copy ``n`` fragments of at most ``WORDS`` 8-byte words between any addresses that the device can reach.

    Every program takes ``ROWS`` fragments at a time. The words of one turn and the descriptors of the one after are
    asked for before those of the turn before are written: a round trip to host memory takes over a microsecond, and
    only what is under way meanwhile makes bandwidth.

    Args:
        dst, src: pointers to int64 addresses, shape ``(n,)``.
        words: pointer to the int64 lengths in words, shape ``(n,)``.
        n: int32.
        PAIRS: all addresses and byte lengths are multiples of 16, so two words go in one access.
    """
    column = tl.arange(0, WORDS)[None, :]
    stride = tl.num_programs(0) * ROWS
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    to, source, length = _descriptors(dst, src, words, row, n, PAIRS)
    row += stride
    next_to, next_source, next_length = _descriptors(dst, src, words, row, n, PAIRS)
    data = tl.load(source[:, None] + column, mask=column < length[:, None], other=0)
    for _ in range(tl.program_id(0) * ROWS, n, stride):
        next_data = tl.load(next_source[:, None] + column, mask=column < next_length[:, None], other=0)
        row += stride
        after_to, after_source, after_length = _descriptors(dst, src, words, row, n, PAIRS)
        tl.store(to[:, None] + column, data, mask=column < length[:, None])
        to, length, data = next_to, next_length, next_data
        next_to, next_source, next_length = after_to, after_source, after_length
