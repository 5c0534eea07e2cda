"""What programs say when they run out of memory, and what of it that means. Pure.

Only what has failed is looked at: a program that met the limit and went on with less has not run out of anything.
Words of a GPU's allocators come first, because some of them are also words of the host's (RMM's `MemoryError:
std::bad_alloc: out_of_memory: CUDA error`), and of two allocators that complain a GPU's is the smaller.
"""

from __future__ import annotations

import re

from msgspec import Struct

from schedd.core.model import Cause

#: Of a line that says it, so many characters are told.
LINE_CHARS_MAX = 300
#: Exceptions that are looked at of a chain or a group.
EXCEPTIONS_MAX = 10


class Symptom(Struct, frozen=True):
    """Why, and in which words."""

    cause: Cause
    line: str


#: One alternative for each library. Each has an example, with where it was seen, in tests/worker/test_symptoms.py.
_GPU = re.compile(
    r"""
    (?:CUDA|HIP|XPU)\ out\ of\ memory                            # PyTorch
    | torch\.(?:cuda\.)?OutOfMemoryError                         # the same, where its text was cut or changed
    | CUDA\ error:\ out\ of\ memory                              # PyTorch and llama.cpp: asynchronously
    | (?i:RESOURCE[_ ]EXHAUSTED):\ Out\ of\ memory               # JAX, XLA
    | (?:ResourceExhaustedError|RESOURCE_EXHAUSTED):\ failed\ to\ allocate\ memory     # TensorFlow 2, eager
    | OOM\ when\ allocating\ tensor(?!.*\bdevice:CPU)            # TensorFlow
    | cupy\.cuda\.memory\.OutOfMemoryError                       # CuPy
    | CUDA_ERROR_OUT_OF_MEMORY | cudaErrorMemoryAllocation       # the CUDA driver and runtime: numba, KeOps, RMM, XLA
    | HIP_ERROR_OutOfMemory | hipErrorOutOfMemory                # the same of ROCm
    """,
    re.VERBOSE,
)
_HOST = re.compile(
    r"""
    ^(?:\w+\.)*_?(?:Array)?MemoryError\b                         # the end of a Python traceback; NumPy's own
    | DefaultCPUAllocator:\ (?:can't\ allocate|not\ enough)\ memory                    # PyTorch
    | OOM\ when\ allocating\ tensor.*\bdevice:CPU                # TensorFlow
    | ^terminate\ called\ after\ throwing\ an\ instance\ of\ 'std::bad_alloc'          # C++
    """,
    re.VERBOSE,
)


def out_of_memory(text: str) -> Symptom | None:
    """Find in the last words of something that failed that it had no memory, and the first line that says so.

    text: the end of what a command wrote to stderr, or the names and texts of an exception.
    """
    lines = [line.strip() for line in text.splitlines()]
    for pattern, cause in ((_GPU, Cause.OOM_GPU), (_HOST, Cause.OOM_HOST)):
        for line in lines:
            if pattern.search(line):
                return Symptom(cause, line[:LINE_CHARS_MAX])
    return None


def names_and_texts(error: BaseException) -> str:
    """Write an exception, what is in it and what it was raised from as a traceback would end on them, a line each."""
    lines: list[str] = []
    waiting: list[BaseException | None] = [error]
    while waiting and len(lines) < EXCEPTIONS_MAX:
        seen = waiting.pop()
        if seen is None:
            continue
        kind = type(seen)
        module = "" if kind.__module__ in ("builtins", "__main__") else f"{kind.__module__}."
        lines.append(f"{module}{kind.__qualname__}: {_text_of(seen)}")
        waiting.append(seen.__cause__)
        if isinstance(seen, BaseExceptionGroup):
            waiting += reversed(seen.exceptions)
    return "\n".join(lines)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return ""
