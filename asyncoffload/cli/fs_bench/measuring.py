"""The measurements of one block size: the tier and bare threads take turns with files of the same names."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from asyncoffload.cli.fs_bench.figures import DIRECTIONS, Direction, Flow, Latency, SizeFigures
from asyncoffload.cli.fs_bench.memory import BenchMemory
from asyncoffload.cli.fs_bench.raw import BareThreads, RawFiles, remove_files
from asyncoffload.cli.fs_bench.tier_side import TierSide, bench_layout
from asyncoffload.core.layout import block_path, directory_name
from asyncoffload.keys import OffloadKey, make_key
from asyncoffload.tiers.fs.sizing import auto_io_threads
from asyncoffload.tiers.fs.space import DirectIO

THREAD_COUNTS = (2, 4, 8, 16, 32)
CALIBRATION_BYTES = 64 << 20
SINGLE_BLOCKS = 64
FAN_OUT = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much to do for each block size.

    Attributes:
        nbytes: bytes that each round moves in each direction.
        rounds: how often.
        io_threads: of the tier, in each direction.
        direct_io: as the tier's own setting.
    """

    nbytes: int
    rounds: int
    io_threads: int | str
    direct_io: DirectIO

    @property
    def steps(self) -> int:
        """How often the measurement of one size reports progress."""
        return self.rounds + 1


class SizeBench:
    """Measures one block size below a directory that is its own, and leaves nothing there.

    Args:
        root: the directory.
        block_bytes: bytes of a block, a multiple of a page.
        effort: how much to do.
    """

    def __init__(self, root: str, block_bytes: int, effort: Effort) -> None:
        self._root, self._effort = root, effort
        self._block_bytes = block_bytes
        self._n = max(1, effort.nbytes // block_bytes)
        self._threads = auto_io_threads(block_bytes) if effort.io_threads == "auto" else int(effort.io_threads)
        self._memory = BenchMemory(self._n, block_bytes)
        self._slots = self._memory.slots(range(self._n))
        self._wrong = 0
        self._tier_root = os.path.join(root, "tier")
        name = directory_name(bench_layout(block_bytes))
        self._tier_directory, self._raw_directory = os.path.join(self._tier_root, name), os.path.join(root, "raw", name)

    def run(self, progress: Callable[[], None]) -> SizeFigures:
        """Measure.

        Raises:
            TransferError: a block could not be stored or loaded.
            OSError: the operating system refused bare threads.
        """
        with TierSide(self._memory, self._tier_root, self._threads, self._effort.direct_io) as side:
            raw = RawFiles(direct=side.uses_direct_io)
            self._make_fan_out()
            best = self._best_raw_threads(raw)
            progress()
            ours: dict[Direction, list[float]] = {direction: [] for direction in DIRECTIONS}
            bare: dict[Direction, list[float]] = {direction: [] for direction in DIRECTIONS}
            for round_ in range(self._effort.rounds):
                turns = [partial(self._tier_turn, side, ours), partial(self._raw_turn, raw, best, bare)]
                for turn in turns[:: -1 if round_ % 2 else 1]:
                    turn()
                progress()
            latency, raw_latency = self._tier_latency(side), self._raw_latency(raw)
            nbytes = self._n * self._block_bytes
            return SizeFigures(
                self._block_bytes,
                self._n,
                self._threads,
                side.uses_direct_io,
                self._effort.rounds,
                {
                    way: Flow.of(nbytes, ours[way], bare[way], best[way], latency[way], raw_latency[way])
                    for way in DIRECTIONS
                },
                self._wrong,
            )

    def _tier_turn(self, side: TierSide, seconds: dict[Direction, list[float]]) -> None:
        keys = _new_keys(self._n)
        seconds["store"].append(side.store(keys))
        self._memory.wipe()
        seconds["load"].append(side.load(keys))
        self._wrong += self._memory.wrong_slots()
        self._forget(self._tier_directory, keys)

    def _raw_turn(self, raw: RawFiles, best: dict[Direction, int], seconds: dict[Direction, list[float]]) -> None:
        keys = _new_keys(self._n)
        paths = self._raw_paths(keys)
        seconds["store"].append(BareThreads(best["store"], raw.write, paths, self._slots).join().seconds)
        seconds["load"].append(BareThreads(best["load"], raw.read, paths, self._slots).join().seconds)
        self._forget(self._raw_directory, keys)

    def _best_raw_threads(self, raw: RawFiles) -> dict[Direction, int]:
        n = min(self._n, max(1, CALIBRATION_BYTES // self._block_bytes))
        speeds: dict[Direction, dict[int, float]] = {direction: {} for direction in DIRECTIONS}
        for count in THREAD_COUNTS:
            keys = _new_keys(n)
            paths = self._raw_paths(keys)
            speeds["store"][count] = BareThreads(count, raw.write, paths, self._slots[:n]).join().bytes_per_second
            speeds["load"][count] = BareThreads(count, raw.read, paths, self._slots[:n]).join().bytes_per_second
            remove_files(paths)
        settle(self._raw_directory)
        return {way: max(of, key=of.__getitem__) for way, of in speeds.items()}

    def _tier_latency(self, side: TierSide) -> dict[Direction, Latency]:
        keys = _new_keys(min(self._n, SINGLE_BLOCKS))
        return {"store": Latency.of(side.store_singly(keys)), "load": Latency.of(side.load_singly(keys))}

    def _raw_latency(self, raw: RawFiles) -> dict[Direction, Latency]:
        keys = _new_keys(min(self._n, SINGLE_BLOCKS))
        paths, slots = self._raw_paths(keys), self._slots[: len(keys)]
        return {
            "store": Latency.of(BareThreads(1, raw.write, paths, slots).join().each),
            "load": Latency.of(BareThreads(1, raw.read, paths, slots).join().each),
        }

    def _raw_paths(self, keys: Sequence[OffloadKey]) -> list[str]:
        return [block_path(self._raw_directory, key) for key in keys]

    def _make_fan_out(self) -> None:
        """Make the directories that both need only once in their lives."""
        for directory in (self._tier_directory, self._raw_directory):
            for key in _new_keys(min(self._n, FAN_OUT)):
                os.makedirs(os.path.dirname(block_path(directory, key)), 0o700, exist_ok=True)

    def _forget(self, directory: str, keys: Sequence[OffloadKey]) -> None:
        """Remove the files and let the file system finish with it, so that the next turn does not pay for it."""
        remove_files([block_path(directory, key) for key in keys])
        settle(directory)


def settle(directory: str) -> None:
    """Wait until the file system has written down what was done in a directory."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def clear(root: str) -> None:
    """Remove what one size left in the directory of the benchmark."""
    for name in os.listdir(root):
        shutil.rmtree(os.path.join(root, name))


def _new_keys(count: int) -> list[OffloadKey]:
    """Keys that nobody has seen, spread evenly over the fan-out."""
    return [make_key(bytes([index % FAN_OUT]) + os.urandom(31)) for index in range(count)]
