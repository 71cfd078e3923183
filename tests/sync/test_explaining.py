"""Why was it a miss, for callers that know nothing of event loops."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from asyncoffload import ClosedError, Explanation, Fate, InvalidArgument, RequestContext
from asyncoffload.sync.offloader import SyncOffloader
from asyncoffload.types import Status
from tests.offloader.rig import Device, settings
from tests.offloader.rig import keys_of as device_keys
from tests.sync.manager_stack import keys_of, stepping


def history(found: Explanation) -> list[tuple[str, Fate, str]]:
    return [(entry.tier, entry.what, entry.why) for entry in found.history]


def test_a_whole_stack(tmp_path: Path) -> None:
    device, (key, other) = Device(4, shape=(4096,)), device_keys("facade", 2)
    plan = settings(device, 1, tiers=[{"type": "fs", "root_dir": tmp_path, "io_threads": 2}])
    offloader = SyncOffloader(plan, kv_caches=device.kv_caches)
    try:
        for one in (key, other):
            offloader.wait([offloader.submit_store([one], [0])])
            offloader.settle()
        found = offloader.explain(key)
        assert list(found.where) == ["fs"]
        assert history(found) == [("CPU", Fate.STORED, ""), ("fs", Fate.STORED, ""), ("CPU", Fate.EVICTED, "")]
        assert offloader.explain(key, RequestContext(namespace="tenant")).verdict == "never offered to this process"
        with pytest.raises(InvalidArgument):
            offloader.explain(b"")  # type: ignore[arg-type]
    finally:
        offloader.shutdown()
    with pytest.raises(ClosedError):
        offloader.explain(key)


def test_the_step_driven_manager() -> None:
    with stepping(2, cascading=1) as stack:
        manager, keys = stack.manager, keys_of(5)
        stack.store(keys[:2])
        manager.drain_jobs(30)
        assert history(manager.explain(keys[0])) == [("CPU", Fate.STORED, ""), ("t0", Fate.STORED, "")]
        assert history(manager.explain(keys[1]))[:2] == [
            ("CPU", Fate.STORED, ""),
            ("t0", Fate.SHED, "cascade_blocks"),
        ]
        stack.store(keys[2:4])
        found = manager.explain(keys[0])
        assert "evicted from host memory" in found.verdict
        assert list(found.where) == ["t0"]
        assert manager.explain(keys[4]).verdict == "never offered to this process"
        with manager.step():
            assert manager.explain(keys[3]).where["CPU"] == "ready"
        with pytest.raises(InvalidArgument, match="there is no tier"):
            manager.explain(keys[0], RequestContext(tiers=frozenset({"nowhere"})))
    with pytest.raises(ClosedError):
        manager.explain(keys[0])


def test_what_the_tier_could_not_give() -> None:
    with stepping(2) as stack:
        manager, (key, other, third) = stack.manager, keys_of(3)
        stack.store([key])
        manager.drain_jobs(30)
        stack.store([other, third])
        manager.drain_jobs(30)
        stack.tier.outcomes[key] = Status.CORRUPT
        manager.lookup([key], RequestContext(request_id="r"))
        manager.drain_jobs(30)
        assert ("t0", Fate.CORRUPT, "") in history(manager.explain(key))


def test_another_thread_may_ask() -> None:
    with stepping(8) as stack:
        keys = keys_of(8)
        stack.store(keys)
        found: list[Explanation] = []
        thread = threading.Thread(target=lambda: found.extend(map(stack.manager.explain, keys)))
        thread.start()
        thread.join()
        assert [one.where["CPU"] for one in found] == ["ready"] * 8
