"""The coroutine manager over the primary tier."""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from collections.abc import Callable, Sequence

import pytest

from asyncoffload.core.policies import ARC
from asyncoffload.errors import (
    BlocksUnavailable,
    CapacityError,
    ClosedError,
    InternalError,
    InvalidArgument,
    WrongLoopError,
)
from asyncoffload.keys import OffloadKey
from asyncoffload.managers.base import OffloadingManager
from asyncoffload.managers.cpu import CPUOffloadingManager
from asyncoffload.types import RequestContext


def blocks(*numbers: int) -> list[OffloadKey]:
    return [OffloadKey(b"%08d" % number) for number in numbers]


async def put(manager: CPUOffloadingManager, *numbers: int) -> None:
    async with manager.storing(blocks(*numbers)):
        pass


async def store(manager: CPUOffloadingManager, keys: list[OffloadKey], context: RequestContext) -> list[OffloadKey]:
    async with manager.storing(keys, context, wait=True) as lease:
        return list(lease.keys)


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(5):
        await asyncio.sleep(0)


SOME = RequestContext(request_id="some")


async def test_the_seven_methods_are_coroutines() -> None:
    seven = ["lookup", "prepare_load", "touch", "complete_load", "prepare_store", "complete_store", "take_events"]
    for name in seven:
        assert inspect.iscoroutinefunction(getattr(CPUOffloadingManager, name))
        assert name in OffloadingManager.__abstractmethods__


async def test_store_then_load() -> None:
    async with CPUOffloadingManager(4, policy=ARC()) as manager:
        output = await manager.prepare_store(blocks(1, 2, 3))
        assert output is not None
        assert output.block_hashes_to_store == blocks(1, 2, 3)
        assert await manager.lookup(blocks(1)) == 0
        await manager.complete_store(output.keys_to_store)
        assert await manager.lookup(blocks(1, 2, 9, 3)) == 2
        spec = await manager.prepare_load(blocks(1, 2))
        assert spec.block_ids.tolist() == output.store_spec.block_ids.tolist()[:2]
        assert await manager.prepare_store(blocks(4, 5, 6)) is None
        await manager.complete_load(blocks(1, 2))
        assert await manager.prepare_store(blocks(4, 5, 6)) is not None


async def test_keys_may_come_from_any_iterable_with_an_order() -> None:
    async with CPUOffloadingManager(4) as manager:
        numbered = dict.fromkeys(blocks(1, 2))
        output = await manager.prepare_store(numbered.keys())  # type: ignore[arg-type]
        assert output is not None
        await manager.complete_store(numbered.keys())  # type: ignore[arg-type]
        assert await manager.lookup(tuple(numbered)) == 2


async def test_failed_stores_are_gone() -> None:
    async with CPUOffloadingManager(1) as manager:
        await manager.prepare_store(blocks(1))
        await manager.complete_store(blocks(1), success=False)
        assert await manager.lookup(blocks(1)) == 0
        assert await manager.prepare_store(blocks(2)) is not None


async def test_a_load_that_lacks_a_block_says_how_much_is_there() -> None:
    async with CPUOffloadingManager(4) as manager:
        await put(manager, 1, 2)
        with pytest.raises(BlocksUnavailable) as caught:
            await manager.prepare_load(blocks(1, 2, 3))
        assert caught.value.ready_prefix == 2
        assert manager.stats().pinned == 0


async def test_lookup_touches_nothing_and_touch_does() -> None:
    async with CPUOffloadingManager(2) as manager:
        await put(manager, 1)
        await put(manager, 2)
        await manager.lookup(blocks(1))
        await put(manager, 3)
        assert await manager.lookup(blocks(1)) == 0
        await manager.touch(blocks(2, 9))
        await put(manager, 4)
        assert await manager.lookup(blocks(2)) == 1


@pytest.mark.parametrize("wrong", [blocks(1, 1), ["text"], [bytearray(12)], [b"abc"]])
@pytest.mark.parametrize("method", ["prepare_store", "prepare_load"])
async def test_malformed_keys_are_refused_and_harm_nothing(method: str, wrong: list[OffloadKey]) -> None:
    async with CPUOffloadingManager(4) as manager:
        await put(manager, 1)
        with pytest.raises(InvalidArgument):
            await getattr(manager, method)(wrong)
        assert await manager.lookup(blocks(1)) == 1
        assert manager.stats().pinned == 0


