"""Last words of programs without memory, as people have reported them."""

from __future__ import annotations

import pytest

from schedd.core.model import Cause
from schedd.worker.symptoms import LINE_CHARS_MAX, names_and_texts, out_of_memory

# Where each was seen is said above it, as the name of a public issue.
GPU = [
    # pytorch/pytorch#16417
    "RuntimeError: CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total capacity; 8.57 MiB already "
    "allocated; 9.28 GiB free; 4.68 MiB cached)",
    # the same issue, later
    "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 22.00 MiB. GPU 0 has a total capacity of 23.65 "
    "GiB of which 11.06 MiB is free. Including non-PyTorch memory, this process has 23.60 GiB memory in use.",
    # lllyasviel/FramePack#369
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 29.76 GiB",
    # huggingface/autotrain-advanced#737
    "torch.OutOfMemoryError: HIP out of memory. Tried to allocate 124.00 MiB. GPU 0 has a total capacity of 19.94 GiB "
    "of which 554.47 MiB is free.",
    # Comfy-Org/ComfyUI#12366
    "CUDA error: out of memory\nSearch for `cudaErrorMemoryAllocation' in https://docs.nvidia.com/cuda/",
    # patrickbryant1/AFProfile#8
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory while trying to allocate 4770354232 "
    "bytes.\nBufferAssignment OOM Debugging.\nBufferAssignment stats:\n             parameter allocation:  372.76MiB",
    # onpix/LLNeRF#9
    "jaxlib.xla_extension.XlaRuntimeError: RESOURCE_EXHAUSTED: Out of memory allocating 20029400304 bytes.",
    # google-deepmind/alphafold#197
    "RuntimeError: Resource exhausted: Out of memory while trying to allocate 12582912 bytes.",
    # the same issue, from XLA's log
    "2021-10-15 15:01:44.577626: E external/org_tensorflow/tensorflow/stream_executor/cuda/cuda_driver.cc:764] failed "
    "to alloc 2740606464 bytes unified memory; result: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    # tensorflow/models#5527
    "ResourceExhaustedError (see above for traceback): OOM when allocating tensor with shape[64,2016,9,9] and type "
    "float on /job:localhost/replica:0/task:0/device:GPU:0 by allocator GPU_0_bfc",
    # santi-pdp/segan#42
    "ResourceExhaustedError (see above for traceback): OOM when allocating tensor with shape[100,4096,32]",
    # faustomorales/keras-ocr#195
    "ResourceExhaustedError: failed to allocate memory [Op:AddV2]",
    # cupy/cupy#1912
    "cupy.cuda.memory.OutOfMemoryError: out of memory to allocate 1073741824 bytes (total 12373894656 bytes)",
    # rapidsai/dask-cuda#225
    "numba.cuda.cudadrv.driver.CudaAPIError: [2] Call to cuMemAlloc results in CUDA_ERROR_OUT_OF_MEMORY",
    # fwilliams/scalable-pytorch-sinkhorn#2
    "[KeOps] error: cuMemAlloc(&p_data, sizeof(TYPE *) * nargs) failed with error CUDA_ERROR_OUT_OF_MEMORY",
    # keras-team/keras#13889
    "E tensorflow/stream_executor/rocm/rocm_driver.cc:600] failed to allocate 890.06M (933298432 bytes) from device: "
    "HIP_ERROR_OutOfMemory",
]
HOST = [
    # mxfold/mxfold2#20
    "RuntimeError: [enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you tried "
    "to allocate 132426121216 bytes. Error code 12 (Cannot allocate memory)",
    # IvanoLauriola/MKLpy#27
    "DefaultCPUAllocator: not enough memory: you tried to allocate 5077901088 bytes.",
    # tensorflow/tensorflow#45238
    "OP_REQUIRES failed at cast_op.cc:109 : Resource exhausted: OOM when allocating tensor with shape[1,559,512,3] and "
    "type float on /job:localhost/replica:0/task:0/device:CPU:0 by allocator cpu",
    'Traceback (most recent call last):\n  File "<string>", line 1, in <module>\nMemoryError',
    # What NumPy 2.4.6 says to numpy.ones(1 << 48).
    "numpy._core._exceptions._ArrayMemoryError: Unable to allocate 2.00 PiB for an array with shape (281474976710656,) "
    "and data type float64",
    "terminate called after throwing an instance of 'std::bad_alloc'\n  what():  std::bad_alloc",
]
NEITHER = [
    "",
    "ValueError: bad learning rate",
    "torch.cuda.CudaError: CUDA error: device-side assert triggered",
    "grpc: RESOURCE_EXHAUSTED: Received message larger than max (5 vs. 4)",
    "RuntimeError: RESOURCE_EXHAUSTED: quota exceeded",
    "this program catches MemoryError and goes on",
    "MemoryErrors: 0",
    "Killed",
    "no memory of it",
]


@pytest.mark.parametrize("text", GPU)
def test_gpu(text: str) -> None:
    found = out_of_memory(f"epoch 3\n{text}\nexception ignored in: <generator>\n")
    assert found is not None
    assert found.cause is Cause.OOM_GPU
    assert found.line == text.split("\n")[0][:LINE_CHARS_MAX]


@pytest.mark.parametrize("text", HOST)
def test_host(text: str) -> None:
    found = out_of_memory(f"loading\n{text}\n")
    assert found is not None
    assert found.cause is Cause.OOM_HOST


@pytest.mark.parametrize("text", NEITHER)
def test_neither(text: str) -> None:
    assert out_of_memory(text) is None


def test_gpu_before_host_whichever_comes_first() -> None:
    """RMM raises a MemoryError for what the CUDA runtime refused."""
    said = "MemoryError: std::bad_alloc: out_of_memory: CUDA error at: device_memory.hpp:70: cudaErrorMemoryAllocation"
    found = out_of_memory(f"MemoryError\n{said}")
    assert found is not None
    assert (found.cause, found.line) == (Cause.OOM_GPU, said)


class OutOfMemoryError(MemoryError):
    """As CuPy has one."""


OutOfMemoryError.__module__ = "cupy.cuda.memory"


def test_exception_and_what_it_was_raised_from() -> None:
    error = RuntimeError("trial 7 failed")
    error.__cause__ = OutOfMemoryError("Out of memory allocating 25,600,000 bytes")
    assert names_and_texts(error).splitlines() == [
        "RuntimeError: trial 7 failed",
        "cupy.cuda.memory.OutOfMemoryError: Out of memory allocating 25,600,000 bytes",
    ]


def test_what_happened_to_be_handled_then_is_no_cause() -> None:
    """An exception that the failing one was not raised from may long have been dealt with."""
    error = ValueError("bad input")
    error.__context__ = MemoryError()
    assert names_and_texts(error) == "ValueError: bad input"


def test_exceptions_in_a_circle_and_without_a_text() -> None:
    class Shy(Exception):
        def __str__(self) -> str:
            raise ValueError

    error, other = Shy(), KeyError("x")
    error.__cause__, other.__cause__ = other, error
    assert len(names_and_texts(error).splitlines()) == 10
