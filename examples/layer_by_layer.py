"""A model that begins with its first layer while the others are still on their way.

Run it as it stands: ``python examples/layer_by_layer.py``. A prompt's KV blocks come back from host memory, layer by
layer. Each layer of the model attends to its own part as soon as that is there; the host waits with
``await arrival.layer(n)``. On an accelerator the compute stream waits instead, with ``arrival.wait(n, stream)``, and
the host runs ahead.
"""

from __future__ import annotations

import asyncio
import time

import torch

from asyncoffload import LayerArrival, Offloader, OffloadKey, make_key

LAYERS, BLOCKS, TOKENS, WIDTH = 16, 48, 16, 2048


def attend(layer: torch.Tensor, blocks: range) -> float:
    """What stands for a layer's attention: it reads all of the layer's part of the prompt."""
    return float(layer[blocks.start : blocks.stop].square().mean())


async def one_after_the_other(offloader: Offloader, caches: list[torch.Tensor], keys: list[OffloadKey]) -> list[float]:
    """Load everything, then compute."""
    loaded = await offloader.load(keys, range(BLOCKS))
    return [attend(cache, range(loaded.blocks)) for cache in caches]


async def side_by_side(offloader: Offloader, caches: list[torch.Tensor], keys: list[OffloadKey]) -> list[float]:
    """Compute each layer when it is there; a thread does it, as an accelerator would."""
    arrival, answers = LayerArrival(), []
    async with asyncio.TaskGroup() as group:
        load = group.create_task(offloader.load(keys, range(BLOCKS), arrival=arrival))
        coming = await arrival.under_way()
        for number, cache in enumerate(caches):
            await arrival.layer(number)
            answers.append(await asyncio.to_thread(attend, cache, range(coming.blocks)))
    assert load.result() == coming
    return answers


async def main() -> dict[str, list[float]]:
    """Compute the same prompt in both ways; returns the answers of both."""
    caches = [torch.rand(BLOCKS, TOKENS, WIDTH) for _ in range(LAYERS)]
    keys = [make_key(number.to_bytes(8, "big")) for number in range(BLOCKS)]
    nbytes = sum(cache.nbytes for cache in caches)
    answers: dict[str, list[float]] = {}
    async with Offloader({"host_bytes": 2 * nbytes}, kv_caches=caches) as offloader:
        await offloader.store(keys, range(BLOCKS))
        for ways in (one_after_the_other, side_by_side):
            for cache in caches:
                cache.zero_()
            began = time.perf_counter()
            answers[ways.__name__] = await ways(offloader, caches, keys)
            took = time.perf_counter() - began
            print(f"{ways.__name__:20} {nbytes >> 20} MiB in {LAYERS} layers: {took * 1000:.0f} ms")
    return answers


if __name__ == "__main__":
    asyncio.run(main())
