"""What the driver's batched copy asks of its arguments."""

from __future__ import annotations

from ctypes import c_int, c_size_t
from typing import Final

import numpy as np

from asyncoffload.device.cuda import symbols
from asyncoffload.errors import InvalidArgument
from asyncoffload.types import Int64s

MAX_COPIES_PER_CALL: Final = 4096
"""Calls of 50,000 copies have crashed drivers; with this many a call's fixed cost no longer shows."""

NO_COPY_IN_PARTICULAR: Final = c_size_t(-1).value
"""In place of the index of the copy that is to blame."""

FROM_THE_FIRST_COPY: Final = (c_size_t * 1)(0)
"""Where the copies begin to which the one set of attributes applies."""


def _attributes(source_order: int) -> object:
    """One ``CUmemcpyAttributes``: source order, two location hints of two words each, flags."""
    return (c_int * 6)(source_order, 0, 0, 0, 0, symbols.COPY_OVERLAPS_COMPUTE)


SOURCE_IN_ORDER: Final = _attributes(symbols.SOURCE_ORDER_STREAM)
SOURCE_FINAL: Final = _attributes(symbols.SOURCE_ORDER_ANY)


def check_batch(dst: Int64s, src: Int64s, nbytes: Int64s) -> None:
    """Raise :class:`InvalidArgument` unless the arrays can be handed to the driver as they are."""
    for name, array in (("dst", dst), ("src", src), ("nbytes", nbytes)):
        if array.dtype != np.int64 or array.ndim != 1 or not array.flags.c_contiguous:
            raise InvalidArgument(
                f"{name} must be a contiguous int64 array of shape (n,), got {array.dtype} of shape {array.shape} "
                f"with strides {array.strides}: use numpy.ascontiguousarray(..., dtype=numpy.int64)"
            )
    if not len(dst) == len(src) == len(nbytes):
        raise InvalidArgument(
            f"a batch needs as many dst ({len(dst)}) as src ({len(src)}) as nbytes ({len(nbytes)}): one of each a copy"
        )
    if len(nbytes) > MAX_COPIES_PER_CALL:
        raise InvalidArgument(
            f"{len(nbytes)} copies in one call, at most {MAX_COPIES_PER_CALL} are allowed: cut the batch with coalesce"
        )
