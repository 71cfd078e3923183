"""The ways of copying that one device has here, the choice among them batch by batch, and what each has done."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Final

import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import Direction, EngineCount
from asyncoffload.device.cuda.driver import HOST_POINTER_USABLE, Driver
from asyncoffload.device.cuda.engines.base import CopyEngine, Reservation
from asyncoffload.device.cuda.engines.choosing import Chosen, Thresholds, choose
from asyncoffload.device.cuda.engines.compiled_kernel import CompiledKernel
from asyncoffload.device.cuda.engines.descriptors import POOL_BYTES, DescriptorPool
from asyncoffload.device.cuda.engines.driver_copies import BatchedEngine, PlainEngine
from asyncoffload.device.cuda.engines.kernel import FragmentKernel, KernelEngine, in_words
from asyncoffload.device.cuda.engines.staged import STAGING_BYTES, StagedEngine, host_runs
from asyncoffload.device.cuda.engines.torch_copies import TorchEngine
from asyncoffload.errors import CapacityError, DeviceError, InvalidArgument

_log = logging.getLogger(__name__)

BY_KERNEL: Final = ("kernel", "staged")
"""The ways that a kernel which cannot be used takes with it."""

_NOT_SUPPORTED: Final = 801


class EngineChoice:
    """Launches batches of copies, each in the way that suits it. From any thread; not twice at once for one stream.

    A way that turns out not to work here is given up, once and with a warning, and its batch goes another way.

    Args:
        driver, ordinal: the device. Its context has to be current in every call that follows, except those that tell.
        pinned: the host memory is pinned, throughout.
        force: the name of the one way to use, whatever the batch; it then fails where it does not work.
        thresholds: where one way begins to beat another.
        kernel: copies fragments on the device; by default one that Triton compiles.
        tensors: what torch copies may touch; without them there are none.
        staging_bytes: device memory, twice for each stream that stages.
        descriptor_bytes: the most pinned memory for what kernels read; while it is in use, driver copies take over.
        seams: addresses at which host memory is pinned apart from its neighbour before: no copy crosses them.

    Raises:
        InvalidArgument: there is no way of the name to force.
    """

    def __init__(
        self,
        driver: Driver,
        ordinal: int,
        *,
        pinned: bool,
        force: str | None = None,
        thresholds: Thresholds | None = None,
        kernel: FragmentKernel | None = None,
        tensors: Iterable[torch.Tensor] = (),
        staging_bytes: int = STAGING_BYTES,
        descriptor_bytes: int = POOL_BYTES,
        seams: Iterable[int] = (),
    ) -> None:
        self.thresholds = thresholds or Thresholds()
        self._pinned = pinned
        self._force = force
        self._lock = threading.Lock()
        self._kernel = kernel or CompiledKernel(driver, ordinal)
        self._descriptors = DescriptorPool(driver, max_bytes=descriptor_bytes)
        self._engines: dict[str, CopyEngine] = {}
        plain = PlainEngine(driver)
        runs: CopyEngine = plain
        if driver.has_batched_copy:
            runs = self._engines["batched"] = BatchedEngine(driver)
        self._engines["plain"] = plain
        # Addresses are the same on both sides only if that holds for every device of the process.
        if pinned and all(driver.attribute(HOST_POINTER_USABLE, each) for each in range(driver.device_count())):
            self._engines["kernel"] = KernelEngine(self._kernel, self._descriptors)
            self._engines["staged"] = StagedEngine(
                driver,
                self._kernel,
                self._descriptors,
                runs,
                staging_bytes=staging_bytes,
                seams=seams,
            )
        tensors = tuple(tensors)
        if tensors:
            by_torch = self._engines["torch"] = TorchEngine(ordinal)
            by_torch.know(*tensors)
        self._all = tuple(self._engines.values())
        if force is not None:
            if force not in self._engines:
                raise InvalidArgument(f"there are no {force!r} copies here, only {', '.join(self._engines)}")
            self._engines = {force: self._engines[force]}
        self._counts = dict.fromkeys(self._engines, EngineCount())
        self._given_up: dict[str, str] = {}
        self._reasons: dict[tuple[Direction, str], str] = {}

    def prepare(self, stream: int, direction: Direction) -> None:
        """Compile and allocate what copies in this stream may need; blocks, the first time for seconds. Idempotent.

        Without it, the first batch that needs something waits for it.

        Raises:
            DeviceError: a way that was forced does not work here, or the device is lost.
        """
        for name in tuple(self._engines):
            if name in self._engines and self._wanted(name, direction):
                try:
                    self._engines[name].prepare(stream, direction)
                except DeviceError as error:
                    self._give_up(name, error)

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:
        """Queue all copies of a batch in a stream, without waiting for any; neighbours should have been merged.

        Args:
            stream: the driver's handle; not the legacy stream.
            source_final: the source may be read before what is queued ahead in the stream has ended.

        Returns:
            What to release once the copies have ended; None where they need nothing.

        Raises:
            DeviceError: the driver refuses; some of the copies may have been queued.
            InvalidArgument: a way that was forced cannot copy this batch; nothing was queued.
        """
        n_fragments = len(batch)
        if not n_fragments:
            return None
        nbytes = batch.total_bytes
        available: Mapping[str, CopyEngine] = self._engines
        failed: dict[str, DeviceError] = {}
        while True:
            chosen = self._choose(batch, nbytes, direction, available)
            try:
                reservation = available[chosen.name].launch(
                    batch, stream, direction=direction, source_final=source_final
                )
            except CapacityError as error:
                if self._force is not None:
                    raise DeviceError(f"{chosen.name} copies were asked for, and {error}") from error
                available = _without(available, BY_KERNEL)
            except DeviceError as error:
                name = chosen.name
                another = name in BY_KERNEL or (name == "batched" and error.code == _NOT_SUPPORTED)
                if error.lost or self._force is not None or not another:
                    raise
                failed[name] = error
                # What the driver refused must not go to a kernel: an address that is not mapped ends the context.
                available = _without(available, (name, *BY_KERNEL))
            else:
                # Where other ways fail as well it is the batch's fault, and theirs to say so.
                for name, cause in failed.items():
                    self._give_up(name, cause)
                self._count(chosen, direction, n_fragments, nbytes)
                return reservation

    def explain(
        self, direction: Direction, *, fragment_bytes: int, n_fragments: int, host_run_bytes: int | None = None
    ) -> Chosen:
        """What would be chosen for aligned fragments, and why.

        Args:
            host_run_bytes: mean length of the runs they form in host memory; by default they form one.
        """
        if self._force is not None:
            return Chosen(self._force, "no other was allowed")
        return choose(
            direction,
            fragment_bytes=fragment_bytes,
            n_fragments=n_fragments,
            host_run_bytes=fragment_bytes * n_fragments if host_run_bytes is None else host_run_bytes,
            aligned=True,
            pinned=self._pinned,
            available=self._engines,
            thresholds=self.thresholds,
        )

    @property
    def available(self) -> Sequence[str]:
        """The names of the ways that can be chosen."""
        return tuple(self._engines)

    @property
    def given_up(self) -> Mapping[str, str]:
        """The ways that turned out not to work here, and why."""
        return dict(self._given_up)

    def counts(self) -> Mapping[str, EngineCount]:
        """What each way has done, by name."""
        with self._lock:
            return dict(self._counts)

    def reasons(self) -> Mapping[tuple[Direction, str], str]:
        """Why each way was chosen the last time that it was, by direction and name."""
        with self._lock:
            return dict(self._reasons)

    def close(self) -> None:
        """Free what the ways hold, once all copies have ended. Idempotent; blocks until the device is at rest."""
        with ExitStack() as closing:  # one that cannot be closed, on a lost device, does not keep the others
            closing.callback(self._descriptors.close)
            closing.callback(self._kernel.close)
            for engine in self._all:
                closing.callback(engine.close)

    def __repr__(self) -> str:
        done = ", ".join(
            f"{name}: {count.batches} batches of {count.nbytes} bytes" if count.batches else name
            for name, count in self.counts().items()
            if name in self._engines
        )
        lost = f"; without {', '.join(self._given_up)}" if self._given_up else ""
        return f"EngineChoice({'only ' if self._force else ''}{done}{lost})"

    def _wanted(self, name: str, direction: Direction) -> bool:
        if name != "staged" or self._force is not None:
            return True
        return self.thresholds.stage_loads if direction == "load" else self.thresholds.stage_stores

    def _choose(
        self, batch: CopyBatch, nbytes: int, direction: Direction, available: Mapping[str, CopyEngine]
    ) -> Chosen:
        if self._force is not None:
            return Chosen(self._force, "no other was allowed")
        n = len(batch)
        small = any(name in available for name in BY_KERNEL)
        host = batch.src if direction == "load" else batch.dst
        return choose(
            direction,
            fragment_bytes=nbytes // n,
            n_fragments=n,
            host_run_bytes=nbytes // len(host_runs(host, batch.nbytes)) if small else 0,
            aligned=not small or in_words(batch),
            pinned=self._pinned,
            available=available,
            thresholds=self.thresholds,
        )

    def _count(self, chosen: Chosen, direction: Direction, n_fragments: int, nbytes: int) -> None:
        name = chosen.name
        with self._lock:
            before = self._counts[name]
            self._counts[name] = EngineCount(before.batches + 1, before.fragments + n_fragments, before.nbytes + nbytes)
            self._reasons[direction, name] = chosen.reason

    def _give_up(self, name: str, error: DeviceError) -> None:
        """Do without a way of copying from now on.

        Raises:
            DeviceError: the given one, where nothing else is allowed or nothing else would work.
        """
        if self._force is not None or error.lost:
            raise error
        names = _with_it(name)
        with self._lock:
            lost = [one for one in names if one in self._engines]
            self._engines = _without(self._engines, names)
            self._given_up.update(dict.fromkeys(lost, str(error)))
        if lost:
            _log.warning("no %s copies on this device, others take their place: %s", " or ".join(lost), error)


def _with_it(name: str) -> Sequence[str]:
    """The ways that fail where one does. Staging may fail alone, for want of memory."""
    return BY_KERNEL if name == "kernel" else (name,)


def _without(engines: Mapping[str, CopyEngine], names: Sequence[str]) -> dict[str, CopyEngine]:
    return {name: engine for name, engine in engines.items() if name not in names}
