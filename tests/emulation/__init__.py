"""Runs the project's .cu files on the CPU: compiled by g++ against cuda_on_cpu.h, with AddressSanitizer and UBSan."""

import fcntl
import functools
import hashlib
import math
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

_HERE = Path(__file__).parent
BUILT = _HERE.parent.parent / "build" / "emulation"
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_GAMES = ("max-mean", "maxsim")


@functools.cache
def build(source: Path) -> Path:
    """The program of one emulation source, kept in BUILT under a hash of all that it is made from."""
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, "-std=c++17", "-O1", "-g1", "-Wno-unknown-pragmas", "-fsanitize=address,undefined"]
    command += ["-fno-sanitize-recover=undefined", f"-I{_HERE}", str(source)]
    made_from = [[compiler, "--version"], [*command, "-E"]]  # the second is the source with every header in it
    texts = [repr(command).encode(), *(subprocess.run(x, check=True, capture_output=True).stdout for x in made_from)]
    program = BUILT / f"{source.stem}-{hashlib.sha256(b''.join(texts)).hexdigest()[:16]}"
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / f"{source.stem}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # of the test workers that want it, one compiles
        if not program.exists():
            for old in BUILT.glob(f"{source.stem}-*"):
                old.unlink()
            partial = BUILT / f"{source.stem}-partial"
            subprocess.run([*command, "-o", partial], check=True)
            partial.replace(program)
    return program


def run(source: Path, stdin: bytes, environment: dict[str, str] | None = None) -> bytes:
    done = subprocess.run(
        [build(source)],
        input=stdin,
        capture_output=True,
        env={**os.environ, "ASAN_OPTIONS": "detect_stack_use_after_return=0", **(environment or {})},
    )
    if done.returncode != 0:
        raise RuntimeError(f"the emulated kernel failed ({done.returncode}): {done.stderr.decode()[-4000:]}")
    return done.stdout


def pairwise(
    scores: Tensor,
    col_scores: Tensor | None = None,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    p: float | None = None,
    grad: Tensor | None = None,
    game: str = "max-mean",
    **environment: str,
) -> list[Tensor]:
    """The forward result, or with `grad` the gradients, of csrc/cuda/pairwise.cu on scores [B, M, N]."""
    tensors = [scores, col_scores, region_lengths, phrase_lengths, grad]
    out = _run("pairwise.cpp", tensors, p, [_GAMES.index(game), *(x is not None for x in tensors[1:])], environment)
    return list(out.view(-1, *scores.shape)) if scores.numel() else [torch.empty_like(scores)]


def banks(kernel: Callable[..., object], *arguments: object, **options: object) -> tuple[int, int]:
    """Shared-memory accesses of `pairwise` or `sides` on short lines, and their cycles with bank conflicts."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "banks")
        kernel(*arguments, **options, EMULATED_BANKS=str(file))
        accesses, cycles = map(int, file.read_text().split())
    return accesses, cycles


def sides(
    scores: Tensor,
    col_scores: Tensor | None,
    region_lengths: Tensor | None,
    phrase_lengths: Tensor | None,
    p: float | None,
    game: str,
    order: int,
    grads: tuple[Tensor, ...] | None = None,
    **environment: str,
) -> list[Tensor]:
    """The results for both sides, or with `grads` the scores' gradients, of csrc/cuda/sides.cu on scores [B, M, N]."""
    tensors = [scores, col_scores, region_lengths, phrase_lengths]
    head = [_GAMES.index(game), order, *(x is not None for x in tensors[1:]), grads is not None]
    out = _run("sides.cpp", [*tensors, *(grads or ())], p, head, environment)
    B, M, N = scores.shape
    if grads is not None:
        return list(out.view(-1, *scores.shape)) if scores.numel() else [torch.empty_like(scores)]
    shapes = [(B, n) if order == 1 else (B, n, n) for n in (M, N)]
    if not scores.numel():
        return [scores.new_zeros(shape) for shape in shapes]
    return [x.view(shape) for x, shape in zip(out.split([math.prod(x) for x in shapes]), shapes, strict=True)]


