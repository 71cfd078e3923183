"""The names keep the rules of the field."""

from __future__ import annotations

import pytest

from asyncoffload.metrics.catalogue import METRICS, Metric
from tests.metrics.linting import complaints


def test_names_units_labels_and_helps() -> None:
    assert list(complaints(METRICS)) == []


@pytest.mark.parametrize(
    "metric",
    [
        Metric("asyncoffload_hits", "counter", (), "Hits."),
        Metric("asyncoffload_waiting_total", "gauge", (), "Waiting."),
        Metric("asyncoffload_load_time", "gauge", (), "Time."),
        Metric("asyncoffload_load_milliseconds", "histogram", (), "Time."),
        Metric("asyncoffload_load_seconds_spent", "gauge", (), "Time."),
        Metric("asyncoffload_load", "histogram", (), "Time."),
        Metric("asyncoffload_hits_counter_total", "counter", (), "Hits."),
        Metric("asyncoffload_things_count", "gauge", (), "Things."),
        Metric("asyncoffload:hits_total", "counter", (), "Hits."),
        Metric("asyncoffload_cacheHits_total", "counter", (), "Hits."),
        Metric("vllm_hits_total", "counter", (), "Hits."),
        Metric("asyncoffload_hits_total", "counter", ("le",), "Hits."),
        Metric("asyncoffload_tier_hits_total", "counter", ("tier", "tier"), "Hits."),
        Metric("asyncoffload_hits_total", "counter", (), ""),
        Metric("asyncoffload_hits_total", "counter", (), "hits"),
    ],
    ids=lambda metric: f"{metric.name} {metric.help}",
)
def test_the_rules_find_what_is_wrong(metric: Metric) -> None:
    assert list(complaints([metric]))
