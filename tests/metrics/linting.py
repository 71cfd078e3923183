"""The rules that ``promtool check metrics`` applies, as far as they concern names, units, labels and help."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from asyncoffload.metrics.catalogue import PREFIX, Metric

_SAY = {
    "seconds": "milliseconds microseconds ms us sec minutes time",
    "bytes": "kilobytes megabytes kib mib gib bits size",
    "ratio": "percent perc",
}
BASE_UNITS = {word: unit for unit, words in _SAY.items() for word in words.split()}
"""What is not a base unit, or none at all, and what to say instead."""

KINDS = ("counter", "gauge", "histogram", "summary")
RESERVED_LABELS = ("le", "quantile", "job", "instance")


def complaints(metrics: Iterable[Metric]) -> Iterator[str]:
    """What is wrong with these names, labels and helps."""
    seen = set()
    for metric in metrics:
        name, words = metric.name, metric.name.split("_")
        if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
            yield f"{name}: not snake case"
        if not name.startswith(PREFIX):
            yield f"{name}: does not begin with {PREFIX}"
        if name in seen:
            yield f"{name}: is there twice"
        seen.add(name)
        if (metric.kind == "counter") != name.endswith("_total"):
            yield f"{name}: counters end in _total, and nothing else does"
        if name.endswith(("_count", "_sum", "_bucket")):
            yield f"{name}: ends like a part of a histogram"
        for word in words:
            if word in BASE_UNITS:
                yield f"{name}: say {BASE_UNITS[word]} instead of {word}"
            if word in KINDS:
                yield f"{name}: its kind is no part of its name"
        for unit in ("seconds", "bytes"):
            if unit in words and not name.removesuffix("_total").endswith(f"_{unit}"):
                yield f"{name}: the unit comes last"
        if metric.kind == "histogram" and not name.endswith(("_seconds", "_bytes")):
            yield f"{name}: a histogram has a unit"
        for label in metric.labels:
            if not re.fullmatch(r"[a-z]+(_[a-z]+)*", label) or label in RESERVED_LABELS:
                yield f"{name}: bad label {label}"
        if len(set(metric.labels)) < len(metric.labels):
            yield f"{name}: a label is there twice"
        if not re.fullmatch(r"[A-Z].*\.", metric.help) or "\n" in metric.help:
            yield f"{name}: its help is no sentence"
