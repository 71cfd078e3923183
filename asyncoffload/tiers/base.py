"""What a secondary tier promises: the whole contract between the managers and a place that keeps blocks."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

from asyncoffload.aio.pool_stats import PoolStats
from asyncoffload.aio.resource import AsyncResource
from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey, group_of
from asyncoffload.types import (
    ANONYMOUS,
    Findings,
    JobResult,
    KVLayout,
    LookupResult,
    OffloadingEvent,
    Priority,
    RequestContext,
    TransferJob,
)


class SecondaryTierManager(AsyncResource):
    """A place behind the primary tier that keeps blocks: files, another host, an object store.

    A tier moves blocks between itself and slots of the primary, which it was given as a writable memoryview of shape
    ``(n_slots, slot_bytes)``. A block of group *g* is the first ``layout.group_bytes(g)`` bytes of its slot.

    Three laws hold for every tier, and :class:`asyncoffload.testing.TierLaws` checks them:

    * **What happened to a block is a value.** ``store`` and ``load`` answer one outcome per key, in the order of the
      job. A block that is not there is MISSING, one whose bytes are not those that were stored is CORRUPT, any other
      trouble is FAILED with its exception (an ``OSError`` as :class:`~asyncoffload.errors.TierIOError`, ``errno``
      kept). One bad block never spoils the others. ``store`` and ``load`` raise only ``CancelledError``,
      :class:`~asyncoffload.errors.ClosedError`, and what makes the whole tier unusable, such as
      :class:`~asyncoffload.errors.ConfigError`.
    * **The slots of a job belong to the tier until its coroutine ends, and not a moment longer.** ``store`` and
      ``load`` return or raise, cancelled or not, only when nothing touches the job's slots any more. After a load
      that did not end in DONE, the bytes of that slot are undefined.
    * **A block appears whole or not at all**, and is visible to ``lookup`` at the latest when ``store`` returns.

    Cancellation: methods that do not say otherwise leave at once; what they have begun may go on, touching no slot.

    One event loop uses a tier. Constructors need no running loop; whatever a tier needs (threads, connections,
    directories) it sets up in :meth:`start`, which every other coroutine method calls by itself.

    Attributes:
        tier_type: the tier's name, and the medium of its events.
    """

    tier_type: str

    async def start(self) -> None:
        """Get ready to serve; idempotent. Calling it early only moves the moment at which errors show.

        Raises:
            ConfigError: a setting does not fit what the tier found.
            TierUnavailable: the tier cannot be reached.
            ClosedError: the tier was closed.
        """
        return

    @abstractmethod
    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> Sequence[LookupResult]:
        """HIT or MISS for each key, in order. It moves nothing and promises nothing about later.

        Raises:
            ClosedError: the tier was closed.
        """

    @abstractmethod
    async def store(self, job: TransferJob) -> JobResult:
        """Keep the blocks that lie in the job's slots.

        A key that the tier has already is DONE. A key of ``job.unwanted`` may be skipped as CANCELLED; a tier that is
        overloaded may refuse keys as SHED.

        Cancellation: what has not begun never starts, what is under way ends, then ``CancelledError`` is raised.
        Blocks that were stored by then stay.

        Raises:
            ClosedError: the tier was closed.
            InvalidArgument: a slot or a group does not exist.
        """

    @abstractmethod
    async def load(self, job: TransferJob) -> JobResult:
        """Bring blocks into the job's slots, verified.

        Cancellation: as :meth:`store`.

        Raises:
            ClosedError: the tier was closed.
            InvalidArgument: a slot or a group does not exist.
        """

    def hint(self, key: OffloadKey) -> bool:  # noqa: ARG002 (the default knows nothing)
        """Whether the tier believes, without looking, that it has a block. Any thread, no I/O; it may be wrong."""
        return False

    def hurry(self, job_id: int, priority: Priority) -> None:  # noqa: ARG002
        """Somebody more urgent waits for a job under way; unknown ids are ignored."""
        return

    async def touch(self, keys: Sequence[OffloadKey]) -> None:  # noqa: ARG002
        """The blocks were used elsewhere: a tier that evicts should keep them longer."""
        return

    async def explain(self, key: OffloadKey) -> Findings:
        """What there is to tell about one block: whether it is there now, and how it came and went.

        It may take a look that no other call would take. By default what :meth:`lookup` says.

        Raises:
            ClosedError: the tier was closed.
        """
        [answer] = await self.lookup([key])
        return Findings(holds=answer is LookupResult.HIT)

    def take_events(self) -> Sequence[OffloadingEvent]:
        """Blocks that appeared or left since the last call; a block that left is reported, whatever the cause."""
        return ()

    def stats(self) -> Mapping[str, float]:
        """Counters and gauges by name. Any thread, no I/O.

        Names that metrics understand: ``blocks`` that it knows to have and the ``bytes`` of these; ``used_bytes``
        and ``quota_bytes``, with whatever others keep in the same place, less than 0 for no bound; and since the start
        blocks ``evicted``, and for each bound of the tier's own, blocks that it shed: ``shed_by_<bound>``.
        """
        return {}

    def pool_stats(self) -> PoolStats | None:
        """What the pool of the tier's threads says of itself; None where there is none. Any thread."""
        return None

    async def drain(self) -> None:
        """Return when no job that was submitted before the call is under way."""
        return

    @abstractmethod
    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work, end what is under way, release what is held; idempotent.

        Args:
            drain: finish queued stores; otherwise drop them, with a result. Queued loads are always dropped.
            drain_timeout: seconds after which queued stores are dropped all the same.
            timeout: seconds to wait for work that is running; None: as long as it takes.

        Cancellation: everything queued is dropped, running work is awaited, then ``CancelledError`` is raised.

        Raises:
            TierUnavailable: something still ran after ``timeout``, and may still touch its slots.
        """


def checked_shape(primary_kv_view: memoryview, layout: KVLayout) -> tuple[int, int]:
    """The number of slots of a primary's view, and the bytes of each, which are enough for a block.

    Raises:
        InvalidArgument: the view is none of slots, or they are too small.
    """
    if primary_kv_view.ndim != 2 or primary_kv_view.format != "B" or primary_kv_view.readonly:
        raise InvalidArgument(
            "the primary's view must be writable bytes of shape (n_slots, slot_bytes), got "
            f"format {primary_kv_view.format!r}, shape {primary_kv_view.shape}: pass HostRegion.view"
        )
    n_slots, slot_bytes = primary_kv_view.shape or (0, 0)
    if slot_bytes < layout.block_bytes:
        raise InvalidArgument(
            f"slots of {slot_bytes} bytes cannot hold the layout's blocks of {layout.block_bytes} bytes: "
            "make the primary with the same layout"
        )
    return n_slots, slot_bytes


def check_job(job: TransferJob, layout: KVLayout, n_slots: int) -> None:
    """Make sure that the slots and groups of a job exist, before anything is moved.

    Raises:
        InvalidArgument: one does not.
    """
    for slot in job.slots:
        if not 0 <= slot < n_slots:
            raise InvalidArgument(f"slot {slot} does not exist: the primary has {n_slots} slots, counted from 0")
    for key in job.keys:
        if group_of(key) >= len(layout.groups):
            raise InvalidArgument(
                f"key {key.hex()} is of group {group_of(key)}: the layout has {len(layout.groups)} groups, "
                "counted from 0"
            )
