"""What a measurement has to tell, as plain values: the table, the JSON file and the plot are made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from asyncoffload.errors import InternalError

RATIO = "x"
"""The unit of what is a share of something else that was measured beside it."""


class WrongBytesError(InternalError):
    """A transfer left other bytes at its destination than those it was told to move."""


@dataclass(frozen=True, slots=True)
class Aim:
    """What a figure should reach: a least value, or a largest one."""

    bound: float
    at_least: bool = True

    def met_by(self, value: float) -> bool:
        """Whether this value reaches it."""
        return value >= self.bound if self.at_least else value <= self.bound


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured.
        value: the median of the rounds, or the quantile that the name tells.
        unit: ``"x"``, ``"GB/s"`` (1e9 bytes), ``"ms"``, ``"us"`` or ``"%"``.
        quartiles: the first and the third, where there were rounds.
        aim: what it should reach; None where it is only reported.
        met: whether it does.
        notes: what else is worth knowing, by name.
    """

    name: str
    value: float
    unit: str
    quartiles: tuple[float, float] | None = None
    aim: Aim | None = None
    met: bool | None = None
    notes: Mapping[str, float | str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        name: str,
        samples: Sequence[float],
        unit: str,
        *,
        aim: Aim | None = None,
        quantile: float = 0.5,
        notes: Mapping[str, float | str] | None = None,
    ) -> Figure:
        """The figure of these samples, at least one; a quantile other than the median comes without quartiles."""
        first, value, third = (float(number) for number in np.quantile(samples, [0.25, quantile, 0.75]))
        return cls(
            name=name,
            value=value,
            unit=unit,
            quartiles=(first, third) if quantile == 0.5 and len(samples) > 1 else None,
            aim=aim,
            met=None if aim is None else aim.met_by(value),
            notes=notes or {},
        )


@dataclass(frozen=True, slots=True)
class Section:
    """Figures that were measured together.

    Attributes:
        key, title: its name for the command line, and for readers.
        figures: what was measured.
        seconds: how long that took.
        skipped: why nothing was measured on this device.
        error: what could not be measured, and why.
        wrong_bytes: whether that was because a transfer moved wrong bytes.
    """

    key: str
    title: str
    figures: tuple[Figure, ...] = ()
    seconds: float = 0.0
    skipped: str = ""
    error: str = ""
    wrong_bytes: bool = False


@dataclass(frozen=True, slots=True)
class DeviceReport:
    """The figures of one device, and what machine that was."""

    machine: Mapping[str, str]
    sections: tuple[Section, ...]

    @property
    def figures(self) -> list[Figure]:
        """Those of all sections."""
        return [figure for section in self.sections for figure in section.figures]

    def as_json(self) -> dict[str, Any]:
        """What a JSON file takes."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object) -> DeviceReport:
        """The report that :meth:`as_json` gave.

        Raises:
            pydantic.ValidationError: it is no such content.
        """
        return TypeAdapter(cls).validate_python(content)


def gigabytes_per_second(nbytes: int, seconds: Sequence[float] | npt.NDArray[np.float64]) -> float:
    """The median speed of moving ``nbytes`` in each of these times."""
    return nbytes / float(np.median(seconds)) / 1e9


def size_name(nbytes: int) -> str:
    """Such as ``64 KiB``, for sizes that are whole numbers of some unit."""
    for unit in ("GiB", "MiB", "KiB"):
        factor = 1 << {"GiB": 30, "MiB": 20, "KiB": 10}[unit]
        if nbytes >= factor and nbytes % factor == 0:
            return f"{nbytes // factor} {unit}"
    return f"{nbytes} B"
