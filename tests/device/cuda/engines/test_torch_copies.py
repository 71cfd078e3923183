"""Copies by torch, here between tensors in host memory; the same code finds its tensors on a device."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from asyncoffload.core.coalesce import CopyBatch
from asyncoffload.device.cuda.engines.torch_copies import TorchEngine
from asyncoffload.errors import InvalidArgument

N, PAGE = 16, 48
NO_STREAM = 0


def _tensors() -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    source = torch.from_numpy(rng.integers(0, 256, (N, PAGE), dtype=np.uint8))
    return source, torch.full((N, PAGE), 0xA5, dtype=torch.uint8)


def _copies(dst: torch.Tensor, src: torch.Tensor, *pages: tuple[int, int, int]) -> CopyBatch:
    to, source, nbytes = np.array(pages, dtype=np.int64).reshape(-1, 3).T
    return CopyBatch(dst.data_ptr() + to * PAGE, src.data_ptr() + source * PAGE, nbytes)


def test_pages_arrive_and_nothing_else_changes() -> None:
    source, destination = _tensors()
    engine = TorchEngine(None)
    engine.know(source, destination)
    batch = _copies(destination, source, (3, 0, PAGE), (0, 15, 7), (15, 3, PAGE))
    engine.launch(batch, NO_STREAM, direction="load", source_final=False)
    expected = torch.full_like(destination, 0xA5)
    expected[3], expected[0, :7], expected[15] = source[0], source[15, :7], source[3]
    assert torch.equal(destination, expected)


def test_bytes_are_bytes_in_any_view_of_a_storage() -> None:
    storage = torch.arange(200, dtype=torch.float32)
    part = storage[100:].view(10, 10)[:, 2:]  # begins within its storage, with gaps
    destination = torch.zeros(10, dtype=torch.bfloat16)
    engine = TorchEngine(None)
    engine.know(part, destination)
    batch = CopyBatch(*(np.array([n], dtype=np.int64) for n in (destination.data_ptr(), part.data_ptr(), 20)))
    engine.launch(batch, NO_STREAM, direction="store", source_final=False)
    assert torch.equal(destination.view(torch.uint8), storage[102:107].view(torch.uint8))


@pytest.mark.parametrize(("at", "nbytes"), [(N, PAGE), (N - 1, PAGE + 1), (-1, PAGE)])
def test_a_copy_outside_the_tensors_is_refused_before_any(at: int, nbytes: int) -> None:
    source, destination = _tensors()
    engine = TorchEngine(None)
    engine.know(source, destination)
    before = destination.clone()
    with pytest.raises(InvalidArgument, match="know"):
        engine.launch(
            _copies(destination, source, (0, 0, PAGE), (at, 1, nbytes)),
            NO_STREAM,
            direction="load",
            source_final=False,
        )
    assert torch.equal(destination, before)


def test_what_was_forgotten_cannot_be_copied() -> None:
    source, destination = _tensors()
    engine = TorchEngine(None)
    engine.know(source, destination)
    engine.close()
    with pytest.raises(InvalidArgument):
        engine.launch(_copies(destination, source, (0, 0, 8)), NO_STREAM, direction="load", source_final=False)
