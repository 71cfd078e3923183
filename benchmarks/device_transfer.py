"""How fast blocks move between a device and host memory, and what everything around them feels of it.

    python benchmarks/device_transfer.py [--quick] [--device auto|cuda|cpu] [--json FILE]

The measurements of ``asyncoffload bench device``, each in a process of its own: one that crashes, hangs or leaves the
device unusable says so in its row, and costs the others nothing. Prints a table in markdown.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from asyncoffload.cli.device_bench.figures import DeviceReport, Section
from asyncoffload.cli.device_bench.running import MEASUREMENTS, Measurement
from asyncoffload.cli.device_bench.table import markdown_of
from asyncoffload.cli.results import ALL_WELL, SOMETHING_WRONG

COMMAND = (sys.executable, "-X", "faulthandler", "-c", "from asyncoffload.cli import main; main()", "bench", "device")


def measured(measurement: Measurement, options: argparse.Namespace) -> DeviceReport:
    """The report of one section, or what there is of it when its process crashes or has to be ended."""
    arguments = ["--device", options.device, "--only", measurement.key, *(["--quick"] if options.quick else [])]
    with tempfile.TemporaryDirectory() as folder:
        figures, complaints = Path(folder, "figures.json"), Path(folder, "complaints")
        with complaints.open("w") as log:
            process = subprocess.Popen(
                [*COMMAND, *arguments, "--json", str(figures)], stdout=subprocess.DEVNULL, stderr=log
            )
            ended = _end_of(process, options.timeout)
        if figures.exists():
            report = DeviceReport.from_json(json.loads(figures.read_text()))
        else:
            report = DeviceReport({}, (Section(measurement.key, measurement.title, error="not begun"),))
        if process.returncode in (ALL_WELL, SOMETHING_WRONG):
            return report
        print(complaints.read_text()[-4000:], file=sys.stderr)
        sections = (replace(section, error=f"{section.error}; {ended}") for section in report.sections)
        return DeviceReport(report.machine, tuple(sections))


def _end_of(process: subprocess.Popen[bytes], timeout: float) -> str:
    try:
        return f"the process ended with {process.wait(timeout)}"
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)  # it shows where every thread is
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        return f"the process was ended after {timeout:g} s"
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", choices=("auto", "cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="fewer sizes and rounds")
    parser.add_argument("--only", action="append", metavar="KEY", help="measure only this; may be repeated")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too, anew after each measurement")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for each measurement (%(default)s)")
    options = parser.parse_args()
    machine: dict[str, str] = {}
    sections: list[Section] = []
    for measurement in MEASUREMENTS:
        if options.only and measurement.key not in options.only:
            continue
        report = measured(measurement, options)
        machine |= report.machine
        sections += report.sections
        for section in report.sections:
            state = section.skipped or section.error or f"{section.seconds:.1f} s"
            print(f"{section.title}: {len(section.figures)} figures, {state}", file=sys.stderr, flush=True)
        if options.json:
            Path(options.json).write_text(json.dumps(DeviceReport(machine, tuple(sections)).as_json(), indent=2) + "\n")
    print(markdown_of(DeviceReport(machine, tuple(sections))))
    if any(section.error for section in sections):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