@pytest.mark.parametrize("method", ["lookup", "touch", "complete_load", "complete_store"])
@pytest.mark.parametrize("wrong", ["text", bytearray(12)])
async def test_what_is_no_key_is_refused_everywhere(method: str, wrong: OffloadKey) -> None:
    async with CPUOffloadingManager(4) as manager:
        with pytest.raises(InvalidArgument, match="not bytes"):
            await getattr(manager, method)([wrong])
        assert await manager.lookup(blocks(1)) == 0


async def test_a_reset_voids_everything() -> None:
    async with CPUOffloadingManager(2) as manager:
        await put(manager, 1)
        await manager.prepare_load(blocks(1))
        await manager.reset()
        assert await manager.lookup(blocks(1)) == 0
        await put(manager, 1)
        assert await manager.lookup(blocks(1)) == 0, "somebody still reads what it was"
        await manager.complete_load(blocks(1))
        await put(manager, 1)
        assert await manager.lookup(blocks(1)) == 1


# ---- waiting for room


async def test_no_room_without_waiting() -> None:
    async with CPUOffloadingManager(2) as manager, manager.storing(blocks(1, 2)):
        with pytest.raises(CapacityError, match="wait=True"):
            await manager.storing(blocks(3)).__aenter__()


@pytest.mark.parametrize("wait", [True, False])
async def test_more_than_the_primary_is_refused_at_once(wait: bool) -> None:
    async with CPUOffloadingManager(2) as manager:
        await put(manager, 1)
        with pytest.raises(CapacityError, match="3 blocks can never be in a primary tier of 2 slots"):
            await manager.storing(blocks(1, 2, 3), wait=wait).__aenter__()


async def test_room_is_given_in_arrival_order() -> None:
    async with CPUOffloadingManager(3) as manager:
        order: list[str] = []

        async def wants(name: str, *numbers: int) -> None:
            await store(manager, blocks(*numbers), SOME)
            order.append(name)

        async with manager.storing(blocks(1, 2)):
            tasks = [asyncio.create_task(wants("large", 3, 4, 5))]
            await settle()
            tasks.append(asyncio.create_task(wants("small", 6)))
            await settle()
            assert order == []
            assert len(manager._room) == 2, "the small one does not overtake although it would fit"
        await asyncio.gather(*tasks)
        assert order == ["large", "small"]


async def test_who_has_nothing_to_write_need_not_queue() -> None:
    async with CPUOffloadingManager(2) as manager:
        await put(manager, 1)
        async with manager.loading(blocks(1)):
            waiting = asyncio.create_task(store(manager, blocks(2, 3), SOME))
            await settle()
            assert await store(manager, blocks(1), SOME) == []
        assert await waiting == blocks(2, 3)


async def test_a_cancelled_waiter_leaves_its_place_to_the_next() -> None:
    async with CPUOffloadingManager(2) as manager:
        async with manager.storing(blocks(1)):
            first = asyncio.create_task(store(manager, blocks(2, 3), SOME))
            await settle()
            second = asyncio.create_task(store(manager, blocks(4), SOME))
            await settle()
            first.cancel()
            assert await second == blocks(4)
            assert first.cancelled()
        assert manager.stats().writing == 0


async def test_a_waiter_cancelled_as_it_is_called_up_takes_nothing() -> None:
    async with CPUOffloadingManager(1) as manager:
        async with manager.storing(blocks(1)):
            first = asyncio.create_task(store(manager, blocks(2), SOME))
            second = asyncio.create_task(store(manager, blocks(3), SOME))
            await settle()
        first.cancel()
        assert await second == blocks(3)
        assert await manager.lookup(blocks(3)) == 1
        assert manager.stats().writing == 0


async def test_the_deadline_ends_the_waiting() -> None:
    async with CPUOffloadingManager(1) as manager, manager.storing(blocks(1)):
        late = RequestContext(deadline=time.monotonic() + 0.001)
        with pytest.raises(CapacityError, match="before the deadline"):
            await store(manager, blocks(2), late)
        assert len(manager._room) == 0


async def test_a_deadline_that_has_passed_does_not_wait() -> None:
    async with CPUOffloadingManager(1, clock=lambda: 100.0) as manager, manager.storing(blocks(1)):
        with pytest.raises(CapacityError, match="before the deadline"):
            await store(manager, blocks(2), RequestContext(deadline=99.0))


