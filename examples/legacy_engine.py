"""An engine that is driven in steps and knows nothing of asyncio.

Run it as it stands: ``python examples/legacy_engine.py``. Conversations grow turn by turn. Each step of the engine
collects what has finished, admits requests, and computes one block of each; nothing in it waits, but for device blocks
that it wants to use again while a store still reads them.
"""

from __future__ import annotations

import random
import tempfile
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path

import torch

from asyncoffload import OffloadKey, make_key
from asyncoffload.sync import SyncOffloader

DEVICE_BLOCKS = 48
CONVERSATIONS = 12
TURNS = 3
BLOCKS_PER_TURN = 4


@dataclass
class Request:
    """One turn of a conversation: the blocks of its whole prompt, of which most were computed in earlier turns."""

    name: str
    content: list[int]
    device_blocks: list[int] = field(default_factory=list)
    ready: int = 0

    @property
    def keys(self) -> list[OffloadKey]:
        return [make_key(number.to_bytes(8, "big")) for number in self.content]


class Engine:
    """Serves requests over one offloader."""

    def __init__(self, offloader: SyncOffloader, kv_caches: list[torch.Tensor]) -> None:
        self.offloader = offloader
        self.kv_caches = kv_caches
        self.free = deque(range(DEVICE_BLOCKS))
        self.waiting: deque[Request] = deque()
        self.loading: dict[int, Request] = {}
        self.running: list[Request] = []
        self.storing: dict[int, list[int]] = {}
        self.counts: Counter[str] = Counter()

    def step(self) -> None:
        """What a legacy engine does, over and over."""
        self.collect()
        self.admit()
        for request in self.running:
            self.compute_next_block(request)
        for request in [request for request in self.running if request.ready == len(request.content)]:
            self.finish(request)
        self.counts["steps"] += 1

    def collect(self) -> None:
        """Each finished job is reported here, exactly once."""
        for result in self.offloader.get_finished():
            if result.is_store:
                self.free.extend(self.storing.pop(result.job_id))
                continue
            request = self.loading.pop(result.job_id)
            # A load may bring less than lookup had promised, or fail: what is not there is computed.
            request.ready = result.blocks if result.success else 0
            self.counts["blocks loaded"] += request.ready
            self.running.append(request)

    def admit(self) -> None:
        """Start the loads of waiting requests. Where tiers are still being asked, lookup is called again next step."""
        for _ in range(len(self.waiting)):
            request = self.waiting.popleft()
            found = self.offloader.lookup(request.keys)
            if found is None or not self.take_device_blocks(request):
                self.waiting.append(request)
            elif found:
                job = self.offloader.submit_load(request.keys[:found], request.device_blocks[:found])
                self.loading[job] = request
            else:
                self.running.append(request)

    def take_device_blocks(self, request: Request) -> bool:
        """Give device blocks to a request. Those that a store still reads are waited for before they are used."""
        needed = len(request.content)
        if len(self.free) < needed and self.storing:
            self.offloader.wait([next(iter(self.storing))])
            self.collect()
            self.counts["waits"] += 1
        if len(self.free) < needed:
            return False
        request.device_blocks = [self.free.popleft() for _ in range(needed)]
        return True

    def compute_next_block(self, request: Request) -> None:
        """The forward pass: what lies in a block depends on the block's content, and nothing else."""
        if request.ready < len(request.content):
            for layer in self.kv_caches:
                layer[request.device_blocks[request.ready]] = request.content[request.ready]
            request.ready += 1
            self.counts["blocks computed"] += 1

    def finish(self, request: Request) -> None:
        """Check the answer, and store all blocks: those that are stored already cost nothing."""
        for layer in self.kv_caches:
            for block, content in zip(request.device_blocks, request.content, strict=True):
                assert bool((layer[block] == content).all()), f"wrong bytes in a block of {request.name}"
        self.running.remove(request)
        job = self.offloader.submit_store(request.keys, request.device_blocks)
        self.storing[job] = request.device_blocks
        self.counts["requests"] += 1

    def busy(self) -> bool:
        """Whether there is anything left to step for."""
        return bool(self.waiting or self.running or self.offloader.has_pending_work())


def main(root: Path) -> Counter[str]:
    kv_caches = [torch.zeros(DEVICE_BLOCKS, 16, 64) for _ in range(4)]
    settings = {"host_bytes": "1MiB", "tiers": [{"type": "fs", "root_dir": root}], "model": "legacy-engine"}
    offloader = SyncOffloader(settings, kv_caches=kv_caches)
    engine = Engine(offloader, kv_caches)
    chance = random.Random(0)
    for turn in range(1, TURNS + 1):
        for conversation in chance.sample(range(CONVERSATIONS), CONVERSATIONS):
            content = [1000 * conversation + block for block in range(turn * BLOCKS_PER_TURN)]
            engine.waiting.append(Request(f"conversation {conversation}, turn {turn}", content))
        while engine.busy():
            engine.step()
    offloader.settle()
    print(offloader)
    offloader.shutdown()
    assert sorted(engine.free) == list(range(DEVICE_BLOCKS))
    for what in ("requests", "blocks computed", "blocks loaded"):
        print(f"{engine.counts[what]:4} {what}")
    return engine.counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory))
