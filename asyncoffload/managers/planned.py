"""Plain bookkeeping under a loop: one uninterrupted stretch per call, and what it means when a stretch goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import ParamSpec, Protocol, TypeVar

from asyncoffload.aio.mailbox import Mailbox
from asyncoffload.core.primary import Primary
from asyncoffload.errors import ClosedError, InternalError, OffloadError, WrongLoopError
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.base import DEFAULT_EVENT_CAPACITY, OffloadingManager
from asyncoffload.managers.events import EventHub, EventSubscription
from asyncoffload.managers.explaining import Explainer
from asyncoffload.managers.leases import Lease
from asyncoffload.types import ANONYMOUS, Explanation, OffloadingEvent, RequestContext

P = ParamSpec("P")
R = TypeVar("R")
L = TypeVar("L", bound=Lease)


class SlotMemory(Protocol):
    """The memory behind the slots, as far as a manager has to know it; ``HostRegion`` is one."""

    def held_among(self, slots: Sequence[int]) -> set[int]:
        """Those of the slots that a transfer uses."""

    def take_released(self) -> list[int]:
        """The slots that no transfer uses any more since the last call."""

    def on_release(self, notify: Callable[[], None]) -> None:
        """Call ``notify``, on any thread, after a slot that was reported as held has been released."""


class PlannedManager(OffloadingManager):
    """A manager whose calls are stretches of plain bookkeeping over one primary.

    Derived classes run all of theirs through :meth:`_plan`, and extend :meth:`_after_change` and :meth:`_fail`.

    Args:
        primary: the bookkeeping.
        memory: the memory of the slots. With it, a slot is not handed out while a transfer still uses it.
        clock: seconds; the clock of the deadlines.
        now: seconds since the epoch; the clock of the journal.
    """

    def __init__(
        self,
        primary: Primary,
        memory: SlotMemory | None,
        clock: Callable[[], float],
        now: Callable[[], float],
    ) -> None:
        self._primary = primary
        self._memory = memory
        self._clock = clock
        self._explainer = Explainer(primary.table, primary.journal, clock=clock, now=now)
        self._hub = EventHub()
        self._taken: EventSubscription | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: Exception | None = None
        self._closed = False

    # ---- the whole

    async def take_events(self) -> Sequence[OffloadingEvent]:
        if self._taken is None:
            self._taken = self.events()
        return self._taken.take()

    def events(self, capacity: int = DEFAULT_EVENT_CAPACITY) -> EventSubscription:
        subscription = self._hub.subscribe(capacity)
        self._primary.recording = True
        if self._closed:
            subscription.close()
        return subscription

    async def explain(self, key: OffloadKey, ctx: RequestContext = ANONYMOUS) -> Explanation:
        """Where a block is, was, when and why it left; ``str()`` of the answer is for humans. It changes nothing.

        Tiers that do not answer by the deadline, or within ten seconds, are left out, and the answer says so.

        Raises:
            InvalidArgument: the key is malformed.
            ClosedError: the manager was closed.

        Cancellation: leaves at once.
        """
        self._check_open()
        return await self._explainer.question(key, ctx)()

    # ---- for managers that extend this one

    def _plan(self, call: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run a piece of plain bookkeeping, then what every change entails, in one stretch.

        An exception that is not one of ours on purpose means that the bookkeeping is broken: who waits, and every
        later call, gets ``InternalError``.
        """
        self._own_loop()
        if self._failure is not None:
            raise broken(self._failure) from self._failure
        try:
            if self._memory is not None:
                self._primary.table.release(self._memory.take_released())
            result = call(*args, **kwargs)
            self._after_change()
        except OffloadError:
            raise
        except Exception as error:
            self._fail(error)
            raise broken(self._failure) from error
        return result

    def _after_change(self) -> None:
        """The state may have changed: announce it."""
        self._explainer.date()
        if self._primary.recording:
            self._hub.publish(self._primary.take_events())

    def _fail(self, error: Exception) -> None:
        """The bookkeeping is broken: nobody may wait for it any longer."""
        self._failure = error

    @contextmanager
    def _held(self, lease: L, finish: Callable[[bool], None]) -> Iterator[L]:
        """Give out a lease; end it, and call ``finish`` with whether the block was left normally."""
        try:
            yield lease
        except BaseException:
            lease.end()
            with suppress(InternalError):  # the exception that ended the block is the one to see
                self._plan(finish, False)
            raise
        lease.end()
        self._plan(finish, True)

    def _own_loop(self) -> None:
        loop = asyncio.get_running_loop()
        if loop is self._loop:
            return
        if self._loop is not None:
            raise WrongLoopError(f"{self!r} belongs to the event loop of its first call: make one manager per loop")
        self._loop = loop
        if self._memory is not None:
            releases: Mailbox[None] = Mailbox(self._slots_released, loop)
            self._memory.on_release(lambda: releases.post(None))

    def _slots_released(self, _: list[None]) -> None:
        with suppress(InternalError):  # whoever waits has been told
            self._plan(lambda: None)

    def _check_open(self) -> None:
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> ClosedError:
        return ClosedError(f"{self!r} takes no new work")


def broken(failure: BaseException | None) -> InternalError:
    """What every call raises once the bookkeeping has failed."""
    return InternalError(f"the bookkeeping of the primary tier is broken, please report it: {failure!r}")
