"""What the scheduler's side tells the workers: which slots of the shared region a chunk lies in."""

from __future__ import annotations

from collections.abc import Sequence

from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.keys import OffloadKey
from asyncoffload.types import CPULoadStoreSpec, Int32s

check_vllm()

from vllm.v1.kv_offload.base import LoadStoreSpec  # noqa: E402


class Slots(LoadStoreSpec):  # type: ignore[misc]  # vLLM has no types where they are checked
    """Slots, one for each chunk, in order.

    Attributes:
        slots: int32 of shape ``(n,)``.
        keys: the chunks, where the workers shall check what they load.
    """

    def __init__(self, slots: Int32s, keys: Sequence[OffloadKey] | None = None) -> None:
        self.slots = slots
        self.keys = keys

    def to_ours(self) -> CPULoadStoreSpec:
        """The same for a handler of ours."""
        return CPULoadStoreSpec(self.slots)

    def __repr__(self) -> str:
        return f"Slots({self.slots.tolist()})"
