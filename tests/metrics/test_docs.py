"""The page about metrics says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

from asyncoffload import Offloader
from asyncoffload.metrics.catalogue import METRICS, PREFIX, TIER_MISSES, TIER_SHED, TIER_STAT, Metric
from asyncoffload.metrics.readings import OWN_FIGURES, REFUSED_AS, SHED_BY
from asyncoffload.types import Status
from tests.offloader.rig import Device, keys_of, only_in_tiers, settings

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
ROW = re.compile(rf"^\| `({PREFIX}\w+)` \| .*\|$", re.MULTILINE)


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    return f"| `{metric.name}` | {metric.kind} | {labels}{' ' if labels else ''}| {metric.help} |"


def _names() -> dict[str, str]:
    """The names that a tier's figures may have, and the metric that each becomes."""
    _, _, section = PAGE.read_text().partition("## The names in")
    names = {}
    for row in re.findall(r"^\| (`.*) \|$", section, re.MULTILINE):
        cells = row.split(" | ")
        names.update(dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[-1].strip("`")))
    return names


def _metric_of(name: str) -> Metric:
    if name.startswith(REFUSED_AS):
        return TIER_MISSES
    return TIER_SHED if name.startswith(SHED_BY) else OWN_FIGURES.get(name, TIER_STAT)


def test_each_metric_has_its_row() -> None:
    written = [match[0] for match in ROW.finditer(PAGE.read_text())]
    assert written == [_row(metric) for metric in METRICS]


def test_alerts_and_graphs_name_metrics_and_labels_that_exist() -> None:
    series = {
        metric.name + part: metric
        for metric in METRICS
        for part in (("", "_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",))
    }
    used = re.findall(rf"({PREFIX}\w+)(?:\{{([^}}]*)\}})?", PAGE.read_text())
    assert len(used) > len(METRICS)
    for name, selector in used:
        assert name in series, name
        for label in re.findall(r"(\w+)(?:=|!=|=~|,|$)", re.sub(r'"[^"]*"', "", selector)):
            assert label in series[name].labels, f"{name} has no label {label}"


def test_rates_are_of_what_grows() -> None:
    kinds = {metric.name: metric.kind for metric in METRICS}
    for name in re.findall(rf"(?:rate|increase)\(({PREFIX}\w+)", PAGE.read_text()):
        assert kinds[name.removesuffix("_bucket")] in ("counter", "histogram")


async def test_each_figure_of_a_tier_has_its_row(tmp_path: Path) -> None:
    documented = _names()
    assert {name: _metric_of(name).name for name in documented} == documented
    device = Device(16)
    tiers = [
        {"type": "fs", "root_dir": tmp_path, "quota": "1MiB", "min_free": 1, "durability": "fsync"},
        {"type": "memory"},
    ]
    async with Offloader(settings(device, 8, tiers=tiers), kv_caches=device.kv_caches) as offloader:
        await only_in_tiers(offloader, device, keys_of("figures", 8))
        await offloader.load(keys_of("figures", 9), range(9))
        figures = offloader.stats().tiers
    status = re.compile(f"_({'|'.join(status.value for status in Status)})$")
    assert {status.sub("_<status>", name) for own in figures.values() for name in own} == documented.keys()
