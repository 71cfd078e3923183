"""What every manager of offloaded blocks can be asked, as coroutines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Self

from asyncoffload.core.primary import PrimaryStats
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.events import EventSubscription
from asyncoffload.managers.leases import LoadLease, StoreLease
from asyncoffload.types import ANONYMOUS, CPULoadStoreSpec, OffloadingEvent, PrepareStoreOutput, RequestContext

DEFAULT_EVENT_CAPACITY = 1024


class OffloadingManager(ABC):
    """Decides where blocks lie in the primary tier; it moves no byte itself.

    Every method takes a batch of keys in request order. A block is stored by ``storing`` and read by ``loading``,
    leases that end with their ``async with`` block. The paired calls ``prepare_...`` and ``complete_...`` are the
    same without that protection, for callers whose two halves live in different places.

    A manager belongs to the event loop of its first coroutine call; another loop gets ``WrongLoopError``. After
    :meth:`aclose` new work gets ``ClosedError``, while what was begun can still be completed. Keys that are malformed,
    or appear twice in a call that holds them, get ``InvalidArgument``, and the call has changed nothing.
    An ``InternalError`` means that the bookkeeping cannot be trusted any more: every later call gets one too.

    Cancellation: methods that do not say otherwise never wait, so they have either happened or not begun.
    """

    @abstractmethod
    async def lookup(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> int:
        """How many of the leading blocks can be had. Advice: nothing is held, moved or touched."""

    @abstractmethod
    async def prepare_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> CPULoadStoreSpec:
        """Hold all of these blocks until :meth:`complete_load`, and say in which slots they lie.

        Raises:
            BlocksUnavailable: a block cannot be had; nothing is held.
        """

    @abstractmethod
    async def complete_load(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
        """Let go of what :meth:`prepare_load` holds. Other keys are left alone."""

    @abstractmethod
    async def touch(self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS) -> None:
        """Note that these blocks were asked for; the last becomes the coldest of them. Unknown ones are ignored."""

    @abstractmethod
    async def prepare_store(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS
    ) -> PrepareStoreOutput | None:
        """Hand out slots for those of these blocks that are absent: for all of them or for none.

        Returns:
            What to write where, and what was evicted for it. None where there is no room; then nothing has changed.
        """

    @abstractmethod
    async def complete_store(
        self,
        keys: Sequence[OffloadKey],
        success: bool = True,
        ctx: RequestContext = ANONYMOUS,
        *,
        spec: CPULoadStoreSpec | None = None,
    ) -> None:
        """The writing of these blocks has ended: with ``success`` they are readable from now on, else they are gone.

        Only what :meth:`prepare_store` handed out and was not completed yet is completed; other keys are left alone.

        Args:
            keys: the ``keys_to_store`` of the call, or some of them.
            success: whether their bytes arrived.
            ctx: on whose behalf.
            spec: the ``store_spec`` of the call, one slot per key. With it a late second completion cannot be taken
                for that of another caller who stores the same keys by then.
        """

    @abstractmethod
    async def take_events(self) -> Sequence[OffloadingEvent]:
        """What appeared and left since the last call, oldest first. Recorded from the first call on."""

    @abstractmethod
    def loading(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, streaming: bool = False
    ) -> AbstractAsyncContextManager[LoadLease]:
        """Hold as long a prefix of these blocks as can be had, for the length of an ``async with`` block.

        With ``streaming`` the block is entered at once, and ``lease.parts()`` gives the blocks as they become
        readable; otherwise entering waits until it is settled how long the prefix is, or the deadline passes.

        Cancellation: a cancelled entry holds nothing. Inside the block, leaving it lets go of everything.
        """

    @abstractmethod
    def storing(
        self, keys: Sequence[OffloadKey], ctx: RequestContext = ANONYMOUS, *, wait: bool = False
    ) -> AbstractAsyncContextManager[StoreLease]:
        """Hold slots for those of these blocks that are absent, for the length of an ``async with`` block.

        Left normally, the blocks become readable; left by an exception, they are gone.

        Args:
            keys: the blocks.
            ctx: on whose behalf, and until when to wait.
            wait: wait for room, in arrival order, until the deadline. Who does so while holding a lease of his own
                may wait for himself: this is not detected, so set a deadline.

        Raises:
            CapacityError: on entering, at once if the blocks can never be in the primary together; if there is no
                room and ``wait`` is False; or at the deadline.

        Cancellation: a cancelled entry holds nothing and has lost its place. Inside the block it counts as an
        exception. Nothing may write to the slots any more when the block is left.
        """

    @abstractmethod
    def events(self, capacity: int = DEFAULT_EVENT_CAPACITY) -> EventSubscription:
        """Subscribe to what appears and leaves from now on; at most ``capacity`` undelivered events are kept."""

    @abstractmethod
    def stats(self) -> PrimaryStats:
        """Where the manager stands."""

    @abstractmethod
    async def reset(self) -> None:
        """Void every block, as after a change of weights. Who holds one may complete as usual; it is gone then."""

    @abstractmethod
    async def aclose(self, *, drain: bool = True, drain_timeout: float = 10.0, timeout: float | None = None) -> None:
        """Take no new work, end all waiting with ``ClosedError``, and end the subscriptions. Idempotent.

        Args:
            drain: let queued work finish, for up to ``drain_timeout`` seconds; otherwise drop it.
            drain_timeout: seconds.
            timeout: seconds that running work is awaited after that; None: until it ends.

        Cancellation: as with ``drain=False``.
        """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
