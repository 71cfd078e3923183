"""The example is scraped, and sees what it did."""

from __future__ import annotations

from pathlib import Path

from with_metrics import main


async def test_it_runs(tmp_path: Path) -> None:
    seen = set(await main(tmp_path))
    assert "my_server_requests_total 4.0" in seen
    assert 'asyncoffload_load_hit_blocks_total{tier="fs"} 64.0' in seen
    assert 'asyncoffload_load_miss_blocks_total{reason="missing"} 4.0' in seen
