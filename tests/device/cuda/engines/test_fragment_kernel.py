"""The copy kernel itself: in Triton's interpreter, and compiled for a Hopper without one being there."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from asyncoffload.device.cuda.engines.compiled_kernel import ROWS, WARPS, WORDS, compile_kernel
from asyncoffload.errors import DeviceError

HAS_TRITON = importlib.util.find_spec("triton") is not None
HOPPER = 90
THREADS = 32 * WARPS

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton is not installed")


def _release(name: str) -> tuple[int, ...]:
    return tuple(map(int, importlib.metadata.version(name).split(".")[:2]))


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The kernel's module once more, made for the interpreter."""
    if _release("triton") < (3, 8) and _release("numpy") >= (2, 4):
        pytest.skip("this triton's interpreter makes numbers of arrays in a way that this numpy refuses")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    spec = importlib.util.find_spec("asyncoffload.device.cuda.engines.fragment_kernel")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _run(kernel: Any, descriptors: torch.Tensor, programs: int, *, pairs: bool) -> None:
    dst, src, words = descriptors
    kernel[(programs,)](dst, src, words, descriptors.shape[1], ROWS=ROWS, WORDS=WORDS, PAIRS=pairs)


@needs_triton
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")  # in the interpreter
@pytest.mark.parametrize("programs", [1, 3])
@pytest.mark.parametrize("n", [1, ROWS, ROWS + 1, 7 * ROWS - 3])
@pytest.mark.parametrize("pairs", [False, True])
def test_scattered_fragments_of_uneven_length_arrive(
    interpreted: ModuleType, n: int, programs: int, pairs: bool
) -> None:
    rng = np.random.default_rng(n)
    src = rng.integers(0, 256, (n, WORDS * 8), dtype=np.uint8)
    dst, expected = np.full_like(src, 0xA5), np.full_like(src, 0xA5)
    to = rng.permutation(n)
    step = 2 if pairs else 1
    words = rng.integers(0, WORDS // step + 1, n) * step
    words[rng.integers(n)] = WORDS
    for i, (place, length) in enumerate(zip(to.tolist(), words.tolist(), strict=True)):
        expected[place, : 8 * length] = src[i, : 8 * length]
    rows = (dst.ctypes.data + to * WORDS * 8, src.ctypes.data + np.arange(n) * WORDS * 8, words)
    _run(interpreted.copy_fragments, torch.from_numpy(np.stack(rows)), programs, pairs=pairs)
    assert np.array_equal(dst, expected)


@needs_triton
@pytest.mark.parametrize("paired", [False, True])
def test_machine_code_for_a_hopper_moves_whole_words(paired: bool) -> None:
    code = compile_kernel(HOPPER, paired)
    assert code.image[:4] == b"\x7fELF"
    assert code.name == "copy_fragments"
    accesses = set(re.findall(r"(?:ld|st)\.global[.\w]*", code.assembly))
    assert accesses <= {"ld.global.b64", "st.global.b64", "ld.global.v2.b64", "st.global.v2.b64"}
    # Where everything is a multiple of 16 bytes, only descriptors are read word by word.
    assert ("st.global.v2.b64" in accesses, "st.global.b64" in accesses) == (paired, not paired)


@needs_triton
@pytest.mark.parametrize("paired", [False, True])
def test_everything_fits_into_registers(tmp_path: Path, paired: bool) -> None:
    """What does not is spilled to memory, on the way of every word."""
    package = importlib.util.find_spec("triton")
    assert package is not None
    assert package.origin is not None
    tool = Path(package.origin).parent / "backends/nvidia/bin/cuobjdump"
    if not tool.exists():
        pytest.skip("this triton comes without cuobjdump")
    image = tmp_path / "kernel.cubin"
    image.write_bytes(compile_kernel(HOPPER, paired).image)
    usage = subprocess.run([tool, "-res-usage", image], capture_output=True, text=True, check=True).stdout
    assert "STACK:0 " in usage
    registers = int(usage.split("REG:")[1].split()[0])
    assert registers * THREADS <= 65_536


@needs_triton
@pytest.mark.parametrize("paired", [False, True])
def test_words_are_asked_for_before_the_last_ones_are_written(paired: bool) -> None:
    code = compile_kernel(HOPPER, paired)
    loop = code.assembly.split("\n$L__BB0_2:")[1].split("bra")[0]
    kinds = re.findall(r"(ld|st)\.global", loop)
    assert kinds == sorted(kinds)
    assert {"ld", "st"} == set(kinds)


@needs_triton
@pytest.mark.parametrize("paired", [False, True])
def test_the_kernel_takes_the_parameters_that_it_is_launched_with(paired: bool) -> None:
    """Three arrays and a count, then at most two pointers to scratch memory that it has no need of."""
    parameters = re.findall(r"\.param \.(\w+)", compile_kernel(HOPPER, paired).assembly)
    assert parameters[:4] == ["u64", "u64", "u64", "u32"]
    assert set(parameters[4:]) <= {"u64"}
    assert len(parameters) <= 6


@needs_triton
def test_a_device_that_triton_does_not_know_is_a_device_error() -> None:
    with pytest.raises(DeviceError, match="compute capability 1 "):
        compile_kernel(1, True)


@pytest.mark.skipif(HAS_TRITON, reason="triton is installed")
def test_without_triton_there_is_a_device_error_that_says_so() -> None:
    with pytest.raises(DeviceError, match="triton"):
        compile_kernel(HOPPER, True)
