"""Every implementation of the ops behind one call, chosen by name.

Triton's interpreter has to be switched on before triton is imported, so it has a test run of its own
(`TRITON_INTERPRET=1 pytest -k triton`). On a machine with a GPU, CUDA and Triton run there as well.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import pytest
import torch
from torch import Tensor

import loupe_ext
from loupe_ext import _C
from tests import emulation
from tests.samples import Pairs

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
CPU = [f"cpu-{target}" for target in _C.cpu_targets()]
GPU_DEVICE = os.environ.get("LOUPE_GPU_DEVICE", "cuda")  # "meta": tests/fake_gpu.py
GPU = ["cuda", "triton"] if torch.cuda.is_available() or GPU_DEVICE != "cuda" else []
BACKENDS = ["triton"] if INTERPRETED else [*CPU, "emulated-cuda", *GPU]
SLOW = ("emulated-cuda",) if not INTERPRETED else ("emulated-cuda", "triton")  # interpreted thread by thread
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 2e-2}

T = TypeVar("T")
# Of the problems below and of tests/test_moments.py, those that compiled Triton serves too (see `few`).
COMPILED = {
    "1x1",
    "9x5",
    "two-sided-banzhaf",
    "ragged",
    "ties",
    "maxsim-ragged",
    "no-regions",
    "49x30",
    "3x1024",
    "1024x5",
}
COMPILED |= {"65x66-two-sided", "one-player", "63-players", "several-parts", "200-players", "parts-of-groups"}

# Lines of every length that the CUDA kernels over sorted lines tell apart, beyond those of the small problems.
LONG = [(2, 2, 100), (1, 256, 1), (1, 1, 300), (1, 600, 2), (1, 2, 1024), (1, 1100, 1)]

every_backend = pytest.mark.parametrize("backend", BACKENDS)


def in_turn(problems: Callable[[bool], Iterable[Any]], start: int = 0) -> list[Any]:
    """Parameters (backend, problem, dtype): every problem in float64, and in other dtypes by turns.

    A kernel computes in float64 or in float32, and half types differ only in how they are loaded and stored. So the
    CPU's, whose vectors are as many lanes as the dtype allows, get both and one half type; the others, which cost a
    process or a compiled kernel each, get float64 and one of the other three. `problems` is given `small`.
    """
    halves, cases = (torch.float16, torch.bfloat16), []
    for backend in BACKENDS:
        served = problems(backend in SLOW)
        if backend == "triton" and not INTERPRETED:
            served = [x for x in served if str(x) in COMPILED]
        for turn, problem in enumerate(served, start):
            rest = [torch.float32, halves[turn % 2]] if backend in CPU else [(torch.float32, *halves)[turn % 3]]
            for dtype in (torch.float64, *rest):
                name = f"{backend}-{problem}-{str(dtype).removeprefix('torch.')}"
                cases.append(pytest.param(backend, problem, dtype, id=name))
    return cases


def device_of(backend: str) -> str:
    return GPU_DEVICE if backend in GPU else "cpu"


def few(backend: str, items: Iterable[T]) -> list[T]:
    """All items; the first and the last for compiled Triton, which needs seconds for every size and has been through
    all of them interpreted."""
    items = list(items)
    return [items[0], items[-1]] if backend == "triton" and not INTERPRETED else items


@contextlib.contextmanager
def selected(backend: str) -> Iterator[str]:
    """The name to pass as `backend=`, with the SIMD target of "cpu-<target>" switched on meanwhile."""
    if not backend.startswith("cpu-"):
        yield backend
        return
    before = _C.cpu_target()
    _C.set_cpu_target(backend.removeprefix("cpu-"))
    yield "cpu"
    _C.set_cpu_target(before)


def pairwise(backend: str, problem: Pairs, grad: Tensor | None = None) -> list[Tensor]:
    """The interactions and, with `grad`, the gradients of the scores (and column scores)."""
    inputs = [x for x in (problem.scores, problem.col_scores) if x is not None]
    if backend == "emulated-cuda":
        p = None if problem.index == "shapley" else problem.p
        arguments = (problem.scores, problem.col_scores, problem.region_lengths, problem.phrase_lengths, p)
        results = emulation.pairwise(*arguments, game=problem.game)
        return results if grad is None else [*results, *emulation.pairwise(*arguments, grad, game=problem.game)]
    device = device_of(backend)
    inputs = [x.to(device).detach().requires_grad_(grad is not None) for x in inputs]
    options = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in problem.options.items()}
    with selected(backend) as name:
        out = loupe_ext.pairwise_interactions(*inputs, backend=name, **options)  # type: ignore[arg-type]
        results = [out.detach()]
        if grad is not None:
            results += torch.autograd.grad(out, inputs, grad.to(device))
    return [x.cpu() for x in results]


def sides(backend: str, problem: Pairs, order: int, grads: tuple[Tensor, ...] | None = None) -> list[Tensor]:
    """Both sides' values (order 1) or pairs (order 2) and, with `grads`, the gradients of the scores (and columns')."""
    inputs = [x for x in (problem.scores, problem.col_scores) if x is not None]
    rest = None if problem.index == "shapley" else problem.p, problem.game, order
    lengths = problem.region_lengths, problem.phrase_lengths
    if backend == "emulated-cuda":
        arguments = (problem.scores, problem.col_scores, *lengths, *rest)
        results = emulation.sides(*arguments)
        return results if grads is None else [*results, *emulation.sides(*arguments, grads)]
    device = device_of(backend)
    inputs = [x.to(device).detach().requires_grad_(grads is not None) for x in inputs]
    with selected(backend) as name:
        on_device = [None if x is None else x.to(device) for x in lengths]
        cols = inputs[1] if len(inputs) == 2 else None
        out = torch.ops.loupe.sides(inputs[0], cols, *on_device, *rest, name)
        results = [x.detach() for x in out]
        if grads is not None:
            results += torch.autograd.grad(out, inputs, [x.to(device) for x in grads])
    return [x.cpu() for x in results]


def maxsim_credit(backend: str, problem: Pairs, grad: Tensor | None = None) -> list[Tensor]:
    """The credit and, with `grad`, the gradient of the scores; the regions are the document, the phrases the query."""
    lengths = problem.region_lengths, problem.phrase_lengths
    if backend == "emulated-cuda":
        arguments = (problem.scores, *lengths, None if problem.index == "shapley" else problem.p)
        return [emulation.maxsim_credit(*arguments, x) for x in ([None] if grad is None else [None, grad])]
    device = device_of(backend)
    scores = problem.scores.to(device).detach().requires_grad_(grad is not None)
    rows, cols = (None if x is None else x.to(device) for x in lengths)
    options: dict[str, Any] = {"index": problem.index, "p": problem.p}
    with selected(backend) as name:
        out = loupe_ext.maxsim_credit(scores, document_lengths=rows, query_lengths=cols, backend=name, **options)
        results = [out.detach()]
        if grad is not None:
            results += torch.autograd.grad(out, scores, grad.to(device))
    return [x.cpu() for x in results]


def gradcheck(backend: str, function: Callable[..., Any], inputs: Iterable[Tensor]) -> bool:
    """PyTorch's comparison of gradients with differences: of every entry or, for the interpreter, along one random
    direction, which every entry is part of. One by one its gradients are compared with the reference's.
    """
    return torch.autograd.gradcheck(function, tuple(inputs), fast_mode=backend in SLOW)


def assert_close(got: Tensor, want: Tensor, tolerance: float) -> None:
    """Relative to the largest wanted value; NaN only where NaN is wanted."""
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    error = (got.double() - want.double()).nan_to_num().abs()
    if error.numel():
        scale = want.double().nan_to_num().abs().max().item()
        assert error.max().item() <= tolerance * scale, (
            f"error {error.max().item() / scale if scale else error.max():.2e}"
        )


def region_walks(backend: str, values: Tensor, gram: Tensor, masks: Tensor, orders: Tensor, prefixes: bool) -> Tensor:
    packed = loupe_ext.pack_coalitions(masks)
    if backend == "emulated-cuda":
        return emulation.region_walks(values, gram, packed, orders, prefixes)
    tensors = (x.to(device_of(backend)) for x in (values, gram, packed, orders))
    with selected(backend) as name:
        return torch.ops.loupe.region_walks(*tensors, prefixes, name).cpu()


def region_maxima(
    backend: str, scores: Tensor, order: Tensor, masks: Tensor, slopes: Tensor, lengths: Tensor
) -> Tensor:
    arguments = scores, order, loupe_ext.pack_coalitions(masks), slopes, lengths
    if backend == "emulated-cuda":
        return emulation.region_maxima(*arguments)
    with selected(backend) as name:
        return torch.ops.loupe.region_maxima(*(x.to(device_of(backend)) for x in arguments), name).cpu()
