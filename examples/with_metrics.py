"""A stack that Prometheus watches, beside the endpoint of a server that exists already, and what it sees.

Run it as it stands: ``python examples/with_metrics.py``. It needs ``pip install 'asyncoffload[metrics]'``.
"""

from __future__ import annotations

import asyncio
import tempfile
from pathlib import Path
from urllib.request import urlopen

import torch
from prometheus_client import CollectorRegistry, Counter

from asyncoffload import Offloader, make_key
from asyncoffload.metrics import serve_metrics

BLOCKS = 64
SHOWN = ("my_server_requests_total", "load_hit_blocks_total", "load_miss_blocks_total", "tier_bytes_total")


def scrape(url: str) -> list[str]:
    """What Prometheus does every few seconds: the samples above 0 of some metrics."""
    with urlopen(url) as answer:
        lines = answer.read().decode().splitlines()
    shown = [line for line in lines if line.removeprefix("asyncoffload_").startswith(SHOWN)]
    return [line for line in shown if not line.endswith(" 0.0")]


async def main(root: Path) -> list[str]:
    kv_caches = [torch.rand(BLOCKS, 16, 64) for _ in range(4)]
    settings = {"host_bytes": "256KiB", "tiers": [{"type": "fs", "root_dir": root}], "model": "with-metrics"}
    registry = CollectorRegistry()  # what else this process measures is served by the same endpoint
    requests = Counter("my_server_requests", "Requests that were answered.", registry=registry)
    async with (
        Offloader(settings, kv_caches=kv_caches) as offloader,
        serve_metrics(offloader, port=0, registry=registry) as server,  # a fixed port, 9400 by default, elsewhere
    ):
        keys = [make_key(number.to_bytes(8, "big")) for number in range(BLOCKS)]
        for start in range(0, BLOCKS, 16):  # more than host memory holds
            await offloader.store(keys[start : start + 16], range(start, start + 16))
            await offloader.settle()
        for start in range(0, BLOCKS, 16):
            await offloader.load([*keys[start : start + 16], make_key(b"never stored")], range(17))
            requests.inc()
        print(f"scraping {server.url}")
        seen = await asyncio.get_running_loop().run_in_executor(None, scrape, server.url)
    print(*seen, sep="\n")
    return seen


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
