"""Copies between tensors: what works wherever torch works, one call per copy."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction
from asyncoffload.errors import InvalidArgument
from asyncoffload.types import Int64s


class TorchEngine:
    """``copy_(non_blocking=True)`` between flat byte views of the tensors' storages.

    Args:
        ordinal: the device; None where all tensors lie in host memory.
    """

    name = "torch"

    def __init__(self, ordinal: int | None) -> None:
        self._ordinal = ordinal
        self._lock = threading.Lock()
        self._storages: dict[int, torch.Tensor] = {}
        self._bases: Int64s = np.empty(0, dtype=np.int64)
        self._flat: list[torch.Tensor] = []

    def know(self, *tensors: torch.Tensor) -> None:
        """Let copies touch the storages of these tensors; the engine keeps them alive until it is closed."""
        with self._lock:
            for tensor in tensors:
                storage = tensor.untyped_storage()
                flat = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
                self._storages[storage.data_ptr()] = flat
            addresses = sorted(self._storages)
            self._flat = [self._storages[address] for address in addresses]
            self._bases = np.array(addresses, dtype=np.int64)

    def prepare(self, stream: int, direction: Direction) -> None:
        """Nothing to do."""

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> None:  # noqa: ARG002
        """See :meth:`CopyEngine.launch`.

        Raises:
            InvalidArgument: a copy lies outside the tensors that the engine knows; nothing was queued.
        """
        dst, src = self._places(batch.dst, batch.nbytes), self._places(batch.src, batch.nbytes)
        with self._in_stream(stream):
            for (to, at), (source, begin), nbytes in zip(dst, src, batch.nbytes.tolist(), strict=True):
                to[at : at + nbytes].copy_(source[begin : begin + nbytes], non_blocking=True)

    def close(self) -> None:
        """Forget the tensors."""
        with self._lock:
            self._storages.clear()
            self._flat, self._bases = [], np.empty(0, dtype=np.int64)

    def __repr__(self) -> str:
        return f"TorchEngine({len(self._flat)} storages)"

    def _places(self, addresses: Int64s, nbytes: Int64s) -> list[tuple[torch.Tensor, int]]:
        with self._lock:
            bases, flat = self._bases, self._flat
        which = np.searchsorted(bases, addresses, side="right") - 1
        sizes = np.array([tensor.nbytes for tensor in flat], dtype=np.int64)
        if not len(bases) or (which < 0).any() or (addresses + nbytes > bases[which] + sizes[which]).any():
            raise InvalidArgument("a copy leaves the tensors that torch copies were told of: pass them to know()")
        offsets = addresses - bases[which]
        return [(flat[i], offset) for i, offset in zip(which.tolist(), offsets.tolist(), strict=True)]

    def _in_stream(self, stream: int) -> AbstractContextManager[object]:
        if self._ordinal is None:
            return nullcontext()
        external: Any = torch.cuda.ExternalStream  # it has no types
        return torch.cuda.stream(external(stream, device=torch.device("cuda", self._ordinal)))
