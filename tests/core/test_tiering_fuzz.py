"""The planner alone, under random opens, closes, stores and outcomes in any order."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest

from asyncoffload.core.block_table import BlockTable
from asyncoffload.core.ops import Op, OpKind
from asyncoffload.core.pledges import Pledge
from asyncoffload.core.policies import ARC, LRU, EvictionPolicy
from asyncoffload.core.primary import Primary
from asyncoffload.core.tickets import NO_SLOT, FetchState, Mode, Ticket
from asyncoffload.core.tiering import TieringPlanner
from asyncoffload.core.write import Write
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.types import Priority, Status, WritePolicy

KEYS = [make_key(bytes([n])) for n in range(30)]
N_TIERS = 2
FAULTS = [Status.MISSING, Status.CORRUPT, Status.FAILED, Status.TIMED_OUT, Status.SHED, Status.CANCELLED]


class World:
    """A planner, two tiers that hold random blocks, and everything a hostile set of callers could do.

    Whatever they do, a block that leaves the primary while no tier has it is counted, or does not leave.
    """

    def __init__(
        self,
        seed: int,
        *,
        write_policy: WritePolicy = "write_through",
        keep_dirty: bool = False,
        policy: type[EvictionPolicy] = LRU,
    ) -> None:
        self.random = random.Random(seed)
        n_slots = self.random.choice([4, 9, 20])
        self.table = BlockTable(n_slots, policy(), n_tiers=N_TIERS, keep_dirty=keep_dirty)
        self.primary = Primary(self.table)
        self.tiers: list[set[OffloadKey]] = [set(self.random.sample(KEYS, 15)) for _ in range(N_TIERS)]
        self.knows = knows = self.random.random() < 0.5
        self.write_policy = write_policy
        self.planner = TieringPlanner(
            self.primary,
            [lambda key, tier=tier: knows and key in tier for tier in self.tiers],  # type: ignore[misc]
            promotion_blocks=self.random.choice([2, 8]),
            cascade_blocks=self.random.choice([0, 3, 8]),
            clean_window=4,
            write_policy=write_policy,
        )
        self.written: set[tuple[int, OffloadKey]] = set()
        self.n_lost = 0
        self.tickets: list[Ticket] = []
        self.stores: list[Write] = []
        self.ops: list[Op] = []
        self.promotions: list[Write] = []
        self.pledges: list[Pledge] = []

    def step(self) -> None:
        actions = [self.open, self.open, self.extend, self.close, self.expire, self.begin_store, self.end_store]
        actions += [self.take, self.take, self.settle, self.settle, self.settle, self.lose]
        if self.random.random() < 0.02:
            actions = [self.reset, self.flush]
        elif self.random.random() < 0.05:
            actions = [self.pledge, self.pledge_flush, self.release]
        self.random.choice(actions)()
        self.planner.take_woken()

    def open(self) -> None:
        start = self.random.randrange(len(KEYS))
        keys = KEYS[start : start + self.random.randrange(1, 8)]
        mode = self.random.choice(list(Mode))
        tiers = self.random.choice([-1, -1, -1, 1, 2, 0])
        self.tickets.append(self.planner.open(keys, mode, self.random.choice(list(Priority)), tiers=tiers))

    def extend(self) -> None:
        if self.tickets:
            ticket = self.random.choice(self.tickets)
            self.planner.extend(ticket, [k for k in self.random.sample(KEYS, 3) if k not in ticket.keys])

    def close(self) -> None:
        if self.tickets:
            ticket = self.tickets.pop(self.random.randrange(len(self.tickets)))
            self.planner.close(ticket)
            self.planner.close(ticket)

    def expire(self) -> None:
        if self.tickets:
            self.planner.expire(self.random.choice(self.tickets))

    def begin_store(self) -> None:
        keys = self.random.sample(KEYS, 3)
        write = self.primary.begin_store(keys)
        if write is None and self.planner.make_room(keys, keys, insist=self.random.random() < 0.5):
            write = self.primary.begin_store(keys)
        if write is not None and write.keys:
            self.left(write)
            self.planner.store_began(write.keys)
            self.stores.append(write)

    def left(self, write: Write) -> None:
        """Blocks had to make room."""
        kept = len(write.evicted) - write.lost
        assert all(any(key in tier for tier in self.tiers) for key in write.evicted[:kept])
        self.n_lost += write.lost
        self.forget_written(write.evicted)

    def forget_written(self, keys: Iterable[OffloadKey]) -> None:
        """What left the primary may be written again once it is back, unless the tiers say that they have it."""
        if not self.knows:
            self.written -= {(tier, key) for tier in range(N_TIERS) for key in keys}

    def end_store(self) -> None:
        if self.stores:
            write = self.stores.pop(self.random.randrange(len(self.stores)))
            self.primary.finish_store(write, self.random.random() < 0.8)
            self.planner.store_ended(write.keys)

    def take(self) -> None:
        self.ops += [op for op in self.planner.take() if isinstance(op, Op)]
        for running in self.planner._running._running.values():
            if running.write is not None and running.write not in self.promotions:
                self.promotions.append(running.write)
                self.left(running.write)

    def settle(self) -> None:
        if not self.ops:
            return
        op = self.ops.pop(self.random.randrange(len(self.ops)))
        statuses = []
        for key in op.keys:
            if self.random.random() < 0.1:
                status = self.random.choice(FAULTS)
            elif op.kind is not OpKind.PROBE and key in op.unwanted:
                status = Status.CANCELLED
            elif op.kind is OpKind.CASCADE:
                assert self.write_policy == "write_through" or (op.tier, key) not in self.written, "written twice"
                self.tiers[op.tier].add(key)
                self.written.add((op.tier, key))
                status = Status.DONE
            else:
                status = Status.DONE if key in self.tiers[op.tier] else Status.MISSING
            statuses.append(status)
        self.planner.settle(op.op_id, statuses)

    def lose(self) -> None:
        tier = self.random.randrange(N_TIERS)
        key = self.random.choice(KEYS)
        self.tiers[tier].discard(key)
        self.written.discard((tier, key))
        self.planner.forget(tier, [key])

    def reset(self) -> None:
        self.forget_written(KEYS)
        self.planner.reset()

    def flush(self) -> None:
        self.planner.flush()

    def pledge(self) -> None:
        self.pledges.append(self.planner.pledge())

    def pledge_flush(self) -> None:
        before = self.random.choice([None, *self.pledges])
        self.pledges.append(self.planner.pledge_flush(before))
        self.planner.may_take_more(self.pledges[-1])

    def release(self) -> None:
        if self.pledges:
            self.planner.release(self.pledges.pop(self.random.randrange(len(self.pledges))))

    def pins(self) -> list[int]:
        """The slots that others have pinned, once per pin."""
        return []

    def check(self) -> None:
        table, book = self.table, self.planner._reads.book
        assert table.lost == self.n_lost
        assert not (table.keeps_dirty and table.lost)
        clean = sum(any(table._copies._has[slot : slot + 1]) for slot in table.ready.values())
        assert table._copies.clean == clean == np.count_nonzero(table._copies._has)
        slots = [*table.ready.values(), *table.writing.values(), *table.doomed.values(), *table._free._free]
        assert sorted(slots) == list(range(table.n_slots)), "a slot is lost or in two places"
        readers: Counter[int] = Counter()
        for ticket in self.tickets:
            readers.update(slot for slot in ticket.slots if slot != NO_SLOT)
            for index, fetch in enumerate(ticket.fetches):
                assert fetch is None or fetch.waiters[ticket] == index
            assert ticket.pos <= ticket.end <= len(ticket.keys)
        readers.update(self.pins())
        for outlet in self.planner._cascades._outlets:
            readers.update(slot for _, slot in outlet.waiting)
        for running in self.planner._running._running.values():
            if running.op.kind is OpKind.CASCADE:
                readers.update(running.op.slots)
        assert {slot: n for slot, n in enumerate(table._readers) if n} == dict(readers), "a pin is lost or left over"
        ahead = [key for keys in self.planner.ahead_of(Priority.HOUSEKEEPING).values() for key in keys]
        coming = [fetch.key for fetch in book.fetches.values() if fetch.state is FetchState.QUEUED and fetch.waiters]
        for op in self.planner.in_flight:
            coming += [key for key in op.keys if op.kind is OpKind.PROMOTE and key not in op.unwanted]
        assert sorted(ahead) == sorted(coming)
        waiting = [pledge for pledge in self.pledges if not pledge.over]
        assert self.planner._cascades._pledges == waiting
        for tier, outlet in enumerate(self.planner._cascades._outlets):
            assert outlet.parts == [pledge.parts[tier] for pledge in waiting]
            assert all(part.flying <= outlet.in_flight for part in outlet.parts)
        for fetch in book.fetches.values():
            assert fetch.key not in table.ready or fetch.state is FetchState.MISSED
            assert fetch.waiters or fetch.state is FetchState.PROMOTING
            assert set(fetch.waiters) <= set(self.tickets)
            assert fetch.state is not FetchState.PROMOTING or fetch.key in table.writing or fetch.key in table.doomed

    def drain(self) -> None:
        """Let everything that runs end; then whoever is done leaves. Nobody may be left waiting."""
        for _ in range(10_000):
            self.take()
            if self.ops:
                self.settle()
            elif self.stores:
                self.end_store()
            elif done := [ticket for ticket in self.tickets if ticket.done]:
                self.tickets.remove(done[0])
                self.planner.close(done[0])
            else:
                break
            self.check()
        assert not self.tickets, f"nothing runs and these still wait: {self.tickets}, {self.planner!r}"
        assert self.planner.idle
        assert self.planner.settled
        assert all(pledge.over for pledge in self.pledges)
        assert not self.planner._reads.book.fetches
        assert not self.table.writing
        assert not self.table.doomed
        assert self.table.pinned == 0


@pytest.mark.parametrize("batch", range(20))
def test_random_histories_leave_nothing_over(batch: int) -> None:
    for seed in range(batch * 60, batch * 60 + 60):
        world = World(seed)
        for _ in range(world.random.randrange(20, 160)):
            world.step()
            world.check()
        world.drain()


@pytest.mark.parametrize("keep_dirty", [False, True], ids=["drop", "refuse"])
@pytest.mark.parametrize("write_policy", ["write_through", "demote"])
@pytest.mark.parametrize("policy", [LRU, ARC])
@pytest.mark.parametrize("batch", range(4))
def test_what_leaves_has_a_copy_or_is_counted_and_is_written_once(
    batch: int, policy: type[EvictionPolicy], write_policy: WritePolicy, keep_dirty: bool
) -> None:
    for seed in range(20_000 + batch * 40, 20_000 + batch * 40 + 40):
        world = World(seed, write_policy=write_policy, keep_dirty=keep_dirty, policy=policy)
        for _ in range(world.random.randrange(20, 160)):
            world.step()
            world.check()
        world.drain()


@pytest.mark.parametrize("drain", [True, False])
def test_a_shut_planner_ends_every_ticket(drain: bool) -> None:
    for seed in range(200):
        world = World(10_000 + seed)
        for _ in range(60):
            world.step()
        world.planner.shut(drain=drain)
        assert all(ticket.done for ticket in world.tickets)
        world.check()
        world.open()
        assert world.tickets[-1].done
        world.drain()
