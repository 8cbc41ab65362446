"""Compiles Triton kernels for GPUs that are not there: the interpreter forgives what the compiler does not."""

import types
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.int32: "i32",
    torch.int64: "i64",
}


class _Recorder:
    """Stands in for a kernel and writes down how it is launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: list[dict[str, Any]] = []

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **kwargs: Any) -> None:
            self.launches.append({**dict(zip(self.kernel.arg_names, args, strict=False)), **kwargs})

        return launch


def compiled(
    module: types.ModuleType, name: str, call: Callable[[], object], capability: int = 90, others: Sequence[str] = ()
) -> list[Any]:
    """Every distinct launch of the kernel `module.name` that `call` makes, compiled for a GPU of the capability.

    `others` are kernels of the module that `call` launches too.
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(module, name)
    recorder = _Recorder(kernel)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, recorder)
        for other in others:
            patch.setattr(module, other, _Recorder(getattr(module, other)))
        call()
    results: dict[str, Any] = {}
    for launch in recorder.launches:
        constants = {p.name: launch[p.name] for p in kernel.params if p.is_constexpr or _is_folded(p, launch[p.name])}
        options = {k: v for k, v in launch.items() if k not in kernel.arg_names}
        signature = {k: "constexpr" if k in constants else _type(launch[k]) for k in kernel.arg_names}
        if (key := repr((signature, constants, options))) not in results:
            source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
            results[key] = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return list(results.values())


def _is_folded(parameter: Any, value: object) -> bool:
    """Whether the compiler takes an argument for a constant, as it does with integers that are 1."""
    return isinstance(value, int) and value == 1 and not parameter.do_not_specialize


def _type(value: object) -> str:
    if isinstance(value, torch.Tensor):
        return "*" + TYPES[value.dtype]
    assert isinstance(value, int), f"a launch argument of type {type(value).__name__} would not arrive exactly"
    return "i32" if -(2**31) <= value < 2**31 else "i64"
