"""A server whose clients are impatient: they hang up and time out, and nothing is lost but their own answer.

Run it as it stands: ``python examples/async_server.py``. It serves prompts on 127.0.0.1, one JSON object a line. For
each it loads the part of the prompt that some tier has, "computes" the rest and stores it. At the end it shows that
every device block came back, whatever the clients did.
"""

from __future__ import annotations

import asyncio
import json
import random
import tempfile
from collections import Counter
from pathlib import Path

import torch

from asyncoffload import Offloader, make_key

BLOCKS = 8  # of each prompt
SLOTS = 16  # prompts that fit the device at the same time


class Server:
    """Serves prompts over one offloader; a prompt is lent a range of device blocks while it is served."""

    def __init__(self, offloader: Offloader, kv_caches: list[torch.Tensor]) -> None:
        self.offloader = offloader
        self.kv_caches = kv_caches
        self.free: asyncio.Queue[range] = asyncio.Queue()
        for slot in range(SLOTS):
            self.free.put_nowait(range(slot * BLOCKS, (slot + 1) * BLOCKS))

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one client, unless he hangs up before."""
        prompt = json.loads(await reader.readline())
        answer = asyncio.create_task(self.answer(prompt))
        hung_up = asyncio.create_task(reader.read())
        try:
            await asyncio.wait([answer, hung_up], return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                writer.write(json.dumps(await answer).encode() + b"\n")
        finally:
            for task in (answer, hung_up):
                task.cancel()
            # The answer owns device blocks until it has really ended, so it is waited for, cancelled or not.
            await asyncio.wait([answer, hung_up])
            writer.close()

    async def answer(self, prompt: list[int]) -> dict[str, int]:
        """Make the KV cache of a prompt complete, and say how much of it had been computed before."""
        keys = [make_key(block.to_bytes(8, "big")) for block in prompt]
        content = torch.tensor(prompt, dtype=torch.float32)[:, None, None]
        blocks = await self.free.get()
        try:
            found = await self.offloader.lookup(keys)
            loaded = await self.offloader.load(keys[:found], blocks[:found])
            for layer in self.kv_caches:
                layer[blocks.start + loaded.blocks : blocks.stop] = content[loaded.blocks :]
            await self.offloader.store(keys, blocks)
            assert all(bool((layer[blocks.start : blocks.stop] == content).all()) for layer in self.kv_caches)
            return {"reused": loaded.blocks, "computed": len(keys) - loaded.blocks}
        finally:
            self.free.put_nowait(blocks)


async def client(port: int, prompt: list[int], patience: float | None) -> str:
    """Ask for one prompt; without patience hang up at once, with some of it wait so many seconds."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(json.dumps(prompt).encode() + b"\n")
        await writer.drain()
        if patience is None:
            return "hung up"
        async with asyncio.timeout(patience):
            answer = json.loads(await reader.readline())
        return "reused a prefix" if answer["reused"] else "computed all of it"
    except TimeoutError:
        return "timed out"
    finally:
        writer.close()


async def main(root: Path, clients: int = 200) -> Counter[str]:
    kv_caches = [torch.zeros(SLOTS * BLOCKS, 16, 64) for _ in range(4)]
    settings = {"host_bytes": "2MiB", "tiers": [{"type": "fs", "root_dir": root}], "model": "async-server"}
    async with Offloader(settings, kv_caches=kv_caches) as offloader:
        server = Server(offloader, kv_caches)
        async with await asyncio.start_server(server.connection, "127.0.0.1") as listening:
            port = listening.sockets[0].getsockname()[1]
            chance = random.Random(0)
            async with asyncio.TaskGroup() as group:
                asked = []
                for _ in range(clients):
                    conversation = 1000 * chance.randrange(20)
                    prompt = [conversation + n for n in range(BLOCKS)]
                    patience = chance.choice([None, 0.002, 30.0, 30.0])
                    asked.append(group.create_task(client(port, prompt, patience)))
            for _ in range(SLOTS):  # every range of device blocks comes back, also from clients who hung up
                await server.free.get()
        print(offloader)
    ends = Counter(task.result() for task in asked)
    for end, count in ends.most_common():
        print(f"{count:4} clients {end}")
    return ends


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(main(Path(directory)))
