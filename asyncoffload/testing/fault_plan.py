"""Which calls go wrong, and how: by plan, or by a seed that says so for each key, whatever the schedule."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Collection, Container, Iterable
from types import TracebackType
from typing import Generic, Self, TypeVar

from asyncoffload.errors import InvalidArgument
from asyncoffload.keys import OffloadKey

F = TypeVar("F")


class FaultRule(Generic[F]):
    """One fault of a plan. As a context manager: it ends with the block.

    Attributes:
        fault: what goes wrong.
        hits: how often it has struck.
    """

    def __init__(
        self,
        plan: FaultPlan[F],
        call: str,
        fault: F,
        keys: Iterable[OffloadKey] | None,
        calls: Container[int] | None,
        times: int | None,
        chance: float,
    ) -> None:
        self.fault = fault
        self.hits = 0
        self._plan = plan
        self._call = call
        self._keys = None if keys is None else frozenset(keys)
        self._calls = calls
        self._times = times
        self._chance = chance
        self._asked: Counter[OffloadKey | None] = Counter()

    def end(self) -> None:
        """It strikes no more; idempotent."""
        self._plan._remove(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def _strikes(self, call: str, key: OffloadKey | None, seed: str) -> bool:
        if call != self._call or (self._keys is not None and key not in self._keys):
            return False
        self._asked[key] += 1
        if self._times is not None and self.hits >= self._times:
            return False
        if self._calls is not None and self._asked.total() not in self._calls:
            return False
        if self._chance < 1 and random.Random(f"{seed}/{key!r}/{self._asked[key]}").random() >= self._chance:
            return False
        self.hits += 1
        return True


class FaultPlan(Generic[F]):
    """Faults to come, asked for by call and key. Any thread.

    Args:
        names: the calls that there are.
        seed: decides where faults with a ``chance`` strike. It is thrown for each key and each time that the key comes
            by, so the order in which keys come by does not matter.
    """

    def __init__(self, names: Collection[str], seed: int = 0) -> None:
        self._names = names
        self._seed = seed
        self._lock = threading.Lock()
        self._rules: dict[FaultRule[F], int] = {}
        self._serial = 0

    def add(
        self,
        call: str,
        fault: F,
        *,
        keys: Iterable[OffloadKey] | None = None,
        calls: Container[int] | None = None,
        times: int | None = None,
        chance: float = 1.0,
    ) -> FaultRule[F]:
        """Let something go wrong from now on.

        Args:
            call: what goes wrong.
            fault: how.
            keys: only with these.
            calls: only these, of all that the conditions above leave, counted from 1; ``range(3, 6)`` is three of them.
            times: at most so often.
            chance: with this probability.

        Raises:
            InvalidArgument: there is no such call, ``keys`` is a key, or ``chance`` is none.
        """
        if call not in self._names:
            raise InvalidArgument(f"there is no call {call!r}: choose one of {', '.join(self._names)}")
        if isinstance(keys, bytes):
            raise InvalidArgument(f"keys= is a collection: for one key say keys=[key], got {keys!r}")
        if not 0 <= chance <= 1:
            raise InvalidArgument(f"a chance lies between 0 and 1, got {chance}")
        rule = FaultRule(self, call, fault, keys, calls, times, chance)
        with self._lock:
            self._rules[rule] = self._serial
            self._serial += 1
        return rule

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        with self._lock:
            self._rules.clear()

    def faults(self, call: str, key: OffloadKey | None = None) -> list[F]:
        """What goes wrong with this call, now: the faults in the order in which they were added."""
        with self._lock:
            return [
                rule.fault
                for rule, number in self._rules.items()
                if rule._strikes(call, key, f"{self._seed}/{number}/{call}")
            ]

    def _remove(self, rule: FaultRule[F]) -> None:
        with self._lock:
            self._rules.pop(rule, None)
