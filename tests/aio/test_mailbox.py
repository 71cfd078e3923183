"""Mailbox: from any thread to the loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import cast

import pytest

from asyncoffload.aio.mailbox import Mailbox


async def test_many_items_come_in_one_delivery_and_in_order() -> None:
    batches: list[list[int]] = []
    box = Mailbox(batches.append)
    for item in range(100):
        box.post(item)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert batches == [list(range(100))]


async def test_nothing_is_lost_between_threads_and_loop() -> None:
    seen: list[tuple[int, int]] = []
    complete = asyncio.Event()

    def deliver(batch: list[tuple[int, int]]) -> None:
        assert batch
        seen.extend(batch)
        if len(seen) == 4 * 5000:
            complete.set()

    box = Mailbox(deliver)

    def post(number: int) -> None:
        for item in range(5000):
            box.post((number, item))

    threads = [threading.Thread(target=post, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    await complete.wait()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [item for n, item in seen if n == number] == list(range(5000))


async def test_an_item_posted_during_a_delivery_is_delivered() -> None:
    seen: list[int] = []
    box: Mailbox[int]

    def deliver(batch: list[int]) -> None:
        seen.extend(batch)
        if batch[-1] < 3:
            box.post(batch[-1] + 1)

    box = Mailbox(deliver)
    box.post(1)
    for _ in range(8):
        await asyncio.sleep(0)
    assert seen == [1, 2, 3]


async def test_a_closed_mailbox_delivers_nothing() -> None:
    seen: list[int] = []
    box = Mailbox(seen.extend)
    box.post(1)
    box.close()
    box.post(2)
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert seen == []
    assert "closed" in repr(box)


def test_items_for_a_closed_loop_are_dropped() -> None:
    loop = asyncio.new_event_loop()
    box = Mailbox[int](lambda _: None, loop)
    loop.close()
    box.post(1)


async def test_an_interrupt_while_the_loop_is_woken_does_not_kill_the_box() -> None:
    seen: list[int] = []

    class Interrupted:
        """The loop, whose thread-safe call is interrupted once, before or after it has had its effect."""

        def __init__(self, *, after: bool) -> None:
            self._loop, self._after, self._interrupts = asyncio.get_running_loop(), after, 1

        def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
            if self._after or not self._interrupts:
                self._loop.call_soon_threadsafe(call)
            if self._interrupts:
                self._interrupts -= 1
                raise KeyboardInterrupt

    for after in (True, False):
        box = Mailbox(seen.extend, cast("asyncio.AbstractEventLoop", Interrupted(after=after)))
        with pytest.raises(KeyboardInterrupt):
            box.post(1)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [1]
        box.post(2)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert seen == [1, 2]
        seen.clear()
