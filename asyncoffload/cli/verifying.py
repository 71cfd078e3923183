"""A look at every block below a root, by several threads."""

from __future__ import annotations

import itertools
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field

from asyncoffload.errors import ConfigError
from asyncoffload.keys import OffloadKey
from asyncoffload.tiers.fs.account_file import bucket_of
from asyncoffload.tiers.fs.checking import BlockChecker, State, Verdict
from asyncoffload.tiers.fs.departures import Departures
from asyncoffload.tiers.fs.pace import Pace
from asyncoffload.tiers.fs.stored_layout import read_stored_layout
from asyncoffload.tiers.fs.survey import FoundFile, Kind, LayoutDirectory, fan_out_of, files_in
from asyncoffload.tiers.fs.usage import ACCOUNT, Usage, UsageBusyError
from asyncoffload.types import Fate, KVLayout

_BATCH = 16
_BATCHES_AHEAD = 4


@dataclass(frozen=True, slots=True)
class BadBlock:
    """A block that would not be served.

    Attributes:
        path: the file.
        key: the block that it should be.
        verdict: what is wrong with it.
    """

    path: str
    key: OffloadKey
    verdict: Verdict


@dataclass(slots=True)
class CheckedLayout:
    """What the look at one directory came to, so far.

    Attributes:
        directory: the directory.
        layout: what its ``config.json`` describes; None where it cannot be told.
        trouble: what is wrong with ``config.json``, in words.
        counts: blocks by state.
        nbytes: bytes that were read.
        bad: the blocks that would not be served.
    """

    directory: LayoutDirectory
    layout: KVLayout | None = None
    trouble: str = ""
    counts: Counter[State] = field(default_factory=Counter)
    nbytes: int = 0
    bad: list[BadBlock] = field(default_factory=list)

    @property
    def is_well(self) -> bool:
        """Whether nothing was found that a tier would refuse."""
        return not self.bad and not self.trouble


def open_layout(directory: LayoutDirectory) -> CheckedLayout:
    """A directory of which no block was looked at yet. One without ``config.json`` is no trouble: it may be new."""
    checked = CheckedLayout(directory)
    with suppress(FileNotFoundError):
        try:
            checked.layout = read_stored_layout(directory)
        except ConfigError as error:
            checked.trouble = str(error)
    return checked


class Verification:
    """One pass over the blocks of some directories.

    Args:
        layouts: the directories, as :func:`open_layout` gives them; what is found out is entered there.
        n_threads: threads that read.
        bytes_per_second: how many bytes they may read together; None for no limit.
        set_aside: put bad blocks in quarantine.
    """

    def __init__(
        self,
        layouts: Sequence[CheckedLayout],
        *,
        n_threads: int,
        bytes_per_second: float | None = None,
        set_aside: bool = False,
    ) -> None:
        self.layouts = layouts
        self._parents = [(checked, parent) for checked in layouts for parent in fan_out_of(checked.directory)]
        self._n_threads = n_threads
        self._stop = threading.Event()
        self._pace = Pace(bytes_per_second, sleep=self._stop.wait)
        self._set_aside = set_aside

    @property
    def steps(self) -> int:
        """How often :meth:`run` will report progress."""
        return len(self._parents)

    @property
    def nbytes(self) -> int:
        """Bytes that were read so far."""
        return sum(checked.nbytes for checked in self.layouts)

    @property
    def bad(self) -> int:
        """Blocks found so far that would not be served."""
        return sum(len(checked.bad) for checked in self.layouts)

    def run(self, progress: Callable[[], None] = lambda: None) -> None:
        """Look at all blocks. An interrupt ends it, within a block for each thread; what was seen until then is kept.

        Raises:
            OSError: a directory cannot be read.
        """
        checkers = {id(each): BlockChecker(each.directory, each.layout) for each in self.layouts}
        under_way: deque[tuple[CheckedLayout, Sequence[FoundFile], Future[list[Verdict]]]] = deque()
        with ThreadPoolExecutor(self._n_threads, thread_name_prefix="verify") as threads:
            try:
                for checked, parent in self._parents:
                    blocks = (file for file in files_in(checked.directory, parent) if file.kind is Kind.BLOCK)
                    for batch in _batches(blocks):
                        if len(under_way) >= _BATCHES_AHEAD * self._n_threads:
                            _enter(*under_way.popleft())
                        check = threads.submit(self._check, checkers[id(checked)], batch)
                        under_way.append((checked, batch, check))
                    progress()
                while under_way:
                    _enter(*under_way.popleft())
            except BaseException:
                self._stop.set()
                threads.shutdown(cancel_futures=True)
                raise

    def _check(self, checker: BlockChecker, batch: Sequence[FoundFile]) -> list[Verdict]:
        verdicts = []
        for file in batch:
            self._pace.spend(file.nbytes)
            if self._stop.is_set():
                break
            assert file.key is not None
            verdicts.append(checker.check(file.path, file.key, set_aside=self._set_aside))
        return verdicts


def tell_neighbours(root: str, layouts: Sequence[CheckedLayout]) -> None:
    """Write down which blocks were set aside, and have those who keep the account of the root count again there.

    One that was set aside may have taken the place of an older one. Without an account there is nothing to tell, and a
    process that is the first to use a root counts again anyway.
    """
    aside = [block for checked in layouts for block in checked.bad if block.verdict.set_aside]
    paths, departures = [block.path for block in aside], Departures(root)
    for block in aside:
        departures.note(block.path, block.verdict.nbytes, Fate.CORRUPT, "verify")
    departures.flush()
    if not paths or not os.path.exists(os.path.join(root, ACCOUNT)):
        return
    with suppress(OSError, UsageBusyError):
        usage = Usage(root)
        try:
            for bucket in {bucket_of(path) for path in paths}:
                usage.doubt(bucket)
        finally:
            usage.leave()


def _enter(checked: CheckedLayout, batch: Sequence[FoundFile], check: Future[list[Verdict]]) -> None:
    for file, verdict in zip(batch, check.result(), strict=False):
        checked.counts[verdict.state] += 1
        checked.nbytes += verdict.nbytes
        if verdict.state in (State.BAD, State.UNREADABLE):
            assert file.key is not None
            checked.bad.append(BadBlock(file.path, file.key, verdict))


def _batches(files: Iterator[FoundFile]) -> Iterator[Sequence[FoundFile]]:
    while batch := list(itertools.islice(files, _BATCH)):
        yield batch
