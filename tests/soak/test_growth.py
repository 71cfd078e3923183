"""What the soak judges by sees a small leak, and no outlier."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.soak.growth import MIB, Growth


@pytest.fixture
def growth() -> Iterator[Growth]:
    growth = Growth(warm_up=4)
    yield growth
    growth.close()


async def test_a_leak_of_objects_is_seen(growth: Growth) -> None:
    leaked: list[list[int]] = []
    for _ in range(16):
        leaked += [[] for _ in range(100)]
        growth.take()
    assert 1000 <= growth.over_all("objects") <= 1300
    assert "'list', 11" in growth.report()  # 1,100 and few more


async def test_a_leak_of_memory_is_seen(growth: Growth) -> None:
    leaked = []
    for _ in range(16):
        leaked.append(b"\1" * (2 * MIB))
        growth.take()
    assert growth.over_all("rss") >= 16 * MIB


async def test_what_comes_and_goes_is_no_growth(growth: Growth) -> None:
    for n in range(16):
        some = [[] for _ in range(5000 if n == 9 else 10)]  # type: ignore[var-annotated]
        growth.take()
        del some
    assert abs(growth.over_all("objects")) <= 100
