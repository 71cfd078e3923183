"""A vLLM engine on the CPU that tests can ask, reset, evict from, and look into."""

from __future__ import annotations

import contextlib
import gc
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integrations.vllm.model import BYTES_PER_BLOCK, TOKENS_PER_BLOCK

SPEC_MODULE = "tests.integrations.vllm.cpu_tiering_spec"
PROMPT_TOKENS, CACHED_TOKENS, ANSWER_TOKENS = 300, 288, 24
"""A prompt, its whole blocks, and the length of an answer, in tokens."""
DEVICE_BLOCKS = 32

ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass(frozen=True)
class Answer:
    """What an engine made of a prompt.

    Attributes:
        tokens: the generated tokens.
        logprobs: of each generated token, its log-probability.
        cached: tokens of the prompt that were not computed.
    """

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    cached: int

    def same_text(self, other: Answer) -> bool:
        """Tokens and log-probabilities are identical, wherever the prompt's blocks came from."""
        return (self.tokens, self.logprobs) == (other.tokens, other.logprobs)


Expected = Callable[[int], Answer]
"""What an engine without offloading answers to the prompt of a number."""


def prompt(number: int, tokens: int = PROMPT_TOKENS) -> list[int]:
    """A prompt that shares no block with those of other numbers."""
    letters = random.Random(number)
    return [letters.randrange(4, 250) for _ in range(tokens)]


class Engine:
    """One engine.

    Args:
        model: the directory of its model.
        connector: ``kv_connector_extra_config``; None: nothing is offloaded.
        processes: 1, where the test can look at every part; or 3, as in production.
        settings: further arguments of ``vllm.LLM``.
    """

    def __init__(
        self, model: Path, connector: Mapping[str, Any] | None = None, *, processes: int = 1, **settings: Any
    ) -> None:
        n_ranks = settings.get("tensor_parallel_size", 1)
        os.environ.update(
            ENVIRONMENT,
            VLLM_ENABLE_V1_MULTIPROCESSING=str(int(processes > 1)),
            VLLM_CPU_OMP_THREADS_BIND="|".join(map(str, range(n_ranks))) if n_ranks > 1 else "auto",
        )
        from vllm import LLM

        if connector is not None:
            settings["kv_transfer_config"] = {
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "kv_connector_extra_config": dict(connector),
            }
        self._in_process = processes == 1
        self._next_filler = 1_000_000
        self._device_blocks = DEVICE_BLOCKS * n_ranks  # every rank has the same memory, and part of each block
        usual: dict[str, Any] = {
            "enforce_eager": True,
            "dtype": "bfloat16",
            "max_model_len": 512,
            "max_num_batched_tokens": 512,
            "max_num_seqs": 2,
            "block_size": TOKENS_PER_BLOCK,
            "kv_cache_memory_bytes": DEVICE_BLOCKS * BYTES_PER_BLOCK,
            "seed": 0,
            "disable_log_stats": False,
        }
        self.llm = LLM(model=str(model), **{**usual, **settings})

    def ask(self, *numbers: int) -> list[Answer]:
        """Answer prompts, one after another, so that batching does not change the arithmetic."""
        return [self.complete([prompt(number)])[0] for number in numbers]

    def complete(self, prompts: Sequence[Sequence[int]], answer_tokens: int = ANSWER_TOKENS) -> list[Answer]:
        """Answer prompts, given as tokens, all at once."""
        from vllm import SamplingParams

        sampling = SamplingParams(temperature=0, max_tokens=answer_tokens, logprobs=0, ignore_eos=True)
        outputs = self.llm.generate([{"prompt_token_ids": list(p)} for p in prompts], sampling, use_tqdm=False)
        return [
            Answer(
                tuple(output.outputs[0].token_ids),
                tuple(step[token].logprob for step, token in _chosen(output.outputs[0])),
                output.num_cached_tokens,
            )
            for output in outputs
        ]

    def settle(self) -> None:
        """Let the engine finish what it does behind the requests: stores, cascades, promotions."""
        if self._in_process:
            scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
            while scheduler.has_requests():
                self.llm.llm_engine.step()
            return
        self._next_filler += 1
        for _ in range(4):
            self.complete([prompt(self._next_filler, 8)], 2)

    def forget_device(self) -> None:
        """Empty the device's cache of prefixes; what was offloaded stays."""
        self.settle()
        assert self.llm.reset_prefix_cache(), "the engine still uses blocks"

    def evict_device(self, blocks: int | None = None) -> None:
        """Push everything out of the device's cache, by prompts that nobody has asked before."""
        per_prompt = PROMPT_TOKENS // TOKENS_PER_BLOCK
        for _ in range(-(-(blocks or self._device_blocks) // per_prompt)):
            self._next_filler += 1
            self.complete([prompt(self._next_filler)], 1)
        self.settle()

    def metric(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge, summed over what the labels leave open."""
        return sum(
            float(metric.value)
            for metric in self.llm.get_metrics()
            if metric.name == name and labels.items() <= metric.labels.items()
        )

    @property
    def external_hits(self) -> float:
        """Tokens that vLLM counts as loaded through the connector."""
        return self.metric("vllm:external_prefix_cache_hits")

    @property
    def manager(self) -> Any:
        """The offloading manager of the scheduler; with one process only."""
        core = self.llm.llm_engine.engine_core.engine_core
        return core.scheduler.connector.connector_scheduler.manager

    @property
    def worker(self) -> Any:
        """The offloading worker; with one process only, and of the engine that was started last."""
        from vllm.distributed.kv_transfer import get_kv_transfer_group

        return get_kv_transfer_group().connector_worker.worker

    def published_events(self) -> list[Any]:
        """The KV events that are published from now on, as they come; with one process only."""
        published: list[Any] = []
        scheduler = self.llm.llm_engine.engine_core.engine_core.scheduler
        scheduler.kv_event_publisher.publish = lambda batch: published.extend(batch.events)
        return published

    def close(self) -> None:
        """Stop the engine and all of its processes."""
        self.llm.llm_engine.engine_core.shutdown()
        del self.llm
        gc.collect()


@contextlib.contextmanager
def running(model: Path, connector: Mapping[str, Any] | None = None, **settings: Any) -> Iterator[Engine]:
    """An engine for the length of a block."""
    engine = Engine(model, connector, **settings)
    try:
        yield engine
    finally:
        engine.close()


def tiering(*tiers: Mapping[str, Any], host_blocks: int = 256, **keys: Any) -> dict[str, Any]:
    """The connector's configuration for vLLM's own tiering with these secondary tiers."""
    return {
        "spec_name": "CPUTieringSpec",
        "spec_module_path": SPEC_MODULE,
        "cpu_bytes_to_use": host_blocks * BYTES_PER_BLOCK,
        "secondary_tiers": [dict(tier) for tier in tiers],
        **keys,
    }


def _chosen(output: Any) -> list[tuple[Any, int]]:
    return list(zip(output.logprobs, output.token_ids, strict=True))
