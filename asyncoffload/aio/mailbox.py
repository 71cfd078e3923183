"""From threads to the loop: many items, one wake-up."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Carries items from any thread to a callable on the loop's thread.

    ``call_soon_threadsafe`` costs about 2 us an item and a system call; here the first item posted since the last
    delivery arms one such call, and all that follow before the loop gets to it ride along for the price of a
    ``deque.append``.

    Args:
        deliver: called on the loop's thread with every item posted since the last call, oldest first; never empty.
        loop: the receiving loop; the running one by default.
    """

    def __init__(self, deliver: Callable[[list[T]], None], loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._deliver = deliver
        self._loop = asyncio.get_running_loop() if loop is None else loop
        self._items: deque[T] = deque()
        self._armed = False
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "armed" if self._armed else "at rest"
        return f"<Mailbox {state}, {len(self._items)} items>"

    def post(self, item: T) -> None:
        """Hand over one item; any thread. After :meth:`close`, or when the loop is closed, it is dropped silently."""
        if self._closed:
            return
        self._items.append(item)
        # Two threads may both find it unarmed; the second wake-up then finds nothing, which does no harm.
        if not self._armed:
            self._armed = True
            try:
                self._loop.call_soon_threadsafe(self._empty)
            except RuntimeError:
                pass  # the loop is closed: nobody is left to deliver to
            except BaseException:  # KeyboardInterrupt may come at any moment; a box that stays armed would be dead
                self._loop.call_soon_threadsafe(self._empty)
                raise

    def close(self) -> None:
        """Drop what has not been delivered, and everything posted later. Idempotent; the loop's thread."""
        self._closed = True
        self._items.clear()

    def _empty(self) -> None:
        # Disarm first: an item that comes while the box is being emptied is either taken now or arms the next call.
        self._armed = False
        items = [self._items.popleft() for _ in range(len(self._items))]
        if items:
            self._deliver(items)
