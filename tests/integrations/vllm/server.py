"""vLLM's HTTP server as a process, and clients that all talk to it at once, some of which hang up."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.integrations.vllm.engine import ANSWER_TOKENS, ENVIRONMENT, prompt
from tests.integrations.vllm.model import BYTES_PER_BLOCK, TOKENS_PER_BLOCK

START_SECONDS = 120.0
REQUEST_SECONDS = 120.0

SHARED_TOKENS, OWN_TOKENS = 6 * TOKENS_PER_BLOCK, 3 * TOKENS_PER_BLOCK + 12
"""Tokens of a prompt that other clients have as well, and of the rest of it."""
FAMILIES = 5
"""How many beginnings of prompts there are."""


class Server:
    """A running server."""

    def __init__(self, port: int, process: subprocess.Popen[bytes]) -> None:
        self.port = port
        self.process = process

    def get(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=10) as answer:
            text: str = answer.read().decode()
            return text

    def metric(self, name: str, **labels: str) -> float:
        """A counter's or gauge's value, summed over what the labels leave open."""
        found = re.findall(rf"^{re.escape(name)}(?:_total)?\{{([^}}]*)\}} (\S+)$", self.get("/metrics"), re.MULTILINE)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for text, value in found if all(pair in text for pair in wanted))

    def reset_device(self, *, and_host: bool = False) -> None:
        """Empty the device's cache of prefixes, if nobody uses it; and all of host memory, whoever uses it."""
        what = "?reset_external=true" if and_host else ""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/reset_prefix_cache{what}", method="POST")
        urllib.request.urlopen(request, timeout=30).close()


@contextlib.contextmanager
def serving(
    model: Path, log: Path, connector: Mapping[str, Any] | None, device_blocks: int, *more: str
) -> Iterator[Server]:
    """A server, with more arguments if given, for the length of a block, which it has to survive."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--enforce-eager", "--dtype", "bfloat16", "--max-model-len", "512"]
    command += ["--max-num-batched-tokens", "512", "--block-size", str(TOKENS_PER_BLOCK), "--max-num-seqs", "8", *more]
    command += ["--kv-cache-memory-bytes", str(device_blocks * BYTES_PER_BLOCK), "--seed", "0"]
    if connector is not None:
        transfer = {"kv_connector": "OffloadingConnector", "kv_role": "kv_both"}
        command += ["--kv-transfer-config", json.dumps({**transfer, "kv_connector_extra_config": dict(connector)})]
    environment = {**os.environ, **ENVIRONMENT, "VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
    server = Server(port, process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError):
                server.get("/health")
                break
            assert process.poll() is None, log.read_text()[-4000:]
            assert time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(0.2)
        yield server
        assert process.poll() is None, log.read_text()[-4000:]
    finally:
        process.terminate()
        process.wait(30)


class Crowd:
    """Clients that each send a row of requests, one after another, all of them at once.

    Args:
        clients, requests: how many clients, and how many requests each.
        hang_up_every: of all requests, each so many-th is left in the middle of its answer.

    Attributes:
        answers: of each request that was not left, the text.
        failures: what went wrong.
    """

    def __init__(self, server: Server, clients: int, requests: int, hang_up_every: int | None) -> None:
        self._server = server
        self._requests = requests
        self._hang_up_every = hang_up_every
        self.answers: dict[tuple[int, int], str] = {}
        self.failures: list[str] = []
        threads = [threading.Thread(target=self._client, args=(number,)) for number in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _client(self, client: int) -> None:
        for number in range(self._requests):
            try:
                serial = client * self._requests + number
                hang_up = self._hang_up_every is not None and serial % self._hang_up_every == 0
                self._ask(client, number, hang_up)
            except Exception as error:
                self.failures.append(f"client {client}, request {number}: {error!r}")

    def _ask(self, client: int, number: int, hang_up: bool) -> None:
        tokens = prompt((client + number) % FAMILIES, SHARED_TOKENS) + prompt(1000 + client * 100 + number, OWN_TOKENS)
        body = {
            "prompt": tokens,
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
        }
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=REQUEST_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            if hang_up and number % 2:
                return  # before the first byte of an answer
            answer = connection.getresponse()
            if answer.status != 200:
                raise RuntimeError(f"status {answer.status}: {answer.read()[:500]!r}")
            received: list[int] = []
            for line in answer:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:
                    raise RuntimeError(str(event))
                received += event["choices"][0]["token_ids"] or ()
                if hang_up:
                    return
        if len(received) != ANSWER_TOKENS:
            raise RuntimeError(f"{len(received)} tokens")
        self.answers[client, number] = str(received)


def differences(first: Crowd, second: Crowd) -> float:
    """The share of answers that both got, and that differ."""
    common = first.answers.keys() & second.answers.keys()
    return sum(first.answers[key] != second.answers[key] for key in common) / len(common)
