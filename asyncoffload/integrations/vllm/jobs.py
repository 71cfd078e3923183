"""The jobs that a tier has under way for vLLM, and who waits for them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING

from asyncoffload.integrations.vllm.translate import is_wanted, transfer_job
from asyncoffload.keys import OffloadKey
from asyncoffload.types import JobResult, Status, TransferJob

if TYPE_CHECKING:
    from vllm.v1.kv_offload.base import ReqContext
    from vllm.v1.kv_offload.tiering.base import TransferJob as VllmTransferJob

GIVEN_UP_SECONDS = 10.0
"""How long a block whose load came too late is not asked for again, unless it is stored anew."""

MAX_GIVEN_UP = 65_536

MAX_SHARING = 16
"""Waiting requests that are asked, block by block, what they share with one that has ended. What only those behind
them want is skipped, and loaded when they ask for it: better than to hold up the scheduler."""


@dataclass(slots=True)
class Entry:
    """A job from its submission until its result is returned."""

    job: TransferJob
    is_load: bool
    request_id: str
    submitted_at: float
    given_up: bool = False


class JobBook:
    """Which jobs run, which requests are live, and which of those still wait for blocks.

    A request waits from its arrival, or its preemption, until it is scheduled. One thread uses a book.

    Args:
        load_seconds: how long a load may wait for its begin; None: for ever.
        clock: seconds, the clock of vLLM's jobs.
    """

    def __init__(self, load_seconds: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._load_seconds = load_seconds
        self._clock = clock
        self._entries: dict[int, Entry] = {}
        self._loads: dict[int, Entry] = {}
        self._loads_of: dict[str, dict[int, Entry]] = {}
        self._live: dict[str, ReqContext] = {}
        self._waiting: dict[str, ReqContext] = {}
        self._given_up: dict[OffloadKey, float] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return (
            f"<{type(self).__name__}: {len(self._entries)} jobs, {len(self._loads)} of them loads, "
            f"{len(self._live)} requests, {len(self._waiting)} of them waiting>"
        )

    @property
    def loading(self) -> bool:
        """Whether blocks are on their way to somebody."""
        return bool(self._loads)

    # ---- requests

    def arrived(self, request: ReqContext) -> None:
        """A request is live, and waits."""
        self._live[request.req_id] = self._waiting[request.req_id] = request

    def scheduled(self, new: Collection[str], preempted: Collection[str]) -> None:
        """A step has been planned: some requests wait no more, some wait again."""
        for request_id in new:
            self._waiting.pop(request_id, None)
        for request_id in preempted:
            if request_id in self._live:
                self._waiting[request_id] = self._live[request_id]

    def ended(self, request_id: str) -> None:
        """A request wants nothing more: its loads are skipped, but for blocks that are part of a waiting prompt."""
        self._live.pop(request_id, None)
        self._waiting.pop(request_id, None)
        for entry in self._loads_of.pop(request_id, {}).values():
            keys = entry.job.keys
            # Prompts share their beginnings, which is one end of the job: few requests need a closer look.
            alike = (
                other for other in self._waiting.values() if is_wanted(other, keys[0]) or is_wanted(other, keys[-1])
            )
            sharing = list(islice(alike, MAX_SHARING))
            entry.job.unwanted.update(key for key in keys if not any(is_wanted(other, key) for other in sharing))

    # ---- jobs

    def enter(self, metadata: VllmTransferJob) -> TransferJob:
        """A job of vLLM's begins."""
        entry = Entry(transfer_job(metadata), metadata.is_promotion, metadata.req_context.req_id, metadata.submit_time)
        self._entries[entry.job.job_id] = entry
        if entry.is_load:
            self._loads[entry.job.job_id] = entry
            self._loads_of.setdefault(entry.request_id, {})[entry.job.job_id] = entry
        return entry.job

    def leave(self, result: JobResult) -> Entry:
        """A job's result is returned to vLLM."""
        entry = self._entries.pop(result.job_id)
        if entry.is_load:
            del self._loads[result.job_id]
            of_request = self._loads_of.get(entry.request_id, {})
            of_request.pop(result.job_id, None)
            if not of_request:
                self._loads_of.pop(entry.request_id, None)
            if entry.given_up:
                self._remember_given_up(result)
        else:
            for key in result.successful_keys if self._given_up else ():
                self._given_up.pop(key, None)
        return entry

    def skip_loads(self) -> None:
        """Nobody waits for any load any more."""
        for entry in self._loads.values():
            entry.job.unwanted.update(entry.job.keys)

    # ---- loads that take too long

    def give_up_late_loads(self) -> None:
        """Skip what is left of loads that have waited too long: their requests are better off computing."""
        if self._load_seconds is None:
            return
        latest = self._clock() - self._load_seconds
        for entry in self._loads.values():
            if entry.submitted_at > latest:
                return  # they are in the order of their submission
            if not entry.given_up:
                entry.given_up = True
                entry.job.unwanted.update(entry.job.keys)

    def was_given_up(self, key: OffloadKey) -> bool:
        """Whether a load of the block came too late, lately: it counts as a miss."""
        return key in self._given_up and self._clock() < self._given_up[key]

    def _remember_given_up(self, result: JobResult) -> None:
        now = self._clock()
        while self._given_up and (
            len(self._given_up) > MAX_GIVEN_UP or self._given_up[next(iter(self._given_up))] <= now
        ):
            del self._given_up[next(iter(self._given_up))]
        for key, outcome in zip(result.keys, result.outcomes, strict=True):
            if outcome.status is Status.CANCELLED:
                self._given_up.pop(key, None)  # so that the oldest is always the first
                self._given_up[key] = now + GIVEN_UP_SECONDS
