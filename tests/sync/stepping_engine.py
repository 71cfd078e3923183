"""An engine that steps at random, and believes nothing that it is told."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from asyncoffload.keys import OffloadKey
from asyncoffload.sync.manager import SyncOffloadingManager
from asyncoffload.types import CPULoadStoreSpec, LookupResult, Priority, RequestContext

HIT, MISS = LookupResult.HIT, LookupResult.MISS

ROUNDS = 100
"""How often a request asks, with nothing to disturb it, until it must know."""


@dataclass
class Request:
    """A request of the engine: a chain of keys."""

    ctx: RequestContext
    keys: Sequence[OffloadKey]
    loading: list[tuple[Sequence[OffloadKey], CPULoadStoreSpec]] = field(default_factory=list)


class Engine:
    """Looks up, loads and stores in steps of random length, and checks every byte that it was promised.

    Args:
        manager: what is tested.
        chains: the key chains that requests have.
        write: puts the content of a key into a slot.
        holds: whether a slot has the content of a key.
        dice: chance.
        a_tier: the name of one of the tiers.
    """

    def __init__(
        self,
        manager: SyncOffloadingManager,
        chains: Sequence[Sequence[OffloadKey]],
        write: Callable[[OffloadKey, int], None],
        holds: Callable[[OffloadKey, int], bool],
        dice: random.Random,
        a_tier: str,
    ) -> None:
        self.manager = manager
        self.chains = chains
        self.write = write
        self.holds = holds
        self.dice = dice
        self.a_tier = a_tier
        self.requests: list[Request] = []
        self.storing: list[tuple[Sequence[OffloadKey], CPULoadStoreSpec]] = []
        self.n_requests = 0
        self.loaded = 0

    # ---- what may happen

    def step(self) -> None:
        """One step: some requests look up and load, then stores; sometimes the parts come without a step."""
        if self.dice.random() < 0.8:
            with self.manager.step():
                self.schedule()
                if self.dice.random() < 0.3:
                    self.begin_store()
        else:
            self.schedule()
        for action in self.dice.choices(
            [self.begin_store, self.end_store, self.end_load, self.end_request, self.arrive, self.look_around], k=6
        ):
            action()

    def schedule(self) -> None:
        """Look some requests up, in turn, and load some of what was there."""
        promised = [(request, self.look_up(request)) for request in self.requests if self.dice.random() < 0.7]
        if self.manager._handover.stepper:  # promises of calls that are steps of their own are bounded by a count
            for request, keys in promised:
                if keys and self.dice.random() < 0.5:
                    self.begin_load(request, keys)

    def look_up(self, request: Request) -> Sequence[OffloadKey]:
        """The ready prefix of a request."""
        if self.dice.random() < 0.3:
            return request.keys[: self.manager.lookup(request.keys, request.ctx)]
        ready = 0
        whole = True
        for key in request.keys:
            answer = self.manager.lookup_block(key, request.ctx)
            if answer is MISS:
                break
            whole = whole and answer is HIT
            ready += whole
        return request.keys[:ready]

    def begin_load(self, request: Request, keys: Sequence[OffloadKey]) -> None:
        """Load a promised prefix: that must not fail."""
        spec = self.manager.prepare_load(keys, request.ctx)
        self.check(keys, spec)
        request.loading.append((keys, spec))

    def end_load(self) -> None:
        busy = [request for request in self.requests if request.loading]
        if busy:
            request = self.dice.choice(busy)
            keys, spec = request.loading.pop()
            self.check(keys, spec)
            self.loaded += len(keys)
            self.manager.complete_load(keys, request.ctx)

    def begin_store(self) -> None:
        if len(self.storing) > 2:
            return
        chain = self.dice.choice(self.chains)
        start = self.dice.randrange(len(chain))
        output = self.manager.prepare_store(chain[start : start + self.dice.randrange(1, 6)])
        if output is not None and output.keys_to_store:
            assert isinstance(output.store_spec, CPULoadStoreSpec)
            self.storing.append((output.keys_to_store, output.store_spec))

    def end_store(self) -> None:
        if self.storing:
            keys, spec = self.storing.pop(self.dice.randrange(len(self.storing)))
            if self.dice.random() < 0.8:
                for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
                    self.write(key, slot)
                self.manager.complete_store(keys, spec=spec)
            else:
                self.manager.complete_store(keys, success=False)

    def arrive(self) -> None:
        if len(self.requests) < 12:
            self.n_requests += 1
            ctx = RequestContext(
                request_id=self.dice.choice([f"r{self.n_requests}"] * 9 + [""]),
                priority=self.dice.choice([Priority.DEMAND, Priority.PREFETCH]),
                deadline=self.dice.choice([None] * 4 + [0.0, 1e12]),
                tiers=self.dice.choice([None] * 4 + [frozenset(), frozenset([self.a_tier])]),
            )
            self.requests.append(Request(ctx, self.dice.choice(self.chains)))

    def end_request(self) -> None:
        idle = [request for request in self.requests if not request.loading]
        if idle:
            request = self.dice.choice(idle)
            self.requests.remove(request)
            self.manager.end_request(request.ctx.request_id)

    def look_around(self) -> None:
        self.manager.has_pending_work()
        self.manager.take_events()
        self.manager.tier_counts()
        stats = self.manager.stats()
        assert stats.ready + stats.writing + stats.doomed + stats.quarantined + stats.free == stats.slots
        if self.dice.random() < 0.05:
            self.manager.reset()

    # ---- the end

    def finish(self) -> None:
        """Let everything end; nobody may be left waiting."""
        while self.storing:
            self.end_store()
        while any(request.loading for request in self.requests):
            self.end_load()
        self.manager.drain_jobs()
        for request in self.requests:
            if request.ctx.request_id:
                self.see_answered(request)
            self.manager.end_request(request.ctx.request_id)
        self.manager.end_request("")
        self.manager.drain_jobs()

    def see_answered(self, request: Request) -> None:
        """A request that goes on asking gets what there is."""
        for _ in range(ROUNDS):
            with self.manager.step():
                for key in request.keys:
                    answer = self.manager.lookup_block(key, request.ctx)
                    if answer is not HIT:
                        break
                if answer in (HIT, MISS):
                    keys = request.keys[: self.manager.lookup(request.keys, request.ctx)]
                    if keys:
                        self.check(keys, self.manager.prepare_load(keys, request.ctx))
                        self.manager.complete_load(keys, request.ctx)
                    return
            self.manager.drain_jobs()
        raise AssertionError(f"{request.ctx} is never answered: {self.manager!r}")

    def check(self, keys: Iterable[OffloadKey], spec: CPULoadStoreSpec) -> None:
        for key, slot in zip(keys, spec.block_ids.tolist(), strict=True):
            assert self.holds(key, slot), f"slot {slot} does not hold {key.hex()}"
