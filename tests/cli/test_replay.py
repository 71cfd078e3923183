"""A run of traffic: every byte is looked at, and what was seen survives an interruption."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest

from asyncoffload.cli.generated import generated_traffic
from asyncoffload.cli.replay import Replay, ReplayOptions
from asyncoffload.cli.traffic import Request
from asyncoffload.config import OffloaderSettings
from asyncoffload.errors import InvalidArgument

BLOCK_BYTES = 4096


def _options(root: Path, **options: object) -> ReplayOptions:
    settings = OffloaderSettings.parse({"host_bytes": "1MiB", "tiers": [{"type": "fs", "root_dir": root}]})
    return ReplayOptions(**{"settings": settings, "block_bytes": BLOCK_BYTES, "device_blocks": 512} | options)  # type: ignore[arg-type]


def _requests(*blocks: Sequence[int]) -> list[Request]:
    return [Request(float(n), tuple(ids), 512 * len(ids)) for n, ids in enumerate(blocks)]


async def test_traffic_with_many_requests_in_flight(tmp_path: Path) -> None:
    requests = generated_traffic(60)
    replay = Replay(requests, _options(tmp_path))
    finished = []
    await replay.run(progress=lambda: finished.append(len(replay.served)))
    report = replay.report({})
    assert finished == list(range(1, 61))
    assert (report.served, report.requests) == (60, 60)
    assert report.blocks == sum(len(request.blocks) for request in requests)
    assert sum(report.hits.values()) == report.blocks
    assert report.verified == report.hits["CPU"] + report.hits["fs"] > 0
    assert report.wrong_bytes == 0
    assert report.loop_lag.count > 0


async def test_a_block_of_wrong_bytes_is_seen(tmp_path: Path) -> None:
    replay = Replay(_requests([1, 2, 3], [1, 2, 3]), _options(tmp_path, concurrency=1))
    write = replay._contents.write

    def write_wrong(keys: Sequence[bytes], blocks: Sequence[int]) -> None:
        write(keys, blocks)  # type: ignore[arg-type]
        if keys:
            replay._layers[2][blocks[1], 7] ^= 0xFF

    replay._contents.write = write_wrong  # type: ignore[method-assign]
    await replay.run()
    assert [served.wrong_bytes for served in replay.served] == [0, 1]


async def test_a_request_without_a_full_block_is_served(tmp_path: Path) -> None:
    replay = Replay(_requests([], [1]), _options(tmp_path))
    await replay.run()
    assert sorted(served.blocks for served in replay.served) == [0, 1]


async def test_a_cancelled_run_keeps_what_it_has_seen(tmp_path: Path) -> None:
    never = Request(1e9, (1, 2), 1024)
    replay = Replay([*_requests([1, 2]), never], _options(tmp_path, speed=1.0))
    served = asyncio.Event()
    run = asyncio.create_task(replay.run(progress=served.set))
    await served.wait()
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run
    report = replay.report({})
    assert (report.served, report.requests) == (1, 2)
    assert report.flows["device -> CPU"].blocks == 2


async def test_a_deadline_in_the_past_means_to_compute_everything_on_disk(tmp_path: Path) -> None:
    first = Replay(_requests([1, 2, 3]), _options(tmp_path))
    await first.run()
    late = Replay(_requests([1, 2, 3]), _options(tmp_path, deadline=0.0))
    await late.run()
    assert late.report({}).hits == {"CPU": 0, "fs": 0, "computed": 3}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block_bytes": 100}, "a block of 100 bytes is not a positive multiple of 32"),
        ({"block_bytes": 0}, "a block of 0 bytes is not a positive multiple"),
        ({"device_blocks": 2}, "the longest request has 3 blocks, the device 2"),
    ],
)
def test_what_cannot_run_is_refused(tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidArgument, match=message):
        Replay(_requests([1, 2, 3]), _options(tmp_path, **options))


@pytest.mark.parametrize("dirty_victims", ["drop", "refuse"])
async def test_under_demotion_every_byte_is_right_and_less_is_written(tmp_path: Path, dirty_victims: str) -> None:
    reports, written = [], []
    for write_policy in ("write_through", "demote"):
        settings = OffloaderSettings.parse(
            {
                "host_bytes": "1MiB",
                "tiers": [{"type": "fs", "root_dir": tmp_path / write_policy}],
                "write_policy": write_policy,
                "dirty_victims": dirty_victims,
            }
        )
        replay = Replay(generated_traffic(60), _options(tmp_path, settings=settings, concurrency=1, settle=True))
        await replay.run()
        assert replay.stats is not None
        assert replay.stats.primary.lost == 0
        reports.append(replay.report({}))
        written.append(replay.stats.tiers["fs"]["stored"])
    through, demoted = reports
    assert through.wrong_bytes == demoted.wrong_bytes == 0
    assert demoted.hits == through.hits
    assert 0 < written[1] < written[0]
