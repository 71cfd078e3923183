"""A report as a table for a terminal."""

from __future__ import annotations

from collections.abc import Iterator

from rich.table import Table

from asyncoffload.cli.report import Distribution, Flow, Report
from asyncoffload.cli.results import facts, size_text


def table_of(report: Report) -> Table:
    """All figures of a report, two columns, in sections."""
    table = facts()
    for section in (_traffic, _flows, _times, _troubles):
        for name, text in section(report):
            table.add_row(name, text)
        table.add_section()
    return table


def _traffic(report: Report) -> Iterator[tuple[str, str]]:
    yield "set-up", ", ".join(f"{name} {value}" for name, value in report.set_up.items())
    yield "requests", f"{report.served:,} of {report.requests:,} in {report.seconds:.1f} s"
    yield "blocks", f"{report.blocks:,} of {size_text(report.block_bytes)}"
    verdict = f"[red]{report.wrong_bytes:,} bytes wrong[/red]" if report.wrong_bytes else "every byte right"
    yield "verified", f"{report.verified:,} blocks, {verdict}"
    whole = max(1, report.blocks)
    yield "hits", "  ".join(f"{tier} {count / whole:.1%}" for tier, count in report.hits.items())


def _flows(report: Report) -> Iterator[tuple[str, str]]:
    yield from ((way, _flow(flow)) for way, flow in report.flows.items())
    if report.moved_bytes:
        per_gb = report.cpu_seconds / (report.moved_bytes / 1e9)
        yield "processor", f"{report.cpu_seconds:.1f} s, {per_gb:.2f} s per GB moved, the model's work included"


def _times(report: Report) -> Iterator[tuple[str, str]]:
    yield "load latency", _milliseconds(report.load)
    yield "event-loop lag", _milliseconds(report.loop_lag)


def _troubles(report: Report) -> Iterator[tuple[str, str]]:
    tiers = report.account.tiers
    yield "evicted", f"{report.account.evicted:,} blocks, {report.account.lost:,} of them in no tier"
    shed = [f"CPU {report.shed:,}", *(f"{name} {tier.shed:,}" for name, tier in tiers.items())]
    yield "shed", "  ".join(shed)
    for name, tier in tiers.items():
        yield f"bad in {name}", f"{tier.corrupt:,} corrupt, {tier.failed:,} failed"
    if report.cut_short:
        yield "loads cut short", "  ".join(f"{reason} {count:,}" for reason, count in report.cut_short.items())


def _flow(flow: Flow) -> str:
    return f"{flow.blocks:>9,} blocks  {flow.nbytes / 1e9:7.2f} GB  {flow.bytes_per_second / 1e9:6.3f} GB/s"


def _milliseconds(times: Distribution) -> str:
    return (
        f"p50 {times.p50 * 1e3:.2f} ms  p99 {times.p99 * 1e3:.2f} ms  max {times.max * 1e3:.2f} ms  ({times.count:,})"
    )
