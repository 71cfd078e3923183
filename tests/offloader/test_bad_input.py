"""What is refused, with messages that name the value and the remedy, and before anything has moved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from asyncoffload import ANONYMOUS, ConfigError, InvalidArgument, Offloader, RequestContext
from asyncoffload.keys import make_key
from tests.offloader.rig import Device, at_rest, keys_of, settings

KEYS = keys_of("bad", 4)
ROOM = {"host_bytes": "1MiB"}
LAYER = torch.zeros(8, 16)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"host_bytes": 31}, "host_bytes is 31, which does not hold one block of 64 bytes: raise it"),
        (ROOM | {"block_bytes": 65}, "block_bytes is 65, but the tensors make blocks of 64 bytes: correct it"),
        (ROOM | {"policy": "fifo"}, "policy 'fifo' is unknown: choose one of lru, arc"),
        (ROOM | {"host_byte": 1}, "'host_byte': did you mean 'host_bytes'"),
        ({"host_bytes": "8 gigs"}, "'8 gigs' is not a size"),
        ({"host_bytes": 0}, "host_bytes = 0"),
        (ROOM | {"slice_blocks": -1}, "slice_blocks = -1"),
        ({}, "host_bytes is missing"),
        (ROOM | {"tiers": [{"type": "memory"}, {"type": "memory"}]}, "'memory' is taken"),
    ],
)
def test_settings(plan: Mapping[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        Offloader(plan, kv_caches=[LAYER])
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("kv_caches", "message"),
    [
        ([], "kv_caches has groups of [] layers: pass the layer tensors"),
        ([[LAYER], []], "groups of [1, 0]"),
        (LAYER, "kv_caches is a Tensor: pass the layer tensors"),
        ([LAYER, "layer"], "layer 1 of group 0 is str"),
        ([torch.zeros(())], "layer 0 of group 0 is ()"),
        ([torch.zeros(0, 16)], "layer 0 of group 0 is (0, 16)"),
        ([LAYER, torch.zeros(7, 16)], "has 7 blocks, the first one has 8"),
        ([torch.zeros(16, 8).T], "not contiguous"),
        ([torch.zeros(8, 16, device="meta")], "lie on meta"),
    ],
)
def test_tensors(kv_caches: Any, message: str) -> None:
    with pytest.raises((ConfigError, InvalidArgument)) as refusal:
        Offloader(ROOM, kv_caches=kv_caches)
    assert message in str(refusal.value)


BAD_REQUESTS: list[tuple[Sequence[Any], Sequence[Any], str]] = [
    (KEYS, range(3), "4 keys need 4 device blocks (1 each), got 3"),
    (KEYS, range(8), "4 keys need 4 device blocks (1 each), got 8"),
    ([KEYS[0], KEYS[0]], range(2), f"key {KEYS[0].hex()} appears twice in one call"),
    (["text"], [0], "key 0 is str 'text', not bytes: build keys with keys.make_key"),
    ([b"abc"], [0], "key 616263 has 3 bytes"),
    ([make_key(b"x", 7)], [0], "belongs to KV-cache group 7, but there are 2, counted from 0"),
    (KEYS, [0, 1, 2, 16], "device block 16 of key"),
    (KEYS, [0, -1, 2, 3], "device block -1 of key"),
    (KEYS, [0, 1.5, 2, 3], "device blocks are a flat list of integers"),
    (KEYS, [[0], [1], [2], [3]], "device blocks are a flat list of integers"),
    (KEYS, ["0", "1", "2", "3"], "device blocks are a flat list of integers"),
]


@pytest.mark.parametrize(("keys", "blocks", "message"), BAD_REQUESTS)
@pytest.mark.parametrize("verb", ["load", "store"])
async def test_requests(verb: str, keys: Sequence[Any], blocks: Sequence[Any], message: str) -> None:
    device = Device(16, groups=(1, 1))
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        device.poison()
        with pytest.raises(InvalidArgument) as refusal:
            await getattr(offloader, verb)(keys, blocks)
        assert message in str(refusal.value)
        assert device.untouched(range(16))
        assert offloader.stats().primary.free == 8
        assert await at_rest(offloader)


async def test_a_device_block_is_the_destination_of_one_block_only() -> None:
    device = Device(16)
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        await offloader.store(KEYS, [5, 5, 5, 5])
        device.poison()
        with pytest.raises(InvalidArgument, match="device block 5 of group 0 is a destination twice"):
            await offloader.load(KEYS, [4, 5, 6, 5])
        assert device.untouched(range(16))


async def test_the_same_number_in_two_groups_is_two_device_blocks() -> None:
    device = Device(4, groups=(1, 1))
    keys = keys_of("two groups", 8, 2)
    blocks = [0, 0, 1, 1, 2, 2, 3, 3]
    async with Offloader(settings(device, 8), kv_caches=device.kv_caches) as offloader:
        device.fill(keys, blocks)
        await offloader.store(keys, blocks)
        device.poison()
        assert (await offloader.load(keys, blocks)).blocks == 8
        assert device.holds(keys, blocks)


@pytest.mark.parametrize("bad", [["text"], [KEYS[0], KEYS[0]], [make_key(b"x", 7)]])
async def test_lookups(bad: Sequence[Any]) -> None:
    device = Device(4, groups=(1, 1))
    async with Offloader(settings(device, 4), kv_caches=device.kv_caches) as offloader:
        with pytest.raises(InvalidArgument):
            await offloader.lookup(bad)


async def test_a_tier_that_does_not_exist() -> None:
    device = Device(4)
    ctx = RequestContext(tiers=frozenset({"tape"}))
    plan = settings(device, 4, tiers=[{"type": "memory"}])
    async with Offloader(plan, kv_caches=device.kv_caches) as offloader:
        with pytest.raises(InvalidArgument, match="no tier tape; there are memory"):
            await offloader.load(KEYS, range(4), ctx)
        assert await at_rest(offloader)


async def test_two_tiers_of_one_name() -> None:
    from asyncoffload import ExampleSecondaryTierManager

    device = Device(4)
    with pytest.raises(ConfigError, match="a name of its own"):
        Offloader(
            settings(device, 4, tiers=[{"type": "memory"}]),
            kv_caches=device.kv_caches,
            tiers=[ExampleSecondaryTierManager],
        )


@pytest.mark.parametrize("deadline", [float("nan"), float("inf"), float("-inf"), 10**400, "soon"])
def test_a_deadline_that_is_no_time_is_refused(deadline: float) -> None:
    with pytest.raises(InvalidArgument, match=r"time\.monotonic"):
        RequestContext(deadline=deadline)
    with pytest.raises(InvalidArgument, match="None for no limit"):
        replace(ANONYMOUS, deadline=deadline)
