"""What the bytes of an offloaded block mean."""

from __future__ import annotations

from dataclasses import dataclass

from asyncoffload.errors import InvalidArgument


@dataclass(frozen=True, slots=True)
class KVGroup:
    """One KV-cache group: layers that share block tables.

    Attributes:
        page_bytes: per layer tensor, the bytes of one device block.
    """

    page_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.page_bytes or min(self.page_bytes) <= 0:
            raise InvalidArgument(
                f"a KV-cache group needs one or more layers of one byte or more, got {self.page_bytes}"
            )


@dataclass(frozen=True, slots=True)
class KVLayout:
    """Everything that decides what the bytes of an offloaded block mean.

    Attributes:
        model, revision, dtype: name the weights and the element type.
        block_size: tokens of one device block.
        block_size_factor: device blocks per offloaded block.
        groups: the KV-cache groups.
        parallel: names and sizes of the parallel dimensions, such as ``(("tp", 2), ("pp", 1))``.
        rank: this worker's rank among them.
    """

    model: str
    dtype: str
    block_size: int
    groups: tuple[KVGroup, ...]
    revision: str = ""
    block_size_factor: int = 1
    parallel: tuple[tuple[str, int], ...] = ()
    rank: int = 0

    def __post_init__(self) -> None:
        if self.block_size <= 0 or self.block_size_factor <= 0:
            raise InvalidArgument(
                f"block size and factor are at least 1, got {self.block_size} tokens x {self.block_size_factor}"
            )
        if not self.groups:
            raise InvalidArgument("a KV layout needs at least one KV-cache group: groups=(KVGroup((page_bytes, ...)),)")
        if self.rank < 0:
            raise InvalidArgument(f"a rank is at least 0, got {self.rank}")

    def group_bytes(self, group: int) -> int:
        """Bytes of one offloaded block of a group."""
        return self.block_size_factor * sum(self.groups[group].page_bytes)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest offloaded block: what a primary slot must hold."""
        return max(map(self.group_bytes, range(len(self.groups))))

    @property
    def tokens_per_block(self) -> int:
        """Tokens of one offloaded block."""
        return self.block_size * self.block_size_factor
