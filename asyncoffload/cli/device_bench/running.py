"""All measurements in order, each by itself: one that fails says so, and the others still run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from asyncoffload.cli.device_bench import beside, engines, latency, speeds
from asyncoffload.cli.device_bench.effort import Effort
from asyncoffload.cli.device_bench.figures import Figure, Section, WrongBytesError, size_name
from asyncoffload.cli.device_bench.layers import layer_by_layer
from asyncoffload.cli.device_bench.pinning import TOUCHES, pinning
from asyncoffload.cli.device_bench.side import Side
from asyncoffload.cli.device_bench.submission import submission

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Measurement:
    """A section of the report to be.

    Attributes:
        key, title: as those of the section.
        measure: yields the figures of a case as they are known.
        cases: what is measured one after the other; one that fails leaves the others alone.
        only_cuda: why it makes no sense elsewhere.
    """

    key: str
    title: str
    measure: Callable[[Side, Effort, Any], Iterator[Figure]]
    cases: Callable[[Effort], Sequence[Any]] = lambda _: (None,)
    only_cuda: str = ""


MEASUREMENTS = (
    Measurement(
        "speed",
        "Speed of one transfer, against one contiguous raw copy",
        speeds.each_direction,
        lambda effort: sorted(effort.fragments, reverse=True),
    ),
    Measurement(
        "both",
        "Both directions at once, against raw copies both ways",
        speeds.both_directions,
        lambda _: speeds.BOTH_PAGE_BYTES,
    ),
    Measurement(
        "loop",
        "Against a loop of tensor.copy_ per block and layer",
        speeds.against_a_loop,
        lambda _: speeds.DIRECTIONS,
    ),
    Measurement(
        "latency",
        "From the end of a load under 1 ms to the coroutine running",
        latency.to_coroutine,
        lambda _: tuple(latency.LOOPS),
    ),
    Measurement(
        "submission",
        "Submission, on the caller's thread",
        submission,
        lambda effort: effort.submitted_page_bytes,
    ),
    Measurement(
        "compute",
        "Rate of matrix products beside transfers, of their rate alone",
        beside.compute_beside,
        lambda _: beside.PAGE_BYTES,
        only_cuda="the copies and the products would share the processors",
    ),
    Measurement("threads", "What a thread of this process feels", beside.threads_beside),
    Measurement("layers", "Layer-wise load and compute, against load, then compute", layer_by_layer),
    Measurement(
        "pinning",
        "Pinning a region",
        pinning,
        lambda _: tuple(TOUCHES),
        only_cuda="host memory needs no pinning for the CPU",
    ),
    Measurement("engines", "The chosen engine, against the best one", engines.compared, engines.batches),
)


def run_measurement(
    side: Side,
    effort: Effort,
    measurement: Measurement,
    done: Callable[[Section], None],
    so_far: Callable[[Section], None] = lambda _: None,
) -> None:
    """Measure one section.

    Args:
        done: called with the section; with what there is of it also where it fails or is interrupted.
        so_far: called with what there is before each case, in case the device ends the process.
    """
    skipped = measurement.only_cuda if side.kind != "cuda" else ""
    figures: list[Figure] = []
    errors: list[str] = []
    wrong = False
    begin = time.perf_counter()

    def section(*more_errors: str) -> Section:
        return Section(
            key=measurement.key,
            title=measurement.title,
            figures=tuple(figures),
            seconds=time.perf_counter() - begin,
            skipped=skipped,
            error="; ".join((*errors, *more_errors)),
            wrong_bytes=wrong,
        )

    try:
        for case in () if skipped else measurement.cases(effort):
            so_far(section(f"{_named(case)}unfinished"))
            try:
                figures.extend(measurement.measure(side, effort, case))
            except Exception as failure:
                # Whatever a row dies of, a driver's error or our own, belongs into its place in the table.
                _log.debug("measuring %r failed at %r", measurement.key, case, exc_info=True)
                errors.append(f"{_named(case)}{type(failure).__name__}: {failure}")
                wrong = wrong or isinstance(failure, WrongBytesError)
    except KeyboardInterrupt:
        errors.append("interrupted")
        raise
    finally:
        done(section())


def _named(case: object) -> str:
    return "" if case is None else f"{size_name(case) if isinstance(case, int) else case}: "
