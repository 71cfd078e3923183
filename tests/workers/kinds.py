"""The devices under test: the processor, CUDA over the fake driver, and a GPU where there is one."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.base import CopyDevice, Direction
from asyncoffload.device.batch_copy import best_batch_copy
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.device.cuda.device import CudaDevice
from asyncoffload.device.cuda.driver import Driver
from asyncoffload.device.cuda.engines.base import Reservation
from asyncoffload.device.cuda.engines.choice import EngineChoice
from asyncoffload.device.cuda.pinning import CudaPinner
from asyncoffload.device.events import DeviceEvent
from asyncoffload.memory.region import HostRegion
from tests.device.cuda.fake import Fake

Refuses = Callable[[CopyBatch], bool]
"""Whether a copy of this batch shall fail."""


class Kind(ABC):
    """Memory of one kind of device, what copies it, and a compute stream beside it."""

    def __init__(self, undo: ExitStack) -> None:
        self._undo = undo

    @abstractmethod
    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor as the device's own memory: the same elements and strides."""

    @abstractmethod
    def region(self, n_slots: int, slot_bytes: int) -> HostRegion: ...

    @abstractmethod
    def device(self, region: HostRegion, *tensors: torch.Tensor, refuses: Refuses | None = None) -> CopyDevice: ...

    @abstractmethod
    def compute_fills(self, page: torch.Tensor, value: int) -> None:
        """Give the compute stream work that writes a page of a placed tensor."""

    @abstractmethod
    def compute_copies(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        """Give the compute stream work that copies one page of placed tensors to another."""

    @abstractmethod
    def compute_waits(self, event: DeviceEvent) -> None:
        """Let what the compute stream gets from now on come after an event."""

    @abstractmethod
    def compute_ends(self) -> None:
        """Wait until the compute stream has nothing to do."""

    @contextmanager
    def slow_compute(self) -> Iterator[None]:
        """The compute stream is busy with what came before, until this is left."""
        yield

    @abstractmethod
    def resources(self) -> dict[str, int]:
        """What transfers might use up, counted."""


class Processor(Kind):
    """Computes at once, on the caller's thread."""

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        region = HostRegion(n_slots, slot_bytes)
        self._undo.callback(region.close)
        return region

    def device(self, region: HostRegion, *tensors: torch.Tensor, refuses: Refuses | None = None) -> CopyDevice:  # noqa: ARG002
        copy = best_batch_copy()

        def copy_or_refuse(batch: CopyBatch) -> None:
            if refuses is not None and refuses(batch):
                raise OSError(5, "the test refuses this copy")
            copy(batch)

        return CPUDevice(2, batch_copy=copy_or_refuse)

    def compute_fills(self, page: torch.Tensor, value: int) -> None:
        page.fill_(value)

    def compute_copies(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        destination.copy_(source)

    def compute_waits(self, event: DeviceEvent) -> None:
        event.synchronize()

    def compute_ends(self) -> None: ...

    def resources(self) -> dict[str, int]:
        return {"threads": threading.active_count(), "descriptors": len(os.listdir("/proc/self/fd"))}


class RefusingChoice(EngineChoice):
    """The usual ways of copying, but for batches that the test refuses."""

    refuses: Refuses | None = None

    def launch(self, batch: CopyBatch, stream: int, *, direction: Direction, source_final: bool) -> Reservation | None:
        if self.refuses is not None and self.refuses(batch):
            raise OSError(5, "the test refuses this copy")
        return super().launch(batch, stream, direction=direction, source_final=source_final)


class FakeCuda(Kind):
    """CUDA over the fake driver; host memory, adopted, is the device's."""

    def __init__(self, undo: ExitStack) -> None:
        super().__init__(undo)
        self._fake = Fake()
        self._fake.reset()
        undo.callback(self._check)
        self._driver = Driver(self._fake.library)
        self._driver.bind(self._driver.retain_primary_context(0))
        self._compute = self._driver.create_stream()

    def _check(self) -> None:
        violations = self._fake.count("violations")
        self._fake.reset()
        assert violations == 0

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        address, nbytes = storage.data_ptr(), storage.nbytes()
        self._fake.adopt(address, nbytes)
        self._undo.callback(self._fake.disown, address)
        self._undo.callback(lambda: tensor)  # mapped as long as it is adopted
        return tensor

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        region = HostRegion(n_slots, slot_bytes, pinner=self.pinner())
        assert region.pinned
        self._undo.callback(region.close)
        return region

    def device(self, region: HostRegion, *tensors: torch.Tensor, refuses: Refuses | None = None) -> CopyDevice:  # noqa: ARG002
        choice = RefusingChoice(self._driver, 0, pinned=region.pinned, seams=region.seams)
        choice.refuses = refuses
        return CudaOverHostMemory(
            0,
            pinned=region.pinned,
            driver=self._driver,
            choose=choice,
            current_stream=lambda: self._compute,
            seams=region.seams,
        )

    def compute_fills(self, page: torch.Tensor, value: int) -> None:
        self._fake.fill(self._compute, page.data_ptr(), page.nbytes, value)

    def compute_copies(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        self._driver.copy_one(destination.data_ptr(), source.data_ptr(), source.nbytes, self._compute)

    def compute_waits(self, event: DeviceEvent) -> None:
        event.wait(self._compute)

    @property
    def compute_stream(self) -> int:
        """The handle of the compute stream."""
        return self._compute

    def pinner(self) -> CudaPinner:
        """What pins host memory for the device, in so small pieces that transfers meet their seams."""
        return CudaPinner(self._driver, 0, piece_bytes=16 << 10)

    def compute_ends(self) -> None:
        self._driver.synchronize_stream(self._compute)

    @contextmanager
    def slow_compute(self) -> Iterator[None]:
        self._fake.hold(self._compute)
        try:
            yield
        finally:
            self._fake.release(self._compute)

    def resources(self) -> dict[str, int]:
        counted = ("streams", "events", "pinned_bytes", "device_bytes", "registered_bytes", "modules")
        return {name: self._fake.count(name) for name in counted}


class CudaOverHostMemory(CudaDevice):
    """Takes tensors in host memory for its own."""

    def reaches(self, device: torch.device) -> bool:
        return device.type == "cpu"


class Cuda(Kind):
    """The GPU."""

    SLOW_CYCLES = 400_000_000

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        flat = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage()).cuda()
        return flat.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())

    def region(self, n_slots: int, slot_bytes: int) -> HostRegion:
        region = HostRegion(n_slots, slot_bytes, pinner=CudaPinner(Driver(), 0))
        assert region.pinned
        self._undo.callback(region.close)
        return region

    def device(self, region: HostRegion, *tensors: torch.Tensor, refuses: Refuses | None = None) -> CopyDevice:
        driver = Driver()
        known = (region.tensor, *tensors)
        choice = RefusingChoice(driver, 0, pinned=region.pinned, seams=region.seams, tensors=known)
        choice.refuses = refuses
        return CudaDevice(0, pinned=region.pinned, driver=driver, choose=choice, seams=region.seams)

    def compute_fills(self, page: torch.Tensor, value: int) -> None:
        page.fill_(value)

    def compute_copies(self, source: torch.Tensor, destination: torch.Tensor) -> None:
        destination.copy_(source)

    def compute_waits(self, event: DeviceEvent) -> None:
        event.wait(torch.cuda.current_stream())

    def compute_ends(self) -> None:
        torch.cuda.synchronize()

    @contextmanager
    def slow_compute(self) -> Iterator[None]:
        torch.cuda._sleep(self.SLOW_CYCLES)  # type: ignore[no-untyped-call]
        yield

    def resources(self) -> dict[str, int]:
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        return {"device_bytes": total - free, "descriptors": len(os.listdir("/proc/self/fd"))}


def make_kind(name: str, undo: ExitStack) -> Kind:
    """A device of this name; skips the test where there is none."""
    if name == "processor":
        return Processor(undo)
    if name == "fake CUDA":
        return FakeCuda(undo)
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return Cuda(undo)


KINDS: Sequence[object] = ("processor", "fake CUDA", pytest.param("CUDA", marks=pytest.mark.gpu))
