"""Driver events are used again when nobody uses them any more, and never sooner."""

from __future__ import annotations

import pytest

from asyncoffload.device.cuda import pools
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.pools import MarkPool
from asyncoffload.errors import DeviceError
from tests.device.cuda.fake import Fake


def test_an_event_goes_back_with_its_last_user(driver: Driver) -> None:
    pool = MarkPool(driver)
    mark = pool.take()
    assert pool.share(mark) is mark
    pool.give_back(mark)
    assert pool.take() is not mark
    pool.give_back(mark)
    assert pool.take() is mark
    assert (pool.made, pool.lent) == (2, 2)


def test_an_event_that_cannot_be_made_is_not_lent(fake: Fake, driver: Driver) -> None:
    pool = MarkPool(driver)
    fake.fail_next("cuEventCreate", 2)
    with pytest.raises(DeviceError):
        pool.take()
    assert (pool.made, pool.lent) == (0, 0)


def test_draining_hands_over_all_events_once(driver: Driver) -> None:
    pool = MarkPool(driver)
    marks = [pool.take(), pool.take()]
    for mark in marks:
        pool.give_back(mark)
    assert sorted(pool.drain()) == sorted(mark.handle for mark in marks)
    assert pool.drain() == []
    assert pool.made == 0


def test_draining_leaves_an_event_that_does_not_come_back(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pools, "LAST_USERS_SECONDS", 0.0)
    pool = MarkPool(driver)
    pool.take()
    pool.give_back(free := pool.take())
    assert pool.drain() == [free.handle]
    assert "1 of 2 events in use" in caplog.text
