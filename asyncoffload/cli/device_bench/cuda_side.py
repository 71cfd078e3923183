"""A CUDA device: blocks in its memory, a pinned region on the host, raw copies straight from the driver."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch

from asyncoffload.cli.device_bench.cuda_board import Board
from asyncoffload.cli.device_bench.effort import MIB
from asyncoffload.cli.device_bench.side import Compute, Ends, RawCopies
from asyncoffload.device.base import CopyDevice, Direction
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.engines.kernel import FragmentKernel
from asyncoffload.device.cuda.pinning import CudaPinner
from asyncoffload.errors import InvalidArgument
from asyncoffload.memory.region import HostRegion, PinReport


class CudaSide:
    """Measures on one CUDA device, from one thread.

    Args:
        board: the device as torch sees it.
        driver: the same device as the driver sees it.
        make_device: called as :class:`CudaDevice` is.
        make_kernel: gives the kernel of each :class:`EngineChoice`; None: the usual one.

    Raises:
        DeviceError: the driver cannot be used.
    """

    kind = "cuda"
    raw_name = "cudaMemcpyAsync"

    def __init__(
        self,
        board: Board,
        driver: Driver | None = None,
        *,
        make_device: Callable[..., CopyDevice] = CudaDevice,
        make_kernel: Callable[[], FragmentKernel | None] = lambda: None,
    ) -> None:
        self._board = board
        self._make_device = make_device
        self._make_kernel = make_kernel
        self._driver = driver or Driver()
        self._driver.bind(self._driver.retain_primary_context(board.ordinal))
        self._choices: WeakKeyDictionary[CopyDevice, EngineChoice] = WeakKeyDictionary()

    def facts(self) -> Mapping[str, str]:
        with self.raw(64 * MIB) as raw, self._any_device() as device:
            facts = self._board.facts(lambda: raw.one("load"))
            version = self._driver.version
            return {
                **facts,
                "CUDA of the driver": f"{version // 1000}.{version % 1000 // 10}",
                "batched copies": "yes" if self._driver.has_batched_copy else "no",
                "engines": ", ".join((*device.engines(), "torch")),
            }

    def tensor(self, *shape: int) -> torch.Tensor:
        return self._board.tensor(*shape)

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        region = HostRegion(n_slots, slot_bytes, pinner=CudaPinner(self._driver, self._board.ordinal))
        if not region.pinned:
            nbytes, report = region.nbytes, region.pin_report
            region.close()
            raise InvalidArgument(f"{nbytes} bytes of host memory cannot be pinned: {report and report.error}")
        return region

    def copy_device(
        self, engine: str | None = None, *, caches: Sequence[torch.Tensor] = (), region: HostRegion | None = None
    ) -> CopyDevice:
        choice = EngineChoice(
            self._driver,
            self._board.ordinal,
            pinned=True,
            force=engine,
            kernel=self._make_kernel(),
            tensors=(*caches, region.tensor) if region is not None else (),
            seams=() if region is None else region.seams,
        )
        device = self._make_device(
            self._board.ordinal,
            pinned=True,
            driver=self._driver,
            current_stream=self._board.current_stream,
            choose=choice,
            seams=None if region is None else region.seams,
        )
        self._choices[device] = choice
        return device

    def engine_names(self) -> Sequence[str]:
        with self._any_device() as device:
            return (*device.engines(), "torch")

    def reason(self, device: CopyDevice, direction: Direction, engine: str) -> str:
        return self._choices[device].reasons().get((direction, engine), "")

    def settle(self) -> None:
        self._board.settle()

    @contextmanager
    def raw(self, nbytes: int) -> Iterator[RawCopies]:
        with ExitStack() as opened:
            host = [self.region(1, nbytes) for _ in range(2)]
            for region in host:
                opened.callback(region.close)
            streams = [self._driver.create_stream() for _ in range(2)]
            for stream in streams:
                opened.callback(self._driver.destroy_stream, stream)
            yield _RawCopies(self._driver, host, [self.tensor(nbytes) for _ in range(2)], streams, nbytes)

    @contextmanager
    def compute(self, size: int) -> Iterator[Compute]:
        yield self._board.compute(size)

    def ends(self, caches: Sequence[torch.Tensor], region: HostRegion) -> tuple[CopyDevice, Ends]:
        return self.copy_device(caches=caches, region=region), self._board.ends()

    def pin(self, nbytes: int, *, touch: bool) -> PinReport:
        pinner = CudaPinner(self._driver, self._board.ordinal)
        region = HostRegion(nbytes // MIB, MIB, pinner=pinner, touch_threads=None if touch else 0)
        report = region.pin_report
        region.close()
        if report is None or report.error is not None:
            raise InvalidArgument(f"{nbytes} bytes of host memory cannot be pinned: {report and report.error}")
        return report

    def close(self) -> None:
        self._driver.release_primary_context(self._board.ordinal)

    @contextmanager
    def _any_device(self) -> Iterator[CopyDevice]:
        device = self.copy_device()
        try:
            yield device
        finally:
            device.close()


class _RawCopies:
    """Contiguous, pinned, a stream per direction."""

    def __init__(
        self,
        driver: Driver,
        host: Sequence[HostRegion],
        device: Sequence[torch.Tensor],
        streams: Sequence[int],
        nbytes: int,
    ) -> None:
        self._driver, self._nbytes, self._streams = driver, nbytes, dict(zip(("load", "store"), streams, strict=True))
        addresses = [(there.data_ptr(), here.tensor.data_ptr()) for there, here in zip(device, host, strict=True)]
        self._addresses = {"load": addresses[0], "store": addresses[1][::-1]}
        self._keep_alive = host, device
        self.both()

    def one(self, direction: Direction) -> None:
        self._launch(direction)
        self._driver.synchronize_stream(self._streams[direction])

    def both(self) -> None:
        self._launch("load")
        self._launch("store")
        for stream in self._streams.values():
            self._driver.synchronize_stream(stream)

    def _launch(self, direction: Direction) -> None:
        destination, source = self._addresses[direction]
        self._driver.copy_one(destination, source, self._nbytes, self._streams[direction])
