"""The keys of one entry of ``secondary_tiers`` in vLLM's configuration, for tiers of ours."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from asyncoffload.config import FileSystemTierSettings, MemoryTierSettings, PositiveSize

Locality = Literal["LOCAL", "REMOTE"]

_LOCALITY = "Whether the tier's storage is `LOCAL` or `REMOTE` to this engine, for vLLM's filters and events."
_EVENTS = "Announce blocks that appear or leave. vLLM publishes them only if its own KV events are enabled, too."


class FileSystemTierOptions(FileSystemTierSettings):
    """The keys of a ``FileSystemTier``, besides vLLM's own ``type``, ``module_path`` and ``backpressure``."""

    max_queued_bytes: PositiveSize | None = Field(  # type: ignore[assignment]  # here, none has a meaning
        None,
        description="Bytes of stores that may wait for a thread; what exceeds it is shed. By default half of vLLM's "
        "host memory: what waits is pinned there, and vLLM needs the rest for loads and for new blocks.",
    )
    locality: Locality | None = Field(None, description=_LOCALITY)
    enable_kv_events: bool = Field(False, description=_EVENTS)
    revision: str | None = Field(
        None,
        description="Names the weights. By default: for a model in a directory the names, sizes and times of its "
        "files. Say it where several machines share a root, and change it with the weights.",
    )
    load_seconds: float | None = Field(
        10.0,
        ge=0,
        strict=False,
        description="How long a load may wait for its begin. Then it is skipped, and the request computes the blocks: "
        "a disk that is slower than that is of no help. null: as long as it takes.",
    )
    drain_seconds: float = Field(
        5.0,
        ge=0,
        strict=False,
        description="How long a stopping engine waits for stores that are queued; what is left then is dropped.",
    )


class InMemoryTierOptions(MemoryTierSettings):
    """The keys of an ``InMemoryTier``, besides vLLM's own ``type``, ``module_path`` and ``backpressure``."""

    locality: Locality | None = Field(None, description=_LOCALITY)
    enable_kv_events: bool = Field(False, description=_EVENTS)
    revision: None = Field(None, description="Cannot be set: nothing outlives the process.")
    load_seconds: None = Field(None, description="Cannot be set: memory is not slow.")
    drain_seconds: Literal[0] = Field(0, description="Cannot be set: nothing outlives the process.")


TierOptions = FileSystemTierOptions | InMemoryTierOptions
