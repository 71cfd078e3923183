"""A tier on which calls fail, and blocks get damaged or lost, as a test plans it."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Container, Iterable, Sequence
from dataclasses import replace
from typing import Literal, Protocol, get_args

import numpy as np

from asyncoffload.errors import CorruptBlockError, InvalidArgument, TierIOError, TransferTimeout
from asyncoffload.keys import OffloadKey
from asyncoffload.testing.fault_plan import FaultPlan, FaultRule
from asyncoffload.testing.tiers.wrapped import Tier, WrappedTier
from asyncoffload.types import (
    MISSING,
    Findings,
    JobResult,
    KeyOutcome,
    LookupResult,
    OffloadingEvent,
    RequestContext,
    Status,
    TransferJob,
)

Verb = Literal["lookup", "store", "load"]
SPOILED = 0xFA


class FaultyTier(WrappedTier[Tier]):
    """Passes everything on to the tier inside, unless the plan has a fault for it.

    It keeps the laws of tiers while blocks fail: what it says is corrupt or lost is not found any more, is reported as
    removed, and can be stored again. Only :meth:`raises` may break a law, as tiers do that raise what they should not.

    Args:
        inner: the tier; it is closed with this one.
        seed: decides where faults with a ``chance`` strike.
        primary_kv_view: the primary's slots. With it, the slots of blocks that did not arrive are filled with garbage,
            so that nobody gets away with using them.
        block_size: tokens per block, for the events of blocks that left.
    """

    def __init__(
        self, inner: Tier, *, seed: int = 0, primary_kv_view: memoryview | None = None, block_size: int = 0
    ) -> None:
        super().__init__(inner)
        self._answers: FaultPlan[KeyOutcome] = FaultPlan(get_args(Verb), seed)
        self._errors: FaultPlan[BaseException] = FaultPlan(get_args(Verb), seed)
        self._slots = None if primary_kv_view is None else np.asarray(primary_kv_view)
        self._block_size = block_size
        self._damaged: set[OffloadKey] = set()
        self._gone: set[OffloadKey] = set()  # the tier inside still has them
        self._events: list[OffloadingEvent] = []

    def raises(
        self,
        verb: Verb,
        error: BaseException,
        *,
        calls: Container[int] | None = None,
        times: int | None = None,
        chance: float = 1.0,
    ) -> FaultRule[BaseException]:
        """Let whole calls raise, before anything happens. The conditions are those of :meth:`FaultPlan.add`.

        Raises:
            InvalidArgument: ``error`` is no exception, or what :meth:`FaultPlan.add` says.
        """
        if not isinstance(error, BaseException):
            raise InvalidArgument(f"{error!r} is no exception: give one, such as OSError(errno.EIO, 'gone')")
        return self._errors.add(verb, error, calls=calls, times=times, chance=chance)

    def answers(
        self,
        verb: Verb,
        outcome: Status | KeyOutcome | OSError,
        *,
        keys: Iterable[OffloadKey] | None = None,
        calls: Container[int] | None = None,
        times: int | None = None,
        chance: float = 1.0,
    ) -> FaultRule[KeyOutcome]:
        """Let keys have an outcome of their own. The conditions are those of :meth:`FaultPlan.add`; each key of a job
        counts as a call.

        ==================== =============================== =============================== =======================
        outcome              of a load                       of a store                      of a lookup
        ==================== =============================== =============================== =======================
        MISSING              the block is lost               DONE, and lost at once          MISS
        CORRUPT              the block is damaged            DONE, and damaged at once       (as MISSING)
        DONE                 (no fault)                      (no fault)                      HIT, which may be a lie
        others, an OSError   so says the tier; the block     so says the tier; nothing is    (as MISSING)
                             stays                           stored
        ==================== =============================== =============================== =======================

        Raises:
            InvalidArgument: ``outcome`` is none, or what :meth:`FaultPlan.add` says.
        """
        return self._answers.add(verb, _outcome(outcome), keys=keys, calls=calls, times=times, chance=chance)

    def damage(self, keys: Iterable[OffloadKey]) -> None:
        """Blocks rot where they lie, or as soon as they are there: the next load finds them corrupt.

        Storing them once more does not help, since the tier believes to have them.
        """
        self._damaged.update(keys)

    def lose(self, keys: Iterable[OffloadKey]) -> None:
        """The tier drops blocks, as one that evicts would: they are reported as removed."""
        lost = [key for key in keys if key not in self._gone]
        self._events += self._passed_on()
        self._gone.update(lost)
        self._damaged.difference_update(lost)
        if lost:
            self._events.append(OffloadingEvent(lost, self._block_size, self.tier_type, removed=True))

    def behave(self) -> None:
        """No fault of the plan strikes any more. What is lost or damaged stays so."""
        self._answers.clear()
        self._errors.clear()

    async def explain(self, key: OffloadKey) -> Findings:
        found = await super().explain(key)
        return replace(found, holds=False) if key in self._gone else found

    def hint(self, key: OffloadKey) -> bool:
        return key not in self._gone and super().hint(key)

    def take_events(self) -> Sequence[OffloadingEvent]:
        events, self._events = [*self._events, *self._passed_on()], []
        return events

    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        await super().aclose(drain=drain, drain_timeout=drain_timeout, timeout=timeout)
        self._slots = None  # whoever owns the memory may give it back

    async def _lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext) -> Sequence[LookupResult]:
        self._raise_as_planned("lookup")
        answers = list(await super()._lookup(keys, ctx))
        for index, key in enumerate(keys):
            if key in self._gone:
                answers[index] = LookupResult.MISS
            for outcome in self._answers.faults("lookup", key)[:1]:
                answers[index] = LookupResult.HIT if outcome.ok else LookupResult.MISS
        return answers

    async def _store(self, job: TransferJob) -> JobResult:
        self._raise_as_planned("store")
        planned = self._planned("store", job)
        silent = {key: o.status for key, o in planned.items() if o.status in (Status.MISSING, Status.CORRUPT)}
        result = await self._all_but(job, {key: o for key, o in planned.items() if key not in silent}, super()._store)
        stored = result.successful_keys
        events = self._passed_on()
        told = {key for event in events if not event.removed for key in event.keys}
        back = [key for key in stored if key in self._gone and key not in told]
        if back:
            events.append(OffloadingEvent(back, self._block_size, self.tier_type, removed=False))
        self._events += events
        self._gone.difference_update(stored)
        self.damage(key for key in stored if silent.get(key) is Status.CORRUPT)
        self.lose(key for key in stored if silent.get(key) is Status.MISSING)
        return result

    async def _load(self, job: TransferJob) -> JobResult:
        self._raise_as_planned("load")
        planned = self._planned("load", job)
        unwanted = job.unwanted
        planned |= {key: _outcome(Status.CORRUPT) for key in job.keys if key in self._damaged and key not in unwanted}
        planned |= {key: MISSING for key in job.keys if key in self._gone}
        result = await self._all_but(job, planned, super()._load)
        self.lose(key for key, outcome in planned.items() if outcome.status in (Status.MISSING, Status.CORRUPT))
        if self._slots is not None:
            for slot, outcome in zip(job.slots, result.outcomes, strict=True):
                if not outcome.ok:
                    self._slots[slot] = SPOILED
        return result

    def _planned(self, verb: Verb, job: TransferJob) -> dict[OffloadKey, KeyOutcome]:
        wanted = (key for key in job.keys if key not in job.unwanted)
        planned = {key: faults[0] for key in wanted if (faults := self._answers.faults(verb, key))}
        return {key: outcome for key, outcome in planned.items() if not outcome.ok}

    async def _all_but(self, job: TransferJob, planned: dict[OffloadKey, KeyOutcome], move: _Move) -> JobResult:
        """Let the tier inside move the blocks without a planned outcome."""
        if not planned:
            return await move(job)
        rest = [(key, slot) for key, slot in zip(job.keys, job.slots, strict=True) if key not in planned]
        part = TransferJob(
            [key for key, _ in rest],
            [slot for _, slot in rest],
            job.priority,
            job.deadline,
            job.unwanted,
            job.job_id,
        )
        moved = await move(part)
        truth = dict(zip(moved.keys, moved.outcomes, strict=True))
        outcomes = [planned.get(key) or truth[key] for key in job.keys]
        return JobResult(job.job_id, job.keys, outcomes, self.tier_type)

    def _raise_as_planned(self, verb: Verb) -> None:
        for error in self._errors.faults(verb):
            raise error.with_traceback(None)

    def _passed_on(self) -> list[OffloadingEvent]:
        """Events of the tier inside, without the end of blocks that have left already."""
        events = []
        for event in self.inner.take_events():
            if event.removed and self._gone.intersection(event.keys):
                keys = [key for key in event.keys if key not in self._gone]
                self._gone.difference_update(event.keys)
                event = OffloadingEvent(keys, event.block_size, event.medium, True, event.lost)
            events.append(event)
        return [event for event in events if event.keys or event.lost]


class _Move(Protocol):
    def __call__(self, job: TransferJob, /) -> Awaitable[JobResult]: ...


def _outcome(what: Status | KeyOutcome | OSError) -> KeyOutcome:
    """An outcome with the error that a tier would give with it."""
    if isinstance(what, KeyOutcome):
        return what
    if isinstance(what, OSError):
        timed_out = isinstance(what, TimeoutError)
        error = TransferTimeout(str(what)) if timed_out else TierIOError(str(what), errno=what.errno)
        return KeyOutcome(Status.TIMED_OUT if timed_out else Status.FAILED, error)
    if not isinstance(what, Status):
        raise InvalidArgument(f"{what!r} is no outcome: give a Status, a KeyOutcome or an OSError")
    match what:
        case Status.CORRUPT:
            return KeyOutcome(what, CorruptBlockError("damaged by the test"))
        case Status.TIMED_OUT:
            return KeyOutcome(what, TransferTimeout("held up by the test"))
        case Status.FAILED:
            return KeyOutcome(what, TierIOError("refused by the test", errno=errno.EIO))
        case _:
            return KeyOutcome(what)
