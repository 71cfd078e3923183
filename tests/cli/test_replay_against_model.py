"""A settled replay hits, tier by tier and block for block, what a textbook LRU says."""

from __future__ import annotations

import asyncio
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import uvloop

from asyncoffload.cli.generated import generated_traffic
from asyncoffload.cli.replay import Replay, ReplayOptions
from asyncoffload.cli.traffic import Request, read_trace
from asyncoffload.config import OffloaderSettings

BLOCK_BYTES = 4096
TRACES = ("mooncake_conversation_first1000.jsonl", "claudecode_600req.jsonl.gz")


def model_hits(requests: Sequence[Request], capacity: int) -> Iterator[dict[str, int]]:
    """Hits per tier of each request: an LRU of ``capacity`` blocks in front of a disk without bounds.

    A request hits its longest known prefix. Then all its blocks have been used, the last one longest ago.
    """
    memory: OrderedDict[int, None] = OrderedDict()
    disk: set[int] = set()
    for request in requests:
        hits = {"CPU": 0, "fs": 0}
        for block in request.blocks:
            if block not in disk:
                break
            hits["CPU" if block in memory else "fs"] += 1
        disk.update(request.blocks)
        for block in reversed(request.blocks):
            memory[block] = None
            memory.move_to_end(block)
        while len(memory) > capacity:
            memory.popitem(last=False)
        yield hits


def replayed_hits(requests: Sequence[Request], capacity: int, root: Path) -> list[dict[str, int]]:
    settings = OffloaderSettings.parse(
        {
            "host_bytes": capacity * BLOCK_BYTES,
            "cascade_blocks": capacity,
            "tiers": [{"type": "fs", "root_dir": root, "max_queued_bytes": capacity * BLOCK_BYTES}],
        }
    )
    replay = Replay(requests, ReplayOptions(settings, BLOCK_BYTES, device_blocks=512, concurrency=1, settle=True))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(replay.run())
    assert not any(served.wrong_bytes or served.shed for served in replay.served)
    assert replay.report({}).account.tiers["fs"].shed == 0
    return [{"CPU": served.hits.get("CPU", 0), "fs": served.hits.get("fs", 0)} for served in replay.served]


def traces() -> Path:
    folder = os.environ.get("ASYNCOFFLOAD_TRACES")
    if not folder:
        pytest.skip("ASYNCOFFLOAD_TRACES names no folder with real traces")
    return Path(folder)


@pytest.mark.parametrize("capacity", [130, 300, 1000])
def test_generated_traffic(tmp_path: Path, capacity: int) -> None:
    requests = generated_traffic(80, seed=capacity)
    assert replayed_hits(requests, capacity, tmp_path) == list(model_hits(requests, capacity))


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("capacity", [450, 1500, 5000])
@pytest.mark.parametrize("trace", TRACES)
def test_real_traffic(tmp_path: Path, trace: str, capacity: int) -> None:
    requests = read_trace(traces() / trace)
    assert max(len(request.blocks) for request in requests) < capacity
    assert replayed_hits(requests, capacity, tmp_path) == list(model_hits(requests, capacity))
