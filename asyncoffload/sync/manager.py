"""The manager of a primary tier and the tiers behind it, for callers that know nothing of event loops."""

from __future__ import annotations

from collections.abc import Sequence
from threading import get_ident

from asyncoffload.core.tickets import PRIMARY
from asyncoffload.errors import OffloadError
from asyncoffload.keys import GROUP_BYTES, MAX_HASH_BYTES, OffloadKey, checked_keys
from asyncoffload.sync.stepped import SteppedManager
from asyncoffload.types import (
    ANONYMOUS,
    CPULoadStoreSpec,
    LookupResult,
    PrepareStoreOutput,
    RequestContext,
)

_HIT, _MISS, _HIT_PENDING = LookupResult.HIT, LookupResult.MISS, LookupResult.HIT_PENDING


class SyncOffloadingManager(SteppedManager):
    """Blocks in the slots of host memory, written to slower tiers and brought back from them, step by step.

    The calling thread owns the manager during a step, and plans by itself; nothing waits for the loop, on which the
    tiers work, but :meth:`drain_jobs` and :meth:`shutdown`. Between steps the loop plans on: what was asked for is
    probed, promoted and settled while the engine computes. A call outside of a step is a step of its own.

    Calls may come from different threads, but not overlap: that raises
    :class:`~asyncoffload.errors.WrongLoopError`. Once the bookkeeping is broken, every call raises
    :class:`~asyncoffload.errors.InternalError`; that is a bug. After :meth:`shutdown` calls that begin something
    raise :class:`~asyncoffload.errors.ClosedError`.

    It takes what :class:`~asyncoffload.sync.stepped.SteppedManager` takes.
    """

    # ---- reading

    def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """The length of the ready prefix, which is kept as by :meth:`lookup_block`.

        What follows it is asked for as by :meth:`lookup_block`, up to the first miss.

        Raises:
            InvalidArgument: a key is malformed.
        """
        if self._handover.stepper != get_ident():
            with self._call:
                self._check_open()
                ready = self._primary.lookup(keys)
                self._promises.stand(ctx.request_id, keys[:ready])
                self._requests.asks(ctx)
                self._seek_on(keys, ready, ctx)
                self._requests.end_step()
            return ready
        self._check_open()
        ready = self._primary.lookup(keys)
        self._requests.asks(ctx)
        self._promises.hits(ctx).update(keys if ready == len(keys) else keys[:ready])
        if ready < len(keys):
            with self._call:
                self._seek_on(keys, ready, ctx)
        return ready

    def lookup_block(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> LookupResult:
        """Where a block is, for a request that would use it; asked again in every step, it never waits.

        Returns:
            ``HIT``: it is ready, and is kept until the step ends, or longer as far as there is room; outside of a step
            until the request loads it or ends, or others were promised much since. ``HIT_PENDING``: it is on its way.
            ``RETRY``: a tier is being asked. ``MISS``: nobody has it, or not in time; that holds for the request until
            a store of the block completes. A block that is not ready is sought and promoted, for the request's sake.

        Raises:
            InvalidArgument: the key is malformed.
        """
        if self._handover.stepper == get_ident():
            try:
                if ctx is not self._asking:
                    self._asks(ctx)
                if key in self._ready:
                    self._hit(key)
                    return _HIT
            except TypeError:  # it cannot even be hashed
                checked_keys((key,))
                raise
            try:
                return self._seek(key, ctx)
            except OffloadError:
                raise
            except BaseException as error:
                self._conductor.give_up(error)
        with self._call:
            self._requests.asks(ctx)
            answer = self._seek(key, ctx)
            if answer is _HIT:
                self._promises.stand(ctx.request_id, (key,))
            self._requests.end_step()
            return answer

    def prepare_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> CPULoadStoreSpec:
        """Pin all of these blocks until :meth:`complete_load`. It never waits, and promotes nothing.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing was pinned.
            BlocksUnavailable: a block is not ready; nothing was pinned.
        """
        with self._call:
            self._check_open()
            spec = self._primary.prepare_load(keys)
            self._promises.loaded(ctx.request_id, keys)
            self._requests.loaded(ctx.request_id, keys)
            return spec

    def complete_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:  # noqa: ARG002
        """Unpin what :meth:`prepare_load` pinned, once per call of it."""
        with self._call:
            self._primary.complete_load(keys)
            self._conductor.changed = True

    def touch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:  # noqa: ARG002
        """Note that these blocks were asked for, in this order. Those that are not ready are ignored."""
        with self._call:
            self._check_open()
            self._primary.touch(keys)
        if self._touches.wanted:
            kept = tuple(keys)
            self._loop.post(lambda: self._touches.add(kept))

    def source_of(self, key: OffloadKey) -> str | None:
        """The tier that a ready block was promoted from; None where it was stored from a device, or is not ready."""
        slot = self._ready.get(key)
        source = PRIMARY if slot is None else self._conductor.sources[slot]
        return None if source == PRIMARY else self._names[source]

    # ---- writing

    def prepare_store(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> PrepareStoreOutput | None:
        """Hand out slots for those blocks that are absent and were offered often enough: for all or for none.

        Returns:
            What to write where; None where there is no room for all of it, and then nothing has changed.

        Raises:
            InvalidArgument: a key is malformed or appears twice; nothing has changed.
        """
        with self._call:
            self._check_open()
            self._conductor.release_slots()
            if self._primary.table.free < len(keys):
                self._promises.secure()
                if self._primary.table.available < len(keys):
                    self._promises.yield_to_store(len(self._primary.table.absent(checked_keys(keys))))
            output = self._primary.prepare_store(keys, ctx.depth)
            if output is None:
                self._planner.make_room(keys, keys, insist=True)  # for the next time
                self._conductor.changed = True
            elif output.keys_to_store:
                self._planner.store_began(output.keys_to_store)
                self._conductor.changed = True
            return output

    def complete_store(
        self,
        keys: Sequence[OffloadKey],
        success: bool = True,
        ctx: RequestContext = ANONYMOUS,  # noqa: ARG002
        *,
        spec: CPULoadStoreSpec | None = None,
    ) -> None:
        """The writing of these blocks has ended; those that arrived are ready, and go to the tiers.

        Args:
            keys: the blocks. What :meth:`prepare_store` did not hand out, or not any more, is ignored.
            success: whether they arrived.
            spec: the spec of that very call, where another one may have begun for the same keys since.

        Raises:
            InvalidArgument: the spec has not one slot per key; nothing was completed.
        """
        with self._call:
            write = self._primary.claim_store(keys, spec)
            self._primary.finish_store(write, success)
            for slot in write.slots:
                self._conductor.sources[slot] = PRIMARY
            self._planner.store_ended(write.keys)
            self._conductor.changed = True

    # ---- requests

    def end_request(self, request_id: str) -> None:
        """A request has ended: nothing is sought or kept for it any more.

        Promotions that no other request waits for are dropped where they have not begun, and stop between two blocks
        where they have. Stores go on.
        """
        with self._call:
            self._promises.end_request(request_id)
            self._asking = None
            self._requests.end(request_id)
            self._conductor.changed = True

    # ---- inside

    def _asks(self, ctx: RequestContext) -> None:
        """Another request than the one before asks in this step."""
        self._asking = ctx
        self._hit = self._promises.hits(ctx).add
        self._requests.asks(ctx)

    def _seek(self, key: OffloadKey, ctx: RequestContext) -> LookupResult:
        if self._closed:
            self._check_open()
        if type(key) is not bytes or not GROUP_BYTES < len(key) <= GROUP_BYTES + MAX_HASH_BYTES:
            checked_keys((key,))
        if key in self._ready:
            return _HIT
        if not self._names:
            return _HIT_PENDING if key in self._writing else _MISS
        self._conductor.changed = True
        return self._requests.seek(key, ctx)

    def _seek_on(self, keys: Sequence[OffloadKey], ready: int, ctx: RequestContext) -> None:
        if self._names:
            for key in keys[ready:]:
                if self._seek(key, ctx) is _MISS:
                    break
