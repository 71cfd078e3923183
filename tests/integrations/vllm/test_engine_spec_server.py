"""The whole stack behind vLLM's HTTP server: many clients at once, with shared prefixes, some of which hang up."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integrations.vllm.model import BYTES_PER_BLOCK, TOKENS_PER_BLOCK
from tests.integrations.vllm.server import Crowd, Server, differences, serving
from tests.integrations.vllm.stack_engine import CHECKED, MOVED, stack

pytest.importorskip("vllm.v1.kv_offload.base", reason="vLLM is not installed")

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.filterwarnings("default"),  # vLLM's own are many
    pytest.mark.timeout(300),
]

CLIENTS, REQUESTS, HANG_UP_EVERY = 16, 6, 5
DEVICE_BLOCKS = 64
"""Not enough for all prompts that are answered at a time, so that there are evictions and preemptions."""


@contextlib.contextmanager
def resetting(server: Server) -> Iterator[None]:
    """Void host memory again and again, with loads and stores under way."""
    enough = threading.Event()

    def reset() -> None:
        while not enough.wait(0.1):
            server.reset_device(and_host=True)

    thread = threading.Thread(target=reset)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()


def test_every_block_that_a_crowd_loads_has_the_bytes_that_were_stored(model: Path, tmp_path: Path) -> None:
    crowd = (CLIENTS, REQUESTS, HANG_UP_EVERY)
    with serving(model, tmp_path / "plain.log", None, DEVICE_BLOCKS) as server:
        plain = Crowd(server, *crowd)
        server.reset_device()
        again = Crowd(server, *crowd)
    connector = stack(tmp_path / "kv", host_blocks=40)
    with serving(model, tmp_path / "stack.log", connector, DEVICE_BLOCKS) as server:
        offloaded = []
        for _ in range(2):
            offloaded.append(Crowd(server, *crowd))
            server.reset_device()
        with resetting(server):
            offloaded.append(Crowd(server, *crowd))
        compared, unknown = (server.metric(CHECKED, result=result) for result in ("compared", "unknown"))
        loaded_bytes = server.metric("vllm:kv_offload_load_bytes")
        hits = server.metric("vllm:external_prefix_cache_hits")
        promoted = server.metric(MOVED, event="promoted")
        assert server.metric("vllm:num_requests_running") == server.metric("vllm:num_requests_waiting") == 0
    left = CLIENTS * REQUESTS - -(-CLIENTS * REQUESTS // HANG_UP_EVERY)
    for run in (plain, again, *offloaded):
        assert not run.failures
        assert len(run.answers) == left
    assert unknown == 0
    assert loaded_bytes == compared * BYTES_PER_BLOCK
    assert 0 < hits <= compared * TOKENS_PER_BLOCK, "some of what was loaded was for clients that had left"
    assert promoted > 0
    # Which requests share a batch changes roundings, so that answers may differ between any two runs.
    by_chance = differences(plain, again) + 0.05
    assert max(differences(plain, run) for run in offloaded) <= by_chance