async def test_an_offer_that_waits_counts_once() -> None:
    async with CPUOffloadingManager(1, store_threshold=2) as manager:
        await put(manager, 1)
        await put(manager, 2)
        async with manager.storing(blocks(1)) as lease:
            assert lease.keys == blocks(1)
            waiting = asyncio.create_task(store(manager, blocks(2), SOME))
            await settle()
        assert await waiting == blocks(2)
        assert manager.stats().deferred == 2


async def test_closing_ends_who_waits_and_lets_holders_finish() -> None:
    manager = CPUOffloadingManager(1)
    async with manager.storing(blocks(1)):
        waiting = asyncio.create_task(store(manager, blocks(2), SOME))
        await settle()
        await manager.aclose()
        await manager.aclose()
        with pytest.raises(ClosedError):
            await waiting
        for call in (manager.lookup, manager.touch, manager.prepare_load, manager.prepare_store):
            with pytest.raises(ClosedError, match="closed"):
                await call(blocks(1))
        with pytest.raises(ClosedError):
            await manager.loading(blocks(1)).__aenter__()
    assert manager.stats().ready == 1


# ---- memory under a transfer


class Memory:
    """Slots and who uses them, driven by hand; released on another thread, as a copy engine would."""

    def __init__(self) -> None:
        self.held: set[int] = set()
        self.released: list[int] = []
        self.notify: Callable[[], None] = lambda: None

    def held_among(self, slots: Sequence[int]) -> set[int]:
        return self.held.intersection(slots)

    def take_released(self) -> list[int]:
        taken, self.released = self.released, []
        return taken

    def on_release(self, notify: Callable[[], None]) -> None:
        self.notify = notify

    def release(self, slot: int) -> None:
        self.held.remove(slot)
        self.released.append(slot)
        thread = threading.Thread(target=self.notify)
        thread.start()
        thread.join()


async def fail_under_a_copy(manager: CPUOffloadingManager, memory: Memory) -> None:
    async with manager.storing(blocks(1)) as lease:
        memory.held.add(int(lease.spec.block_ids[0]))
        raise OSError("the copy failed")


async def test_a_lease_left_under_a_running_transfer_does_not_give_its_slot_on() -> None:
    memory = Memory()
    async with CPUOffloadingManager(1, memory=memory) as manager:
        with pytest.raises(OSError, match="the copy failed"):
            await fail_under_a_copy(manager, memory)
        assert manager.stats().quarantined == 1
        assert await manager.prepare_store(blocks(2)) is None
        waiting = asyncio.create_task(store(manager, blocks(2), SOME))
        await settle()
        assert not waiting.done()
        memory.release(0)
        assert await waiting == blocks(2)
        assert manager.stats().quarantined == 0


async def test_a_released_slot_is_seen_by_the_next_call() -> None:
    memory = Memory()
    async with CPUOffloadingManager(1, memory=memory) as manager:
        await put(manager, 1)
        memory.held.add(0)
        assert await manager.prepare_store(blocks(2)) is None
        memory.release(0)
        assert await manager.prepare_store(blocks(2)) is not None


# ---- one loop, and our own bugs


async def test_another_loop_is_refused() -> None:
    async with CPUOffloadingManager(1) as manager:
        await manager.lookup(blocks(1))
        failures: list[BaseException] = []

        def elsewhere() -> None:
            try:
                asyncio.run(manager.lookup(blocks(1)))
            except WrongLoopError as error:
                failures.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert len(failures) == 1


async def test_a_bug_in_the_core_ends_every_waiting_call() -> None:
    manager = CPUOffloadingManager(1)
    planted = RuntimeError("planted")

    def broken(keys: object) -> int:
        del keys
        raise planted

    await manager.prepare_store(blocks(1))
    waiting = [asyncio.create_task(store(manager, blocks(number), SOME)) for number in (2, 3)]
    await settle()
    manager._primary.table.prefix = broken  # type: ignore[method-assign]
    with pytest.raises(InternalError, match="planted") as caught:
        await manager.lookup(blocks(1))
    assert caught.value.__cause__ is planted
    for task in waiting:
        with pytest.raises(InternalError, match="planted"):
            await task
    with pytest.raises(InternalError, match="planted"):
        await manager.prepare_store(blocks(4))
