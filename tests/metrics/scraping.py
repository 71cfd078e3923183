"""Scrapes a real endpoint, and looks things up in what it answered."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

Series = tuple[str, frozenset[tuple[str, str]]]
"""The name of a sample, and its labels."""


@dataclass(frozen=True)
class Scrape:
    """One answer of an endpoint.

    Attributes:
        values: by sample and labels.
        kinds: of the metrics, by name without ``_total``.
        helps: of the metrics, by the same name.
    """

    values: dict[Series, float]
    kinds: dict[str, str]
    helps: dict[str, str]

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the text format; a sample that is there twice is an error."""
        values: dict[Series, float] = {}
        kinds, helps = {}, {}
        for family in text_string_to_metric_families(text):
            assert family.name not in kinds, f"{family.name} is there twice"
            kinds[family.name], helps[family.name] = family.type, family.documentation
            for sample in family.samples:
                series = sample.name, frozenset(sample.labels.items())
                assert series not in values, f"{series} is there twice"
                values[series] = sample.value
        return cls(values, kinds, helps)

    @classmethod
    def now(cls, url: str) -> Self:
        """Scrape; on a thread that may block."""
        with urlopen(url, timeout=30) as answer:
            assert answer.status == 200
            return cls.parse(answer.read().decode())

    @classmethod
    async def of(cls, url: str) -> Self:
        """Scrape, beside the event loop."""
        return await asyncio.get_running_loop().run_in_executor(None, cls.now, url)

    def __call__(self, name: str, /, **labels: str) -> float:
        """The value of one sample; the prefix may be left out."""
        return self.values["asyncoffload_" + name, frozenset(labels.items())]

    def by(self, label: str, name: str, /, **labels: str) -> dict[str, float]:
        """The values above 0 of a metric, by one label; the others have these values."""
        found = {}
        for (sample, with_labels), value in self.values.items():
            own = dict(with_labels)
            if sample == "asyncoffload_" + name and value and labels.items() <= own.items():
                found[own[label]] = value
        return found

    @property
    def growing(self) -> dict[Series, float]:
        """What may only grow: counters, and all parts of histograms."""
        kinds = self.kinds
        return {
            series: value
            for series, value in self.values.items()
            if series[0].endswith("_total")
            or any(
                kinds.get(series[0].removesuffix(part)) == "histogram"
                for part in ("_bucket", "_count", "_sum")
                if series[0].endswith(part)
            )
        }
