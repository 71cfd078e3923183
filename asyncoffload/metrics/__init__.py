"""Prometheus metrics of a stack. Needs the extra ``metrics``; nothing below knows of it."""

from importlib.util import find_spec

from asyncoffload.errors import MissingDependency

if find_spec("prometheus_client") is None:
    raise MissingDependency("metrics need prometheus-client: pip install 'asyncoffload[metrics]'")

from asyncoffload.metrics.collector import StackCollector
from asyncoffload.metrics.serving import MetricsServer, collecting, serve_metrics

__all__ = ["MetricsServer", "StackCollector", "collecting", "serve_metrics"]
