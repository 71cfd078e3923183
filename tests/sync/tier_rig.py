"""A facade over a tier that the test holds in its hand, on a loop that the test may ruin."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from asyncoffload.aio.loop_thread import LoopThread
from asyncoffload.errors import OffloadError
from asyncoffload.keys import OffloadKey
from asyncoffload.sync.tier import SyncSecondaryTier
from asyncoffload.types import LookupResult, Status, TransferJob
from tests.sync.held_tier import TIMEOUT, HeldTier

N_SLOTS = 64


class Rig:
    """The parts, a clock, and shorthands.

    Attributes:
        now: what the facade's clock shows.
    """

    def __init__(self) -> None:
        self.now = 100.0
        self.loop = LoopThread()
        self.tier = HeldTier(N_SLOTS)
        self.facade = SyncSecondaryTier(self.tier, loop=self.loop, clock=lambda: self.now)

    def close(self) -> None:
        self.tier.lookups.open()
        self.tier.jobs.open()
        self.tier.closing.open()
        try:
            self.settled()
        except Exception:  # the test has ruined the loop
            return
        try:
            self.facade.shutdown(TIMEOUT)
        except OffloadError:
            assert self.tier.fault is not None
        self.loop.stop()

    def settled(self) -> None:
        """Return when the loop has done all that it can do now."""

        async def turn() -> None:
            return

        for _ in range(4):
            self.loop.run(turn)

    def store(self, keys: Sequence[OffloadKey], job_id: int) -> TransferJob:
        job = TransferJob(keys, range(len(keys)), job_id=job_id)
        self.facade.submit_store(job)
        return job

    def load(self, keys: Sequence[OffloadKey], job_id: int) -> TransferJob:
        job = TransferJob(keys, range(len(keys)), job_id=job_id)
        self.facade.submit_load(job)
        return job

    def lookup(self, key: OffloadKey) -> LookupResult:
        """What the tier says in the end."""
        answer = self.facade.lookup(key)
        while answer is LookupResult.RETRY:
            self.settled()
            answer = self.facade.lookup(key)
        return answer

    def finished(self) -> list[int]:
        """Wait for all jobs, and collect their results; returns the ids in order."""
        self.facade.drain_jobs(TIMEOUT)
        return [result.job_id for result in self.facade.get_finished()]

    def outcome_of_load(self, keys: Sequence[OffloadKey], job_id: int) -> list[Status]:
        self.load(keys, job_id)
        self.facade.drain_jobs(TIMEOUT)
        (result,) = self.facade.get_finished()
        return [outcome.status for outcome in result.outcomes]


@contextmanager
def rigged() -> Iterator[Rig]:
    rig = Rig()
    try:
        yield rig
    finally:
        rig.close()