def maxsim_credit(
    scores: Tensor,
    document_lengths: Tensor | None,
    query_lengths: Tensor | None,
    p: float | None,
    grad: Tensor | None = None,
    **environment: str,
) -> Tensor:
    """The credit, or with `grad` the scores' gradient, of csrc/cuda/maxsim_credit.cu on scores [B, M, N]."""
    tensors = [scores, document_lengths, query_lengths, grad]
    out = _run("maxsim_credit.cpp", tensors, p, [x is not None for x in tensors[1:]], environment)
    return out.view(scores.shape)


def _run(
    source: str, tensors: list[Tensor | None], p: float | None, options: list[int], environment: dict[str, str]
) -> Tensor:
    scores = tensors[0]
    assert scores is not None
    head = np.array([*scores.shape, _DTYPES.index(scores.dtype), *options], dtype=np.int64)
    probability = np.array([math.nan if p is None else p])
    stdin = b"".join([head.tobytes(), probability.tobytes(), *(_bytes(x) for x in tensors if x is not None)])
    stdout = run(_HERE / source, stdin, environment)
    return torch.frombuffer(bytearray(stdout), dtype=scores.dtype) if stdout else scores.new_empty(0)


def _bytes(x: Tensor) -> bytes:
    return x.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""


def sample(what: str, *numbers: int) -> Tensor:
    """`torch.ops.loupe.sample` of csrc/cuda/coalitions.cu, from SampleCall's fields."""
    problems, samples, players = numbers[0], numbers[1], numbers[5]
    head = np.array([("coalitions", "permutations").index(what), *(int(x) for x in numbers)], dtype=np.int64)
    stdout = run(_HERE / "coalitions.cpp", head.tobytes())
    dtype, size = (torch.int64, (players + 63) // 64) if what == "coalitions" else (torch.int32, players)
    out = torch.frombuffer(bytearray(stdout), dtype=dtype) if stdout else torch.empty(0, dtype=dtype)
    return out.view(problems, samples, size)


def moments(
    coalitions: Tensor,
    values: Tensor,
    n: int,
    offsets: Tensor | None = None,
    grad: Tensor | None = None,
    **environment: str,
) -> Tensor:
    """The moments [C, G, n, n] of values [C, S], or with `grad` their gradient, of csrc/cuda/moments.cu."""
    groups = 1 if offsets is None else len(offsets) - 1
    numbers = [*values.shape, groups, n, _DTYPES.index(values.dtype), offsets is not None, grad is not None]
    head = np.array([int(x) for x in numbers], dtype=np.int64)
    given = (coalitions, offsets, values if grad is None else grad)
    stdin = b"".join([head.tobytes(), *(_bytes(x) for x in given if x is not None)])
    shape = (values.shape[0], groups, n, n) if grad is None else values.shape
    if values.numel() == 0 or groups == 0:
        return torch.zeros(shape, dtype=values.dtype)
    return torch.frombuffer(bytearray(run(_HERE / "moments.cpp", stdin, environment)), dtype=values.dtype).view(shape)


def region_walks(
    values: Tensor, gram: Tensor, regions: Tensor, orders: Tensor, prefixes: bool, **environment: str
) -> Tensor:
    """`torch.ops.loupe.region_walks` of csrc/cuda/region.cu."""
    (B, n), R, K = values.shape, regions.shape[1], orders.shape[1]
    head = np.array([B, R, K, n, prefixes, _DTYPES.index(values.dtype)], dtype=np.int64)
    stdin = b"".join([head.tobytes(), *(_bytes(x) for x in (values, gram, regions, orders))])
    stdout = run(_HERE / "region.cpp", stdin, environment)
    out = torch.frombuffer(bytearray(stdout), dtype=values.dtype) if stdout else values.new_empty(0)
    return out.view(B, R, K)


def region_maxima(scores: Tensor, order: Tensor, regions: Tensor, slopes: Tensor, lengths: Tensor) -> Tensor:
    """`torch.ops.loupe.region_maxima` of csrc/cuda/region_maxima.cu."""
    (B, N, n), R = scores.shape, regions.shape[1]
    head = np.array([B, R, N, n, _DTYPES.index(scores.dtype)], dtype=np.int64)
    stdin = b"".join([head.tobytes(), *(_bytes(x) for x in (scores, order, regions, slopes, lengths))])
    return torch.frombuffer(bytearray(run(_HERE / "region_maxima.cpp", stdin)), dtype=scores.dtype).view(B, R)
