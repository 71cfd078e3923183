"""What a block table asks of an eviction policy: an order of the ready blocks, nothing more."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from asyncoffload.keys import OffloadKey


class EvictionPolicy(ABC):
    """Orders the ready blocks of one block table from cold to hot.

    A policy knows keys, never slots, pins or tiers: the table walks :meth:`cold` and skips what must stay. It serves
    one table. Every method takes a batch in request order, and of the keys that one call names the last becomes the
    coldest: a block is worthless without those before it, so a request is given up from its tail.
    """

    @abstractmethod
    def reset(self, capacity: int) -> None:
        """Forget everything; from now on at most ``capacity`` blocks are ready at a time."""

    @abstractmethod
    def insert(self, keys: Sequence[OffloadKey]) -> None:
        """These blocks have just become ready; none of them was."""

    @abstractmethod
    def touch(self, keys: Sequence[OffloadKey]) -> None:
        """These blocks were asked for; keys that are not ready are ignored."""

    @abstractmethod
    def remove(self, keys: Sequence[OffloadKey], *, evicted: bool) -> None:
        """These ready blocks leave: ``evicted`` to make room, otherwise because their content is void."""

    @abstractmethod
    def cold(self) -> Iterator[OffloadKey]:
        """All ready blocks, the next victim first. The order must not be changed while the iterator is in use."""
