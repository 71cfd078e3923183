"""Traffic made from a seed: people who chat, and agents that work.

Two kinds of session share one clock, as they share one serving cluster:

- *chat*: one of a few system prompts, then turns of a question and an answer with a person's pauses between them.
  Most conversations are short, so most of their blocks are never seen again.
- *agent*: one long prompt of instructions and tools that all agents share, then many quick steps, each of which appends
  the output of a tool. Now and then a sub-agent starts from a part of the context and goes its own way.

The proportions follow what public traces of both kinds show: seconds between the steps of an agent and long shared
prefixes; minutes between the turns of a chat and little reuse across sessions.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from asyncoffload.cli.traffic import TOKENS_PER_BLOCK, Request
from asyncoffload.errors import InvalidArgument

AGENT_SHARE = 0.08
SECONDS_BETWEEN_SESSIONS = 1.5
SYSTEM_PROMPT_TOKENS = (700, 1_100, 2_600)
AGENT_PROMPT_TOKENS = 13_000
LONGEST_CONTEXT_TOKENS = 128 * TOKENS_PER_BLOCK


def generated_traffic(requests: int, *, seed: int = 0) -> list[Request]:
    """As many requests in order of arrival, none with more than 128 blocks; the same seed gives the same requests.

    Raises:
        InvalidArgument: ``requests`` is less than 1.
    """
    if requests < 1:
        raise InvalidArgument(f"at least one request is needed, got {requests}")
    rng = random.Random(seed)
    new_id = itertools.count().__next__
    prompts = [_Context(new_id).grown(tokens) for tokens in SYSTEM_PROMPT_TOKENS]
    agent_prompt = _Context(new_id).grown(AGENT_PROMPT_TOKENS)
    made: list[Request] = []
    start = 0.0
    # Twice as many as asked for: what is cut off behind the last arrival are the later turns of open sessions.
    while len(made) < 2 * requests:
        start += rng.expovariate(1 / SECONDS_BETWEEN_SESSIONS)
        if rng.random() < AGENT_SHARE:
            made += _agent(rng, start, agent_prompt.fork())
        else:
            made += _chat(rng, start, rng.choice(prompts).fork())
    return sorted(made, key=lambda request: request.arrival)[:requests]


@dataclass(slots=True)
class _Context:
    """A prompt that grows, and the ids of its full blocks."""

    new_id: Callable[[], int]
    tokens: int = 0
    blocks: list[int] = field(default_factory=list)

    def grown(self, tokens: float) -> _Context:
        self.tokens += int(tokens)
        while len(self.blocks) < self.tokens // TOKENS_PER_BLOCK:
            self.blocks.append(self.new_id())
        return self

    def fork(self, share: float = 1.0) -> _Context:
        tokens = int(self.tokens * share)
        return _Context(self.new_id, tokens, self.blocks[: tokens // TOKENS_PER_BLOCK])

    def ask(self, arrival: float, answer: float) -> Request:
        request = Request(arrival, tuple(self.blocks), self.tokens, int(answer))
        self.grown(answer)
        return request


def _chat(rng: random.Random, now: float, context: _Context) -> Iterator[Request]:
    for _ in range(1 + int(rng.expovariate(1 / 3))):
        context.grown(rng.lognormvariate(7.0, 1.1))
        if context.tokens > LONGEST_CONTEXT_TOKENS:
            return
        yield context.ask(now, answer=rng.lognormvariate(5.7, 0.6))
        now += 10 + rng.expovariate(1 / 60)


def _agent(rng: random.Random, now: float, context: _Context) -> Iterator[Request]:
    for _ in range(4 + int(rng.expovariate(1 / 20))):
        context.grown(rng.lognormvariate(6.6, 1.1))
        if context.tokens > LONGEST_CONTEXT_TOKENS:
            return
        yield context.ask(now, answer=rng.lognormvariate(5.0, 0.7))
        if rng.random() < 0.05:
            yield from _agent(rng, now, context.fork(rng.uniform(0.3, 1.0)))
        now += 1 + rng.expovariate(1 / 6)
