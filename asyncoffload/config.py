"""Typed settings: validated once, strict about types, and every default explained where it stands.

Settings name policies and tiers as strings; whoever opens an ``Offloader`` resolves them. A mapping read from a
configuration file goes through :meth:`OffloaderSettings.parse`. Whatever is wrong with it becomes one
:class:`~asyncoffload.errors.ConfigError` with a line for every mistake: its place, its value and the remedy.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ByteSize, ConfigDict, Field, ValidationError, model_validator

from asyncoffload.errors import ConfigError

PRIMARY_NAME = "CPU"
"""The medium of the primary tier; no other tier may take this name."""


def _tuples_for_lists(value: object) -> object:
    """Lists, however deep, as tuples: configuration files have no tuples."""
    return tuple(map(_tuples_for_lists, value)) if isinstance(value, (list, tuple)) else value


PositiveInt = Annotated[int, Field(ge=1)]
PositiveSize = Annotated[ByteSize, Field(gt=0)]
TierName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Settings(BaseModel):
    """Base of all settings: what is wrong with a value is said in words, as a :class:`ConfigError`."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError(_explain(error, type(self))) from None

    @classmethod
    def parse(cls, mapping: Mapping[str, object]) -> Self:
        """Settings from a mapping, such as a parsed configuration file.

        Raises:
            ConfigError: it is not a mapping of names to values, or a value is unknown, missing, malformed or
                contradicts another one.
        """
        if not isinstance(mapping, Mapping) or not all(isinstance(key, str) for key in mapping):
            raise ConfigError(f"settings are a mapping of names to values, got {mapping!r}")
        return cls(**mapping)


class FileSystemTierSettings(Settings):
    """Blocks as files below a directory."""

    type: Literal["fs"] = Field("fs", description="Says that this tier keeps blocks as files.")
    name: TierName = Field(
        "fs",
        description="The tier's name in events, statistics and `RequestContext.tiers`. "
        "Two tiers need two names, so only the second one of a kind has to be named.",
    )
    root_dir: Annotated[Path, Field(strict=False)] = Field(
        description="Where the files lie. No default: blocks are user content and take space, "
        "so where they go is a decision."
    )
    io_threads: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Threads for reading, and as many for writing. `auto` chooses by processors and block size: "
        "beyond what keeps the disk busy, more threads only make the event loop wait longer for the interpreter.",
    )
    direct_io: Literal["auto", "on", "off"] = Field(
        "auto",
        description="Whether to pass by the page cache (O_DIRECT). `auto` tries it on the directory and falls back: "
        "a second copy in the page cache costs memory that the primary could use. `on` refuses to fall back.",
    )
    max_queued_bytes: PositiveSize = Field(
        ByteSize(512 << 20),
        description="Bytes of stores that may wait for a thread; what exceeds it is shed and offered again later. "
        "512 MiB is a fraction of a second of a fast disk: a longer queue would delay, and help nobody.",
    )
    quota: PositiveSize | None = Field(
        None,
        description="Bytes that the files below `root_dir` may take, those of all processes and models that share it. "
        "What was used longest ago is removed to make room. None by default, and then nothing is ever removed: how "
        "much of a disk may be used is the operator's decision. Of several processes the smallest quota holds.",
    )
    min_free: Annotated[ByteSize, Field(ge=0)] | None = Field(
        None,
        description="Bytes to leave free on the file system, beside or instead of a quota. None by default: a disk of "
        "its own may be filled. Of several processes the largest one holds.",
    )
    durability: Literal["none", "fsync"] = Field(
        "none",
        description="Whether blocks survive a loss of power. `none`: a stored block is in the hands of the operating "
        "system; what such a loss tears is a miss. `fsync`: a store has ended only when its block and its name are on "
        "the device, many at a time. `none` by default: what is kept here can be computed again, and syncing makes "
        "stores slower.",
    )
    io_timeout: Annotated[float, Field(gt=0, strict=False)] | None = Field(
        10.0,
        description="Seconds that the move of one block, or another call to the file system, may take, without the "
        "time that it waits for a thread. Whoever waits for a call that takes longer goes on without it, and the tier "
        "answers misses until the file system answers again. 10 are a hundred times what a busy disk needs, and less "
        "than most clients wait. None: wait for ever.",
    )


class MemoryTierSettings(Settings):
    """Blocks as bytes in this process: the tier to read first and to try things with."""

    type: Literal["memory"] = Field("memory", description="Says that this tier keeps blocks in memory.")
    name: TierName = Field("memory", description="The tier's name in events, statistics and `RequestContext.tiers`.")


TierSettings = Annotated[FileSystemTierSettings | MemoryTierSettings, Field(discriminator="type")]


