"""What a block table asks of an eviction policy: an order of the occupied slots, nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from asyncoffload.keys import OffloadKey
from asyncoffload.types import Int32s


class EvictionPolicy(ABC):
    """Orders the slots of the ready blocks of one table from cold to hot.

    It knows neither readers nor tiers: the table walks :meth:`cold` and passes over what must stay. Slots come as
    int32 arrays of shape ``(n,)`` without duplicates, in request order, and of those that one call names the last
    becomes the coldest: a block is worthless without those before it, so a request is given up from its tail.
    """

    @abstractmethod
    def reset(self, n_slots: int) -> None:
        """Forget everything; from now on the slots are ``0`` to ``n_slots - 1``, and as many blocks fit."""

    @abstractmethod
    def insert(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:
        """These blocks have just become ready in these slots, which held nothing."""

    @abstractmethod
    def touch(self, slots: Int32s) -> None:
        """The ready blocks in these slots were asked for."""

    @abstractmethod
    def evict(self, keys: Sequence[OffloadKey], slots: Int32s) -> None:
        """These ready blocks have left these slots to make room, the first of them first."""

    @abstractmethod
    def cold(self) -> Iterator[Int32s]:
        """The slots of all ready blocks, the next victim first, in arrays of any length.

        The order is not changed while the iterator is in use.
        """
