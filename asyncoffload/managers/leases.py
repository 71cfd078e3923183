"""Leases: blocks that are held for the length of an ``async with`` block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

from asyncoffload.errors import LeaseClosedError
from asyncoffload.keys import OffloadKey
from asyncoffload.types import CPULoadStoreSpec


class Lease:
    """Blocks of the primary tier that are held until the ``async with`` block is left."""

    def __init__(self, keys: Sequence[OffloadKey], spec: CPULoadStoreSpec) -> None:
        self._keys = keys
        self._spec = spec
        self._open = True

    @property
    def keys(self) -> Sequence[OffloadKey]:
        """The blocks.

        Raises:
            LeaseClosedError: the lease has ended.
        """
        self._check_open()
        return self._keys

    @property
    def spec(self) -> CPULoadStoreSpec:
        """The slot of each block, in the order of :attr:`keys`.

        Raises:
            LeaseClosedError: the lease has ended; its slots may belong to others by now.
        """
        self._check_open()
        return self._spec

    def end(self) -> None:
        """Called by the manager when the ``async with`` block is left."""
        self._open = False

    def _check_open(self) -> None:
        if not self._open:
            raise LeaseClosedError(f"{self!r}: use its slots only inside its `async with` block")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self._keys)} blocks, {'open' if self._open else 'ended'}>"


@dataclass(frozen=True, slots=True)
class LoadPart:
    """Neighbouring blocks of a load lease that became readable together.

    Attributes:
        keys: the blocks.
        spec: their slots.
    """

    keys: Sequence[OffloadKey]
    spec: CPULoadStoreSpec


class LoadLease(Lease):
    """Blocks that can be read: the prefix of the request that could be secured, perhaps empty."""

    async def parts(self) -> AsyncIterator[LoadPart]:
        """The blocks in key order, as they become readable.

        Raises:
            LeaseClosedError: the lease has ended.
        """
        self._check_open()
        if self._keys:
            yield LoadPart(self._keys, self._spec)


class StoreLease(Lease):
    """Slots to be written: of the blocks of the request, those that were absent.

    Left normally, its blocks become readable; left by an exception, cancellation among them, they are gone.
    """

    def __init__(
        self, keys: Sequence[OffloadKey], spec: CPULoadStoreSpec, evicted_keys: Sequence[OffloadKey] = ()
    ) -> None:
        super().__init__(keys, spec)
        self._evicted_keys = evicted_keys

    @property
    def evicted_keys(self) -> Sequence[OffloadKey]:
        """The blocks that had to make room."""
        return self._evicted_keys