class OffloaderSettings(Settings):
    """Everything an ``Offloader`` needs to know besides the KV-cache tensors themselves."""

    host_bytes: PositiveSize = Field(
        description="Host memory for the primary tier, taken at start and never grown. No default: it is the one "
        "number that only the operator of a machine can know."
    )
    tiers: Annotated[tuple[TierSettings, ...], BeforeValidator(_tuples_for_lists)] = Field(
        (),
        description="The secondary tiers, asked in this order. None by default: host memory alone is a whole set-up.",
    )
    policy: str = Field(
        "lru",
        description="Which block leaves the primary first. LRU suits prefixes: a request uses all of its own at once. "
        "`arc` helps where the primary is small and much of the traffic is seen only once.",
    )
    store_threshold: PositiveInt = Field(
        1,
        description="A block is stored from this offer on. 1 stores everything; 2 keeps blocks out that are seen "
        "only once, at the price of computing every shared block twice.",
    )
    promotion_bytes: PositiveSize = Field(
        ByteSize(256 << 20),
        description="Bytes on their way from a tier into the primary at any moment. It bounds the slots that are "
        "neither readable nor evictable; 256 MiB keeps a fast disk busy many times over.",
    )
    cascade_blocks: PositiveInt | None = Field(
        None,
        description="Blocks on their way into one tier at any moment; what exceeds it is shed and offered again. "
        "By default a quarter of the primary, so that a slow tier never pins the larger part of it.",
    )
    write_policy: Literal["write_through", "demote"] = Field(
        "write_through",
        description="When blocks go to the tiers. `write_through`: as soon as they are stored, so that the tiers have "
        "nearly everything if the process dies. `demote`: when they have become cold, shortly before they are evicted; "
        "what stays in use, or is void before, is never written.",
    )
    dirty_victims: Literal["drop", "refuse"] = Field(
        "drop",
        description="What happens where only blocks that no tier has could make room. `drop` evicts them and counts "
        "them as lost: a cache that is full of unwritten blocks goes on serving. `refuse` lets stores wait for the "
        "tiers, and sheds them where no tier takes anything.",
    )
    journal_blocks: Annotated[int, Field(ge=0)] = Field(
        65_536,
        description="Blocks whose last events are remembered, for `explain`: where a block is, was, when and why it "
        "left. Each takes some 130 bytes and, over the life of a block, 0.1 microseconds. 0 remembers nothing.",
    )
    slice_blocks: PositiveInt = Field(
        64,
        description="Blocks that a load or store moves in one piece. 64 are enough to fill a copy engine and few "
        "enough for the copy to the device to overlap the reads behind it.",
    )
    copy_threads: PositiveInt = Field(
        2, description="Threads that copy between device and host memory where the device is the processor itself."
    )
    pin_memory: Literal["auto", "off"] = Field(
        "auto",
        description="Whether host memory is locked for direct access by an accelerator. `auto` does it where the KV "
        "caches lie on one, and goes on without, with a warning, where the system refuses: copies are then several "
        "times slower. `off` saves the seconds that locking takes at start.",
    )
    block_dim: Literal[0, 1] = Field(
        0,
        description="Which dimension of the KV caches counts blocks. 1 is for tensors of shape `(2, num_blocks, ...)`, "
        "with K and V one after the other.",
    )
    layer_order: Annotated[tuple[tuple[int, int], ...] | None, BeforeValidator(_tuples_for_lists)] = Field(
        None,
        description="The pairs (group, layer) in the order in which the model runs them, for loads that arrive layer "
        "by layer. By default group by group, which is right for models with one group.",
    )
    model: str = Field(
        "unnamed",
        description="The weights that the blocks belong to. It is part of what decides whether stored bytes may be "
        "read again, so name it wherever a tier outlives the process.",
    )
    revision: str = Field("", description="The revision of the weights; it counts like `model`.")
    block_size: PositiveInt = Field(16, description="Tokens of one device block; 16 is what most engines use.")
    block_size_factor: PositiveInt = Field(
        1,
        description="Device blocks per offloaded block. 1 is the simplest; larger ones make fewer and larger files.",
    )
    block_bytes: PositiveSize | None = Field(
        None,
        description="Bytes of one offloaded block. By default the tensors say so; if given, both must agree, "
        "which catches a configuration written for another model.",
    )
    parallel: Annotated[tuple[tuple[str, PositiveInt], ...], BeforeValidator(_tuples_for_lists)] = Field(
        (),
        description='Names and sizes of the parallel dimensions, such as `[["tp", 2]]`. They decide what the bytes '
        "of a block mean, so differently split caches never share files.",
    )
    rank: Annotated[int, Field(ge=0)] = Field(0, description="This worker's rank among them.")

    @model_validator(mode="after")
    def _tiers_have_names_of_their_own(self) -> Self:
        names = [tier.name for tier in self.tiers]
        taken = next((name for i, name in enumerate(names) if name == PRIMARY_NAME or name in names[:i]), None)
        if taken is not None:
            raise ConfigError(f"tiers: the name {taken!r} is taken: give each tier a `name` of its own")
        return self


def _explain(error: ValidationError, settings: type[Settings]) -> str:
    """Every mistake of one validation, each with its place, its value and the remedy."""
    mistakes: dict[str, list[str]] = {}
    for details in error.errors(include_url=False):
        location = [str(part) for part in details["loc"]]
        place = ".".join(location[:2] if location[1:2] and location[1].isdecimal() else location[:1])
        value, cause = details["input"], details.get("ctx", {}).get("error")
        match details["type"]:
            case "extra_forbidden":
                text = _unknown(location[-1], settings)
            case "missing" if len(location) == 1:
                text = f"{place} is missing: {settings.model_fields[place].description}"
            case "byte_size" | "byte_size_unit":
                text = f'{place} = {value!r} is not a size: write bytes, or a number with a unit such as "8GiB"'
            case "union_tag_invalid" | "union_tag_not_found":
                text = f'{place} = {value!r} has no known type: say type = "fs" or type = "memory"'
            case "value_error" if isinstance(cause, ConfigError):
                text = "\n".join(f"{place}: {line}" if place else line for line in str(cause).splitlines())
            case _:
                text = details["msg"][:1].lower() + details["msg"][1:]
                # The alternatives of a union fail one by one, but they are one mistake at one place.
                mistakes.setdefault(f"{place} = {value!r}: ", []).append(text)
                continue
        mistakes.setdefault(text, [])
    return "\n".join(text + ", or ".join(alternatives) for text, alternatives in mistakes.items())


def _unknown(key: str, settings: type[Settings]) -> str:
    known = sorted(settings.model_fields)
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known are {', '.join(known)}"
    return f"unknown setting {key!r}: {hint}"
