"""Which device copies for which tensors."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from asyncoffload.device.base import CopyDevice
from asyncoffload.device.cpu import CPUDevice
from asyncoffload.errors import InvalidArgument
from asyncoffload.memory.region import HostRegion, Pinner
from asyncoffload.workers.caches import LayerCache, tensors_of


def device_for(kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion, *, copy_threads: int = 2) -> CopyDevice:
    """A device that copies between these KV caches and a region; close it, or the handler that it is given to.

    Args:
        copy_threads: threads that copy where the caches lie in host memory.

    Raises:
        InvalidArgument: the caches lie on several devices, or on one that nothing here copies for.
        DeviceError: the driver of the device cannot be used.
    """
    device = _device_of(kv_caches)
    if device.type == "cuda":
        return _cuda_device(device.index or 0, kv_caches, region)
    return CPUDevice(copy_threads)


def _cuda_device(ordinal: int, kv_caches: Sequence[Sequence[LayerCache]], region: HostRegion) -> CopyDevice:
    from asyncoffload.device.cuda.device import CudaDevice
    from asyncoffload.device.cuda.driver import Driver
    from asyncoffload.device.cuda.engines.choice import EngineChoice

    driver = Driver()
    tensors = [region.tensor, *(tensor for group in tensors_of(kv_caches) for tensor in group)]
    choice = EngineChoice(driver, ordinal, pinned=region.pinned, tensors=tensors, seams=region.seams)
    return CudaDevice(ordinal, pinned=region.pinned, driver=driver, choose=choice, seams=region.seams)


def pinner_for(kv_caches: Sequence[Sequence[LayerCache]]) -> Pinner | None:
    """What locks host memory for the device that these KV caches lie on; None where that needs nothing.

    Raises:
        InvalidArgument, DeviceError: as :func:`device_for`.
    """
    device = _device_of(kv_caches)
    if device.type == "cuda":
        from asyncoffload.device.cuda.driver import Driver
        from asyncoffload.device.cuda.pinning import CudaPinner

        return CudaPinner(Driver(), device.index or 0)
    return None


def _device_of(kv_caches: Sequence[Sequence[LayerCache]]) -> torch.device:
    where = {tensor.device for tensors in tensors_of(kv_caches) for tensor in tensors}
    if len(where) != 1:
        raise InvalidArgument(
            f"the KV caches lie on {', '.join(sorted(map(str, where))) or 'no device'}: make one stack per device"
        )
    device = where.pop()
    if device.type not in ("cpu", "cuda"):
        raise InvalidArgument(f"the KV caches lie on {device}: blocks can be copied on CUDA devices and the CPU")
    return device
