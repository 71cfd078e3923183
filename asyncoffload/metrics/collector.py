"""Reads a stack when Prometheus asks."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from typing import Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncoffload.aio.durations import DurationCounts
from asyncoffload.metrics import catalogue
from asyncoffload.metrics.readings import Reading, readings_of
from asyncoffload.offloader import OffloaderStats
from asyncoffload.tiers.complaints import Complaints

logger = logging.getLogger(__name__)

VERSION = version("asyncoffload")  # read from a file, so not on an event loop
UNITS = ("seconds", "bytes")

Values = dict[tuple[str, ...], float | DurationCounts]


class Stack(Protocol):
    """What can be collected from: an ``Offloader``, a ``SyncOffloader``."""

    def stats(self) -> OffloaderStats:
        """Any thread."""


class Source(Protocol):
    """Something beside the stack that has values of its own."""

    def readings(self) -> Iterator[Reading]:
        """Any thread."""


class StackCollector(Collector):
    """Turns the statistics of one stack into metrics, at the moment of a scrape and on its thread.

    Nothing is asked of the event loop, so a stack whose loop is stuck can be scraped all the same. What was told once
    is told again when it cannot be read any more: no metric disappears. A registry takes one stack.

    Args:
        stack: what to read.
        sources: what else to read.
    """

    def __init__(self, stack: Stack, sources: Iterable[Source] = ()) -> None:
        self._stack = stack
        self._sources = tuple(sources)
        self._lock = threading.Lock()  # of those who scrape at the same time; the event loop never takes it
        self._known: dict[catalogue.Metric, Values] = {metric: {} for metric in catalogue.METRICS}
        self._known[catalogue.BUILD_INFO] = {(VERSION,): 1}
        self._errors = 0
        self._complaints = Complaints(logger, time.monotonic)

    def describe(self) -> list[Metric]:
        """The metrics without their values: a registry refuses names that it has already."""
        return [_family(metric, {}) for metric in catalogue.METRICS]

    def collect(self) -> list[Metric]:
        """The metrics that have values, as they are now."""
        with self._lock:
            try:
                self._read()
            except Exception as error:  # a scrape that fails would hide what the other numbers say
                self._errors += 1
                self._complaints.add("collect", f"the statistics of {self._stack!r} cannot be read: {error!r}")
            self._known[catalogue.COLLECTION_ERRORS][()] = self._errors
            return [_family(metric, values) for metric, values in self._known.items() if values]

    def _read(self) -> None:
        for source in self._sources:
            self._enter(source.readings())
        self._enter(readings_of(self._stack.stats()))

    def _enter(self, readings: Iterable[Reading]) -> None:
        for metric, labels, value in readings:
            self._known[metric][labels] = value


def _family(metric: catalogue.Metric, values: Values) -> Metric:
    unit = next((unit for unit in UNITS if metric.name.removesuffix("_total").endswith(f"_{unit}")), "")
    if metric.kind == "histogram":
        histogram = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels, unit=unit)
        for labels, durations in values.items():
            assert isinstance(durations, DurationCounts)
            buckets = [("+Inf" if bound == math.inf else str(bound), n) for bound, n in durations.cumulative()]
            histogram.add_metric(labels, buckets, durations.seconds)
        return histogram
    kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
    family: CounterMetricFamily | GaugeMetricFamily = kind(metric.name, metric.help, labels=metric.labels, unit=unit)
    for labels, value in values.items():
        assert not isinstance(value, DurationCounts)
        family.add_metric(labels, value)
    return family
