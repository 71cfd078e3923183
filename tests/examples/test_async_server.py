"""The server serves, and outlives its clients' impatience."""

from __future__ import annotations

from pathlib import Path

from async_server import main


async def test_every_client_comes_to_an_end(tmp_path: Path) -> None:
    ends = await main(tmp_path, clients=80)
    assert ends.total() == 80
    assert ends["hung up"] > 0
    assert ends["reused a prefix"] > 0
