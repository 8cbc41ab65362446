"""The compiled kernels, and which backend serves a device."""

import contextlib
import os
from typing import Literal, get_args

import torch

import loupe_ext._C as _C

Backend = Literal["auto", "cpu", "cuda", "triton"]
BACKENDS = get_args(Backend)


def has_triton() -> bool:
    """Whether triton 3.2 or newer (the first with `tl.gather`) is installed."""
    try:
        import triton
    except ImportError:
        return False
    return tuple(int(x) for x in triton.__version__.split(".")[:2]) >= (3, 2)


def triton_is_interpreted() -> bool:
    """Triton runs kernels on CPU tensors when TRITON_INTERPRET=1 was set before it was imported."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def resolve_backend(backend: str, device: torch.device) -> str:
    """The backend that will run on `device`; raises for one that is unknown, absent, or of another device."""
    if not isinstance(backend, str) or backend not in BACKENDS:
        raise ValueError(f"backend: expected one of {', '.join(BACKENDS)}, got {backend!r}")
    if backend == "auto" and device.type == "cpu":
        return "cpu"
    if device.type not in ("cpu", "cuda", "meta"):
        raise RuntimeError(f"backend: expected tensors on cpu or cuda, got tensors on {device}")
    if backend == "auto":
        if device.type != "cuda":
            return "cpu"
        if _C.has_cuda:
            return "cuda"
        if has_triton():
            return "triton"
        raise RuntimeError(
            "backend: tensors are on cuda, and this build has no CUDA kernels and triton 3.2 is not installed; "
            "expected a build with nvcc (LOUPE_CUDA=ON) or `pip install 'loupe-ext[triton]'`"
        )
    if backend == "triton":
        if not has_triton():
            raise RuntimeError(
                "backend: 'triton' needs triton 3.2 or newer (`pip install 'loupe-ext[triton]'`), got none"
            )
        if device.type == "cpu" and not triton_is_interpreted():
            raise RuntimeError(
                "backend: 'triton' expected tensors on cuda, got tensors on cpu "
                "(set TRITON_INTERPRET=1 before Python starts to interpret kernels on the CPU)"
            )
        return backend
    if backend == "cuda" and not _C.has_cuda:
        raise RuntimeError(
            "backend: 'cuda' expected a build with CUDA kernels (LOUPE_CUDA=ON and nvcc), got one without"
        )
    if device.type not in (backend, "meta"):
        raise RuntimeError(f"backend: {backend!r} expected tensors on {backend}, got tensors on {device}")
    return backend


def address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def dtype_name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def on_device(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Makes a GPU the current one, for what launches on the current device."""
    if device.type != "cuda" or device.index == torch.cuda.current_device():
        return contextlib.nullcontext()
    return torch.cuda.device(device)


def current_stream(device: torch.device) -> int:
    """The address of the stream; as an object of torch.cuda it would take microseconds."""
    return torch._C._cuda_getCurrentRawStream(device.index)


def scratch_for(like: torch.Tensor, size: int) -> torch.Tensor | None:
    """Scratch memory of a kernel: few need any."""
    return like.new_empty(size, dtype=torch.uint8) if size else None


def dense_lengths(lengths: torch.Tensor | None) -> torch.Tensor | None:
    """Lengths as the kernels read them: int64 and contiguous. On a CPU, where they are checked, out of reach of other
    threads from then on; a GPU's kernels take no length on trust.
    """
    if lengths is None:
        return None
    if lengths.dtype != torch.int64:
        return lengths.to(torch.int64, memory_format=torch.contiguous_format)
    return lengths.contiguous() if lengths.is_cuda else lengths.clone(memory_format=torch.contiguous_format)
