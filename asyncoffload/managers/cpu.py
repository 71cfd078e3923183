"""The manager of the primary tier alone: blocks in host memory, nothing behind it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.journal import DEFAULT_JOURNAL_BLOCKS, Journal
from asyncoffload.core.policies import LRU, EvictionPolicy
from asyncoffload.core.primary import Primary, PrimaryStats, slots_spec, write_spec
from asyncoffload.core.write import Write
from asyncoffload.errors import CapacityError, InternalError
from asyncoffload.keys import OffloadKey, checked_keys
from asyncoffload.managers.leases import LoadLease, StoreLease
from asyncoffload.managers.planned import PlannedManager, SlotMemory, broken
from asyncoffload.managers.room import RoomQueue
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    DirtyVictims,
    Fate,
    PrepareStoreOutput,
    RequestContext,
)

BYTES = frozenset({bytes})


class CPUOffloadingManager(PlannedManager):
    """Blocks in the slots of host memory.

    Plain, synchronous bookkeeping (:class:`~asyncoffload.core.primary.Primary`) does the work, one uninterrupted
    stretch per call; this class adds what needs a loop: leases, waiting for room, events.

    A manager with tiers behind the primary extends it by overriding :meth:`_store_began`, :meth:`_store_ended`,
    :meth:`_make_room`, :meth:`_may_make_room` and :meth:`_after_change`, and runs its own bookkeeping through
    :meth:`_plan`.

    Args:
        n_slots: how many blocks fit.
        policy: who is evicted; least recently used by default. Belongs to this manager from now on.
        memory: the memory of the slots. With it, a slot is not handed out while a transfer still uses it.
        store_threshold: a block is stored from this offer on.
        block_size: tokens per block, for events.
        n_tiers: how many tiers are behind the primary.
        dirty_victims: whether blocks that no tier has are dropped to make room, or what needs room is refused.
        journal_blocks: how many blocks' lives are remembered for :meth:`explain`; 0 for none.
        clock: seconds; the clock of the deadlines.
        now: seconds since the epoch; the clock of the journal.
    """

    def __init__(
        self,
        n_slots: int,
        *,
        policy: EvictionPolicy | None = None,
        memory: SlotMemory | None = None,
        store_threshold: int = 1,
        block_size: int = 0,
        n_tiers: int = 0,
        dirty_victims: DirtyVictims = "drop",
        journal_blocks: int = DEFAULT_JOURNAL_BLOCKS,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        table = BlockTable(
            n_slots,
            policy or LRU(),
            n_tiers=n_tiers,
            keep_dirty=dirty_victims == "refuse",
            held_among=memory.held_among if memory else None,
        )
        primary = Primary(
            table, store_threshold=store_threshold, block_size=block_size, journal=Journal(journal_blocks)
        )
        super().__init__(primary, memory, clock, now)
        self._room = RoomQueue()

    # ---- paired calls

    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:  # noqa: ARG002
        self._check_open()
        return self._plan(self._primary.lookup, _sequence(keys))

    async def touch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:  # noqa: ARG002
        self._check_open()
        self._plan(self._primary.touch, _batch(keys))

    async def prepare_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> CPULoadStoreSpec:  # noqa: ARG002
        self._check_open()
        return self._plan(self._primary.prepare_load, _sequence(keys))

    async def complete_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:  # noqa: ARG002
        self._plan(self._primary.complete_load, _sequence(keys))

    async def prepare_store(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS
    ) -> PrepareStoreOutput | None:
        self._check_open()
        return self._plan(self._prepare_store, _sequence(keys), ctx.depth)

    async def complete_store(
        self,
        keys: Sequence[OffloadKey],
        success: bool = True,
        ctx: RequestContext = ANONYMOUS,  # noqa: ARG002
        *,
        spec: CPULoadStoreSpec | None = None,
    ) -> None:
        self._plan(self._complete_store, _sequence(keys), success, spec)

    # ---- leases

    @asynccontextmanager
    async def loading(
        self,
        keys: Sequence[OffloadKey],
        ctx: RequestContext = ANONYMOUS,  # noqa: ARG002
        *,
        streaming: bool = False,  # noqa: ARG002
    ) -> AsyncIterator[LoadLease]:
        self._check_open()
        pins = self._plan(self._primary.begin_load, _sequence(keys))
        with self._held(
            LoadLease(pins.keys, slots_spec(pins.slots)), lambda _: self._primary.finish_load(pins)
        ) as lease:
            yield lease

    @asynccontextmanager
    async def storing(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, wait: bool = False
    ) -> AsyncIterator[StoreLease]:
        self._check_open()
        keys = _sequence(keys)
        wanted = self._plan(self._primary.offer, keys)
        write = None if wait and self._must_queue(wanted) else self._plan(self._begin_store, wanted, keys, insist=True)
        if write is None:
            self._check_room_can_come(wanted, keys, wait=wait)
            write = await self._wait_for_room(wanted, keys, ctx)
        self._primary.place(write, keys, ctx.depth)
        lease = StoreLease(write.keys, write_spec(write), write.evicted)
        with self._held(lease, lambda ok: self._finish_store(write, ok)) as lease:
            yield lease

    # ---- the whole

    def ready(self, keys: Sequence[OffloadKey]) -> int:
        """How many of the leading blocks can be read from the primary now: plain, and advice; any thread."""
        return self._primary.table.prefix(keys)

    def absent(self, keys: Sequence[OffloadKey]) -> list[OffloadKey]:
        """Those of these blocks that a store would write if there were room: plain, and advice like ``lookup``."""
        return self._plan(self._primary.table.absent, keys)

    def stats(self) -> PrimaryStats:
        return self._primary.stats()

    async def reset(self) -> None:
        self._check_open()
        self._plan(self._primary.reset)

    async def aclose(
        self,
        *,
        drain: bool = True,  # noqa: ARG002
        drain_timeout: float = 10.0,  # noqa: ARG002
        timeout: float | None = None,  # noqa: ARG002
    ) -> None:
        if self._closed:
            return
        self._own_loop()
        self._closed = True
        self._room.fail(self._closed_error)
        self._hub.close()

    # ---- for managers that extend this one

    def _after_change(self) -> None:
        super()._after_change()
        self._call_up()

    def _store_began(self, keys: Sequence[OffloadKey]) -> None:
        """Slots were handed out to write these blocks from the device."""

    def _store_ended(self, keys: Sequence[OffloadKey]) -> None:
        """The writing of these blocks from the device has ended; those that arrived are ready now."""

    def _make_room(self, wanted: Sequence[OffloadKey], keep: Sequence[OffloadKey], *, insist: bool) -> bool:  # noqa: ARG002
        """There is no room for blocks that are wanted while others are kept; returns whether to try once more."""
        return False

    def _may_make_room(self, wanted: Sequence[OffloadKey], keep: Sequence[OffloadKey]) -> bool:  # noqa: ARG002
        """Whether there may be room some time."""
        return True

    def _fail(self, error: Exception) -> None:
        super()._fail(error)
        self._room.fail(lambda: broken(error))

    # ---- inside

    def _prepare_store(self, keys: Sequence[OffloadKey], depth: int) -> PrepareStoreOutput | None:
        output = self._primary.prepare_store(keys, depth)
        if output is not None:
            self._store_began(output.keys_to_store)
        else:
            self._make_room(keys, keys, insist=True)  # for the next time
        return output

    def _complete_store(self, keys: Sequence[OffloadKey], success: bool, spec: CPULoadStoreSpec | None) -> None:
        self._finish_store(self._primary.claim_store(keys, spec), success)

    def _begin_store(
        self, wanted: Sequence[OffloadKey], keys: Sequence[OffloadKey], *, insist: bool = False
    ) -> Write | None:
        write = self._primary.begin_store(wanted, keep=keys)
        if write is None and self._make_room(wanted, keys, insist=insist):
            write = self._primary.begin_store(wanted, keep=keys)
        if write is not None:
            self._store_began(write.keys)
        return write

    def _finish_store(self, write: Write, ok: bool) -> None:
        self._primary.finish_store(write, ok)
        self._store_ended(write.keys)

    def _must_queue(self, wanted: Sequence[OffloadKey]) -> bool:
        return len(self._room) > 0 and len(self._primary.table.absent(wanted)) > 0

    def _check_room_can_come(self, wanted: Sequence[OffloadKey], keys: Sequence[OffloadKey], *, wait: bool) -> None:
        table = self._primary.table
        together = len(keys) - len(table.absent(keys)) + len(table.absent(wanted))
        if together > table.n_slots:
            raise CapacityError(
                f"{together} blocks can never be in a primary tier of {table.n_slots} slots together: "
                "store fewer at a time"
            )
        if not wait:
            self._primary.journal.add(Fate.REFUSED, table.absent(wanted))
            raise CapacityError(f"no room for {len(table.absent(wanted))} blocks in {table!r}: wait=True waits for it")

    async def _wait_for_room(
        self, wanted: Sequence[OffloadKey], keys: Sequence[OffloadKey], ctx: RequestContext
    ) -> Write:
        waiter = self._room.join(wanted, keys)
        try:
            self._plan(self._make_room, wanted, keys, insist=True)
            async with asyncio.timeout(None if ctx.deadline is None else ctx.deadline - self._clock()):
                while self._may_make_room(wanted, keys):
                    await waiter.turn()
                    write = self._plan(self._begin_store, wanted, keys)
                    if write is not None:
                        return write
            raise self._no_room_will_come(wanted, keys)
        except TimeoutError:
            self._primary.journal.add(Fate.REFUSED, self._primary.table.absent(wanted))
            raise CapacityError(f"no room for {len(wanted)} blocks before the deadline in {self!r}") from None
        finally:
            self._room.leave(waiter)
            with suppress(InternalError):  # whoever waits has been told
                self._plan(self._call_up)

    def _no_room_will_come(self, wanted: Sequence[OffloadKey], keys: Sequence[OffloadKey]) -> CapacityError:
        table = self._primary.table
        stranded = table.out_of_reach(wanted, keys)
        self._primary.journal.add(Fate.REFUSED, table.absent(wanted), why="stranded" if stranded else "dirty_victims")
        why = (
            f"slots are in the hands of calls of a tier that hang, {stranded} too many of them. Look at its file system"
            if stranded
            else 'no tier has the others, nor takes any. Look at the tiers, or let dirty_victims be "drop"'
        )
        return CapacityError(f"no room for {len(wanted)} blocks in {self!r}: {why}")

    def _call_up(self) -> None:
        first, table = self._room.first, self._primary.table
        if first is None:
            return
        need = len(table.absent(first.keys))
        if need > table.available:
            self._make_room(first.keys, first.keep, insist=False)
        if need <= table.available or not self._may_make_room(first.keys, first.keep):
            first.call_up()

    def __repr__(self) -> str:
        state = "broken" if self._failure is not None else "closed" if self._closed else "open"
        return f"<{type(self).__name__} {state}: {len(self._room)} waiting for room, {self._primary.table!r}>"


def _sequence(keys: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
    return keys if isinstance(keys, (list, tuple)) else tuple(keys)


def _batch(keys: Sequence[OffloadKey]) -> Sequence[OffloadKey]:
    """The keys of a call that ignores what it does not know; all of them ``bytes``, at least."""
    batch = _sequence(keys)
    return batch if set(map(type, batch)) <= BYTES else checked_keys(batch)
