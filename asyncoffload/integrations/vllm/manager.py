"""The scheduler's side of the whole stack: vLLM's offloading manager over our step-driven one."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from asyncoffload.errors import TierUnavailable
from asyncoffload.integrations.vllm.pauses import NEWS_SECONDS, Pauses, take_a_pause
from asyncoffload.integrations.vllm.slots import Slots
from asyncoffload.integrations.vllm.versions import check_vllm
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.types import ANONYMOUS, CPULoadStoreSpec, LookupResult, OffloadingEvent, RequestContext

check_vllm()

from vllm.v1.kv_offload import base as vllm  # noqa: E402
from vllm.v1.metrics.cache_hit_source import CacheHitSource  # noqa: E402

_OUR_HIT, _OUR_MISS, _OUR_RETRY = LookupResult.HIT, LookupResult.MISS, LookupResult.RETRY
_HIT, _MISS = vllm.LookupResult.HIT, vllm.LookupResult.MISS
_RETRY, _HIT_PENDING = vllm.LookupResult.RETRY, vllm.LookupResult.HIT_PENDING
_WHATEVER_TIER = vllm.TierFilter.ALL

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TierPlace:
    """What vLLM calls a tier of ours.

    Attributes:
        name: our name for it.
        medium, locality: for vLLM's filters and events; a locality of None is not known.
        source: for vLLM's count of cached tokens by origin.
    """

    name: str
    medium: Any
    source: Any
    locality: Any = None


@dataclass(slots=True)
class _Request:
    """A request, and the blocks that workers read or write for it.

    Attributes:
        load: the blocks of the load that is on its way; a request has one at a time.
        stores: each store that is on its way.
        asked_in: the scheduling step in which vLLM last asked for blocks of it.
        finished: vLLM has said that it has ended.
    """

    context: RequestContext
    load: list[OffloadKey] = field(default_factory=list)
    stores: list[tuple[list[OffloadKey], CPULoadStoreSpec]] = field(default_factory=list)
    asked_in: int = -2
    finished: bool = False

    @property
    def over(self) -> bool:
        """Whether nothing more will be heard of it."""
        return self.finished and not self.load and not self.stores


class AsyncOffloadingManager(vllm.OffloadingManager):  # type: ignore[misc]  # vLLM has no types where they are checked
    """Answers vLLM's scheduler from the core of our manager, which it owns for the length of each scheduling step.

    A step begins with its first lookup and ends with :meth:`on_schedule_end`; between steps, while the model
    computes, probes, promotions and cascades go on by themselves.

    Args:
        blocks: the bookkeeping; closed with this object.
        places: the secondary tiers.
        announce: whether vLLM publishes what appears and leaves.
        keys_for_workers: tell the workers which block lies in each slot, so that they can check it.
        steps_in_flight: how many scheduling steps may be under way before the workers have answered the first one.
        load_seconds: how long a request waits for tiers, step after step; None: as long as it takes.
        drain_seconds: how long :meth:`shutdown` waits for blocks on their way to the tiers.
        flush_at_shutdown: whether it sends all others on their way before.
        report: makes statistics for vLLM; called once per step.
        on_shutdown: called once after the bookkeeping was closed.
        clock: seconds; the clock of ``blocks``.
    """

    def __init__(
        self,
        blocks: SyncOffloadingManager,
        places: Sequence[TierPlace] = (),
        *,
        announce: bool = False,
        keys_for_workers: bool = False,
        steps_in_flight: int = 2,
        load_seconds: float | None = None,
        drain_seconds: float = 0.0,
        flush_at_shutdown: bool = False,
        report: Callable[[SyncOffloadingManager], Any] = lambda blocks: None,  # noqa: ARG005
        on_shutdown: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._blocks = blocks
        self._places = {place.name: place for place in places}
        self._announce = announce
        self._keys_for_workers = keys_for_workers
        self._steps_in_flight = steps_in_flight
        self._load_seconds = load_seconds
        self._drain_seconds = drain_seconds
        self._flush_at_shutdown = flush_at_shutdown
        self._report = report
        self._on_shutdown: Callable[[], None] | None = on_shutdown
        self._clock = clock
        self._requests: dict[str, _Request] = {}
        self._in_step = False
        self._awaited = False  # whether a block that was asked for in this step is still on its way
        self._loading: set[str] = set()  # requests with a load on its way to the device
        self._pauses = Pauses()
        self._await_news = partial(blocks.await_news, NEWS_SECONDS)
        self._voided: list[tuple[int, list[_Request]]] = []
        self._steps = 0
        if announce:
            blocks.take_events()  # the first call makes it keep them

    # ---- requests and steps

    def on_new_request(self, req_context: vllm.ReqContext) -> vllm.RequestOffloadingContext:
        self._requests[req_context.req_id] = _Request(
            RequestContext(req_context.req_id, tiers=self._allowed(req_context.load_tier_filter))
        )
        return vllm.RequestOffloadingContext()

    def on_schedule_end(self, context: vllm.ScheduleEndContext) -> None:
        for request_id in context.new_req_ids:
            self._blocks.end_request(request_id)  # what it has not loaded it computes: others may have the slots
        self._end_step()
        self._steps += 1
        while self._voided and self._voided[0][0] <= self._steps:
            for request in self._voided.pop(0)[1]:
                self._let_go(request)
        awaited, self._awaited = self._awaited, False
        self._pauses.step_ended(context, self._await_news if awaited else take_a_pause if self._loading else None)

    def on_request_finished(self, req_context: vllm.ReqContext) -> None:
        self._pauses.request_ended(req_context.req_id)
        request = self._requests.get(req_context.req_id)
        if request is not None:
            request.finished = True
            self._blocks.end_request(req_context.req_id)
            self._forget_if_over(req_context.req_id, request)

    # ---- reading

    def lookup(self, key: Any, req_context: vllm.ReqContext) -> vllm.LookupResult:
        if not self._in_step:
            self._in_step = True
            self._blocks.begin_step()
        request = self._requests.get(req_context.req_id) or self._request(req_context)
        if request.asked_in != self._steps:
            self._asks(request)
        answer = self._blocks.lookup_block(key, request.context)
        if answer is _OUR_HIT:
            return _HIT
        if answer is _OUR_MISS:
            return _MISS
        self._awaited = True
        return _RETRY if answer is _OUR_RETRY else _HIT_PENDING

    def get_load_source(self, key: Any, req_context: vllm.ReqContext) -> CacheHitSource:  # noqa: ARG002
        place = self._places.get(self._blocks.source_of(key) or "")
        return CacheHitSource.HOST if place is None else place.source

    def prepare_load(self, keys: Collection[Any], req_context: vllm.ReqContext) -> Slots:
        wanted = list(keys)
        spec = self._blocks.prepare_load(wanted, self._context(req_context))
        self._blocks.touch(wanted)  # vLLM itself never says that a block was of use
        self._request(req_context).load += wanted
        self._loading.add(req_context.req_id)
        return self._slots(spec, wanted)

    def complete_load(self, keys: Collection[Any], req_context: vllm.ReqContext) -> None:
        request = self._request(req_context)
        if len(keys) == len(request.load):
            done, request.load = request.load, []
        else:
            done = [key for key in request.load if key in keys]
            request.load = [key for key in request.load if key not in keys]
        self._blocks.complete_load(done, request.context)
        if not request.load:
            self._loading.discard(req_context.req_id)
        self._forget_if_over(req_context.req_id, request)

    def touch(self, keys: Collection[Any], req_context: vllm.ReqContext) -> None:
        self._blocks.touch(list(keys), self._context(req_context))

    # ---- writing

    def prepare_store(self, keys: Collection[Any], req_context: vllm.ReqContext) -> vllm.PrepareStoreOutput | None:
        wanted = list(keys)
        context = self._context(req_context)
        output = self._blocks.prepare_store(wanted, context)
        self._blocks.touch(wanted, context)
        if output is None:
            return None
        new = list(output.keys_to_store)
        if new:
            self._request(req_context).stores.append((new, output.store_spec))
        return vllm.PrepareStoreOutput(new, self._slots(output.store_spec, new), list(output.evicted_keys))

    def complete_store(self, keys: Collection[Any], req_context: vllm.ReqContext, success: bool = True) -> None:
        request = self._request(req_context)
        for store in request.stores:
            if store[0][0] in keys:
                request.stores.remove(store)
                self._blocks.complete_store(store[0], success, request.context, spec=store[1])
                break
        self._forget_if_over(req_context.req_id, request)

    # ---- the whole

    def take_events(self) -> Iterable[vllm.OffloadingEvent]:
        return [self._translated(event) for event in self._blocks.take_events()] if self._announce else ()

    def has_pending_work(self) -> bool:
        return self._blocks.has_pending_work()

    def reset_cache(self) -> None:
        """Void every block of host memory; the tiers keep theirs.

        vLLM forgets the transfers that are under way and never completes them, but has the workers wait for them
        within the next step. So their slots are left alone for as many steps as can be scheduled before that one has
        certainly come to its end.
        """
        self._end_step()
        self._blocks.reset()
        left = [request for request in self._requests.values() if request.load or request.stores]
        voided = [_Request(request.context, request.load, request.stores) for request in left]
        for request in left:
            request.load, request.stores = [], []
        self._loading.clear()
        for request_id, request in list(self._requests.items()):
            self._forget_if_over(request_id, request)
        if voided:
            self._voided.append((self._steps + self._steps_in_flight + 1, voided))

    def get_stats(self) -> Any:
        return self._report(self._blocks)

    def shutdown(self) -> None:
        """Wait for a moment for what is on its way to the tiers, then close everything.

        Raises:
            TierUnavailable: a tier still moves blocks; the memory stays mapped.
        """
        on_shutdown, self._on_shutdown = self._on_shutdown, None
        if on_shutdown is None:
            return
        self._end_step()
        try:
            if self._flush_at_shutdown:
                self._blocks.flush()
            self._blocks.drain_jobs(self._drain_seconds)
        except TierUnavailable as error:
            _log.warning("what had not reached the tiers after %s s is dropped: %s", self._drain_seconds, error)
        try:
            self._blocks.shutdown()
        finally:
            on_shutdown()

    def __repr__(self) -> str:
        return f"AsyncOffloadingManager({len(self._requests)} requests, {self._blocks!r})"

    def _end_step(self) -> None:
        if self._in_step:
            self._in_step = False
            self._blocks.end_step()

    def _request(self, req_context: vllm.ReqContext) -> _Request:
        request = self._requests.get(req_context.req_id)
        if request is None:
            request = self._requests[req_context.req_id] = _Request(ANONYMOUS, finished=True)
        return request

    def _asks(self, request: _Request) -> None:
        """A request asks for the first time in this step.

        Its patience begins anew if it was not asked in the last one: then it did not wait for a tier, but for room on
        the device, and will have lost blocks to others meanwhile.
        """
        if self._load_seconds is not None and request.asked_in != self._steps - 1:
            request.context = replace(request.context, deadline=self._clock() + self._load_seconds)
        request.asked_in = self._steps

    def _context(self, req_context: vllm.ReqContext) -> RequestContext:
        request = self._requests.get(req_context.req_id)
        return ANONYMOUS if request is None else request.context

    def _forget_if_over(self, request_id: str, request: _Request) -> None:
        if request.over:
            self._requests.pop(request_id, None)

    def _allowed(self, tiers: vllm.TierFilter) -> frozenset[str] | None:
        if tiers is _WHATEVER_TIER:
            return None
        return frozenset(place.name for place in self._places.values() if tiers.allows(place.medium, place.locality))

    def _let_go(self, request: _Request) -> None:
        if request.load:
            self._blocks.complete_load(request.load, request.context)
        for keys, spec in request.stores:
            self._blocks.complete_store(keys, False, request.context, spec=spec)

    def _slots(self, spec: CPULoadStoreSpec, keys: Sequence[OffloadKey]) -> Slots:
        return Slots(spec.block_ids, keys if self._keys_for_workers else None)

    def _translated(self, event: OffloadingEvent) -> vllm.OffloadingEvent:
        place = self._places.get(event.medium)
        return vllm.OffloadingEvent(
            keys=list(event.keys),
            medium=vllm.Medium.CPU if place is None else place.medium,
            removed=event.removed,
            locality=vllm.Locality.LOCAL if place is None else place.locality,
            ownership=None if place is None else place.name,
        )


def places_of(tiers: Mapping[str, str]) -> list[TierPlace]:
    """What vLLM calls tiers of ours.

    Args:
        tiers: by name, the type that their settings have.
    """
    kinds = {
        "fs": (vllm.Medium.STORAGE, CacheHitSource.DISK, None),
        "memory": (vllm.Medium.CPU, CacheHitSource.HOST, vllm.Locality.LOCAL),
    }
    return [TierPlace(name, *kinds[kind]) for name, kind in tiers.items()]
