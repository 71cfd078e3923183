"""Device transfers for callers that know nothing of event loops."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from asyncoffload.aio.io_threads import IOThreads
from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import TierUnavailable
from asyncoffload.sync.closing import close_on
from asyncoffload.types import LoadStoreSpec, TransferResult, TransferSpec
from asyncoffload.workers.base import OffloadingHandler
from asyncoffload.workers.worker import OffloadingWorker


class SyncOffloadingWorker:
    """Routes transfers to handlers: launch them, collect their results, wait for some. Any thread may call.

    Transfers are launched on the caller's thread, behind the work that it has given to the device; no call but
    :meth:`shutdown` needs an event loop. In a process that was forked from the one that made it, every call raises
    :class:`~asyncoffload.errors.WrongLoopError`: a forked child has no copy threads and no device.

    Args:
        worker: what it wraps, and closes; a new one without handlers by default.
    """

    def __init__(self, worker: OffloadingWorker | None = None) -> None:
        self._worker = OffloadingWorker() if worker is None else worker
        self._loop = LoopThread.shared()
        self._closed = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}{' closed' if self._closed else ''}: {self._worker!r}>"

    def register_handler(
        self, src_cls: type[LoadStoreSpec], dst_cls: type[LoadStoreSpec], handler: OffloadingHandler
    ) -> None:
        """Let a handler serve transfers between two kinds of specs.

        Raises:
            InvalidArgument: another handler, or this one, already serves the pair.
        """
        self._worker.register_handler(src_cls, dst_cls, handler)

    def transfer_async(self, job_id: int, spec: TransferSpec) -> bool:
        """Launch a transfer and return at once. False when its handler could not launch it; the reason is logged.

        Raises:
            InvalidArgument: no handler serves the pair of media.
            WrongLoopError: the process was forked.
        """
        self._loop.check_process()
        return self._worker.transfer_async(job_id, spec)

    def get_finished(self) -> list[TransferResult]:
        """The transfers that ended since the last call, each exactly once; in order of completion at each handler.

        Raises:
            WrongLoopError: the process was forked.
        """
        self._loop.check_process()
        return self._worker.get_finished()

    def wait(self, job_ids: Iterable[int], timeout: float | None = None) -> None:
        """Block, without the GIL, until nothing touches the memory of these transfers any more.

        Results stay to be collected; ids that no handler knows are ignored.

        Raises:
            TierUnavailable: some still run after ``timeout`` seconds.
            WrongLoopError: the process was forked.
        """
        self._loop.check_process()
        wanted = tuple(job_ids)
        if timeout is None:
            self._worker.synchronize(wanted)
            return
        # No device has a wait with a time limit, so the waiting goes to a thread that may be left behind.
        threads = IOThreads(1, name="asyncoffload-wait")
        waiting = threads.submit(self._worker.synchronize, wanted)
        threads.shutdown(wait=False)
        try:
            waiting.result(timeout)
        except TimeoutError:
            raise TierUnavailable(
                f"some of jobs {', '.join(map(str, wanted))} still run after {timeout} seconds: "
                "their memory must not be used; wait again to go on waiting"
            ) from None

    def shutdown(self, timeout: float = 30.0) -> None:
        """Drop what is queued, wait for what runs, close the handlers. It always ends; results stay to be collected.

        Raises:
            TierUnavailable: something still runs after ``timeout`` seconds and may touch its memory; says what. Call
                again to go on waiting.
            WrongLoopError, InternalError: the process was forked; the loop's thread has ended.
        """
        self._closed = True
        close = partial(self._worker.aclose, drain=False, timeout=timeout)
        close_on(self._loop, close, timeout, lambda behind, why: f"{self!r} {behind}: {why}")
