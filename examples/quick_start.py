"""The first five minutes: store blocks, find them again, load them back, also after a restart.

Run it as it stands: ``python examples/quick_start.py``. The KV cache is made of host memory, so any machine will do.
"""

from __future__ import annotations

import asyncio
import tempfile
from hashlib import blake2b
from pathlib import Path

import torch

from asyncoffload import Offloader, OffloadKey, RequestContext, make_key

BLOCKS_OF_PROMPT = 8


def keys_of(tokens: list[int], block_size: int = 16) -> list[OffloadKey]:
    """One key for each full block of a prompt. A hash covers the one before it: equal keys mean equal prefixes."""
    keys, digest = [], b""
    for start in range(0, len(tokens) - block_size + 1, block_size):
        digest = blake2b(digest + repr(tokens[start : start + block_size]).encode(), digest_size=16).digest()
        keys.append(make_key(digest))
    return keys


async def main(root: Path) -> None:
    # Four layers of 64 device blocks, 16 tokens each: what an engine allocates when it starts.
    kv_caches = [torch.rand(64, 16, 256) for _ in range(4)]
    settings = {"host_bytes": "16MiB", "tiers": [{"type": "fs", "root_dir": root}], "model": "quick-start"}
    keys = keys_of(list(range(16 * BLOCKS_OF_PROMPT)))
    computed = [layer[:BLOCKS_OF_PROMPT].clone() for layer in kv_caches]

    async with Offloader(settings, kv_caches=kv_caches) as offloader:
        stored = await offloader.store(keys, range(BLOCKS_OF_PROMPT))
        print(f"stored {stored.stored} blocks; their device blocks may be overwritten now")
        for layer in kv_caches:
            layer.zero_()
    # Leaving the block wrote everything to disk. The next process starts with an empty host memory:

    async with Offloader(settings, kv_caches=kv_caches) as offloader:
        somewhere_else = range(20, 20 + BLOCKS_OF_PROMPT)
        context = RequestContext(request_id="hello again")
        found = await offloader.lookup(keys, context)
        loaded = await offloader.load(keys[:found], somewhere_else[:found], context)
        print(f"found {found} blocks, loaded {loaded.blocks}, by tier: {dict(loaded.by_tier)}")

    for layer, before in zip(kv_caches, computed, strict=True):
        assert torch.equal(layer[20 : 20 + BLOCKS_OF_PROMPT], before)
    print("every byte came back")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
