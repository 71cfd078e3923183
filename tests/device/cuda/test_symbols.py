"""The declared types and numbers of the driver's interface, against the real header where it is at hand."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from asyncoffload.device.cuda import driver, symbols
from tests.device.cuda.fake import include_folders

SIZES = {
    "int": 4, "unsigned int": 4, "size_t": 8, "cuuint32_t": 4, "cuuint64_t": 8, "CUresult": 4, "CUdevice": 4,
    "CUdevice_attribute": 4, "CUdeviceptr": 8, "CUcontext": 8, "CUstream": 8, "CUevent": 8, "CUmodule": 8,
    "CUfunction": 8,
}  # fmt: skip

NUMBERS = {
    "CU_STREAM_NON_BLOCKING": symbols.STREAM_NON_BLOCKING,
    "CU_EVENT_BLOCKING_SYNC": symbols.EVENT_BLOCKING_SYNC,
    "CU_EVENT_DISABLE_TIMING": symbols.EVENT_DISABLE_TIMING,
    "CU_STREAM_CAPTURE_MODE_RELAXED": symbols.CAPTURE_MODE_RELAXED,
    "CU_MEMCPY_SRC_ACCESS_ORDER_STREAM": symbols.SOURCE_ORDER_STREAM,
    "CU_MEMCPY_SRC_ACCESS_ORDER_ANY": symbols.SOURCE_ORDER_ANY,
    "CU_MEMCPY_FLAG_PREFER_OVERLAP_WITH_COMPUTE": symbols.COPY_OVERLAPS_COMPUTE,
    "CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM": driver.HOST_POINTER_USABLE,
    "CUDA_ERROR_NOT_INITIALIZED": symbols.NOT_INITIALIZED,
    "CUDA_ERROR_OUT_OF_MEMORY": symbols.OUT_OF_MEMORY,
    "CUDA_ERROR_NO_DEVICE": symbols.NO_DEVICE,
    "CUDA_ERROR_INVALID_CONTEXT": symbols.INVALID_CONTEXT,
    "CUDA_ERROR_NOT_READY": symbols.NOT_READY,
    "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED": symbols.CAPTURE_UNSUPPORTED,
    "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT": symbols.CAPTURE_IMPLICIT,
    "CUDA_ERROR_CAPTURED_EVENT": symbols.CAPTURED_EVENT,
    "CUDA_ERROR_DEINITIALIZED": 4,
    "CUDA_ERROR_ECC_UNCORRECTABLE": 214,
    "CUDA_ERROR_ILLEGAL_ADDRESS": 700,
    "CUDA_ERROR_LAUNCH_TIMEOUT": 702,
    "CUDA_ERROR_CONTEXT_IS_DESTROYED": 709,
    "CUDA_ERROR_ASSERT": 710,
    "CUDA_ERROR_LAUNCH_FAILED": 719,
    "CUDA_ERROR_UNKNOWN": 999,
}

DECLARED = {**symbols.REQUIRED, **symbols.OPTIONAL, **symbols.THREAD_LOCAL}


@pytest.fixture(scope="module")
def header() -> Path:
    folders = include_folders()
    if not folders:
        pytest.skip("no cuda.h here")
    return folders[0] / "cuda.h"


@pytest.fixture(scope="module")
def text(header: Path) -> str:
    return re.sub(r"/\*.*?\*/", "", header.read_text(), flags=re.DOTALL)


def _sizes(parameters: str) -> list[int]:
    """Bytes of each parameter of a prototype."""
    sizes = []
    for parameter in parameters.split(","):
        words = " ".join(parameter.split())
        sizes.append(8 if "*" in words else SIZES[words.rsplit(" ", 1)[0]])
    return sizes


@pytest.mark.parametrize("exported", DECLARED)
def test_entry_points_are_declared_as_in_the_header(text: str, exported: str) -> None:
    mapped = re.search(rf"#define\s+(cu\w+)\s+(?:__CUDA_API_PT[SD][ZS]\()?{exported}\)?\s", text)
    name = mapped[1] if mapped else exported
    assert mapped or not re.search(rf"#define\s+{exported}\s", text), "the header maps it to a later version"
    prototype = re.search(rf"CUresult CUDAAPI {name}\((.*?)\);", text, re.DOTALL)
    assert prototype
    assert [ctypes.sizeof(kind) for kind in DECLARED[exported]] == _sizes(prototype[1])


def test_the_batched_copy_is_declared_with_nine_arguments(text: str) -> None:
    prototype = re.search(r"CUresult CUDAAPI cuMemcpyBatchAsync\(([^)]*failIdx[^)]*)\);", text)
    assert prototype
    assert [ctypes.sizeof(kind) for kind in symbols.MEMCPY_BATCH_TYPES] == _sizes(prototype[1])


def test_numbers_are_those_of_the_header(header: Path) -> None:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    claims = "".join(f'_Static_assert({name} == {number}, "");\n' for name, number in NUMBERS.items())
    command = [compiler, "-fsyntax-only", f"-I{header.parent}", "-xc", "-"]
    checked = subprocess.run(command, input=f"#include <cuda.h>\n{claims}", capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
