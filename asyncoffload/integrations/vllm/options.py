"""The keys of ``kv_connector_extra_config`` that the whole stack understands."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, ByteSize, Field, model_validator

from asyncoffload.config import OffloaderSettings, PositiveInt, Settings, TierSettings
from asyncoffload.core.policies import POLICIES
from asyncoffload.errors import ConfigError


def _tuple_for_list(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _whole_number(value: object) -> object:
    """vLLM turns ``kv_offloading_size`` into bytes by multiplication, which makes a float of them."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


PositiveSize = Annotated[ByteSize, Field(gt=0), BeforeValidator(_whole_number)]
Seconds = Annotated[float, Field(ge=0, strict=False)]


class StackOptions(Settings):
    """What a user of ``AsyncOffloadingSpec`` may say. Names that vLLM's own specs know mean the same here."""

    spec_name: str = Field("AsyncOffloadingSpec", description="Tells vLLM which specification to use.")
    spec_module_path: str = Field(
        "asyncoffload.integrations.vllm", description="Tells vLLM in which module the specification is."
    )
    cpu_bytes_to_use: PositiveSize = Field(
        description="Host memory for one engine and all of its ranks together, taken at start and never grown. "
        "No default: it is the one number that only the operator of a machine can know."
    )
    secondary_tiers: Annotated[tuple[TierSettings, ...], BeforeValidator(_tuple_for_list)] = Field(
        (),
        description='The tiers behind host memory, asked in this order, such as `[{"type": "fs", "root_dir": "/kv"}]`. '
        "None by default: host memory alone is a whole set-up.",
    )
    eviction_policy: str = Field(
        "lru", description="Which block leaves host memory first: `lru`, or `arc` where much is seen only once."
    )
    store_threshold: Annotated[int, Field(ge=0)] = Field(
        0, description="A block is stored from this offer on; 0 and 1 store everything."
    )
    blocks_per_chunk: PositiveInt | None = Field(
        None, description="Device blocks that are offloaded together; 1 by default. Read by vLLM."
    )
    block_size: PositiveInt | None = Field(
        None, description="The same in tokens, a multiple of the device's block size. Read by vLLM."
    )
    offload_prompt_only: bool = Field(
        True, description="Whether blocks of generated tokens are left out. Read by vLLM."
    )
    self_describing_kv_events: bool = Field(
        False, description="Whether events carry tokens and parent hashes. Read by vLLM."
    )
    canonical_layout: bool = Field(False, description="vLLM's layout without traces of parallelism: not supported.")
    promotion_bytes: PositiveSize = Field(
        ByteSize(256 << 20), description="Bytes on their way from a tier into host memory at any moment."
    )
    cascade_blocks: PositiveInt | None = Field(
        None,
        description="Blocks on their way into one tier at any moment; by default a quarter of the slots.",
    )
    write_policy: Literal["write_through", "demote"] = Field(
        "write_through",
        description="When blocks go to the tiers: `write_through` as soon as they are stored, `demote` when they have "
        "become cold, shortly before they leave host memory.",
    )
    dirty_victims: Literal["drop", "refuse"] = Field(
        "drop",
        description="What happens where only blocks that no tier has could make room: `drop` gives them up, `refuse` "
        "lets new blocks go unstored until the tiers have taken some.",
    )
    flush_at_shutdown: bool = Field(
        False,
        description="Whether a stopping engine first copies everything in host memory to the tiers, as far as that "
        "takes no longer than `drain_seconds`. For `demote`, where the next engine is to find what this one used most.",
    )
    copy_threads: PositiveInt = Field(2, description="Threads of each worker that copy between device and slots.")
    revision: str | None = Field(
        None,
        description="Names the weights, wherever blocks outlive the process. By default: for a model in a directory "
        "the names, sizes and times of its files. Say it where several machines share a tier, and change it with the "
        "weights.",
    )
    load_seconds: Annotated[float, Field(gt=0, strict=False)] | None = Field(
        10.0,
        description="How long a request waits for blocks from the tiers while vLLM asks for them; waiting for room on "
        "the device does not count. Then it computes what has not come. null: as long as it takes.",
    )
    drain_seconds: Seconds = Field(
        2.0, description="How long a stopping engine waits for blocks that are on their way to a tier."
    )
    verify_loads: bool = Field(
        False,
        description="For finding faults: each worker remembers a checksum of every block that it stores, and ends the "
        "engine when it loads other bytes for that block. It costs memory without bound, and time.",
    )

    @model_validator(mode="after")
    def _is_supported(self) -> Self:
        if self.canonical_layout:
            raise ConfigError("canonical_layout is true: AsyncOffloadingSpec has a layout of its own; leave it out")
        if self.eviction_policy not in POLICIES:
            known = ", ".join(POLICIES)
            raise ConfigError(f"eviction_policy is {self.eviction_policy!r}: choose one of {known}")
        self.stack()
        return self

    def stack(self) -> OffloaderSettings:
        """The same in the words of every other stack of ours, as far as they have them.

        Raises:
            ConfigError: two tiers have the same name.
        """
        return OffloaderSettings(
            host_bytes=self.cpu_bytes_to_use,
            tiers=self.secondary_tiers,
            policy=self.eviction_policy,
            store_threshold=max(1, self.store_threshold),
            promotion_bytes=self.promotion_bytes,
            cascade_blocks=self.cascade_blocks,
            write_policy=self.write_policy,
            dirty_victims=self.dirty_victims,
            journal_blocks=0,  # nobody in an engine can ask for an explanation
            copy_threads=self.copy_threads,
        )
