"""Speed on a GPU, by device events: `python -m bench.gpu_speed out.json [seconds]`; `make gpu-check` runs it.

Every row: median microseconds per call, and the share of a device-to-device copy that moves the bytes which the op must
(every input read and every result written once), timed in the same way. Input sets take turns, of twice the L2 cache
together. The file is rewritten after every row, and no row is begun after `seconds`.
"""

import dataclasses
import itertools
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import loupe_ext

PAIRS = ((65536, 16, 16), (65536, 16, 32), (16384, 49, 30), (8192, 64, 64), (262144, 12, 3), (1024, 196, 64))
HOLD = 40_000_000  # cycles, about 20 ms: the host queues all of a round meanwhile, so its cost is not in the times
Make = Callable[[], tuple[Callable[[], Any], list[Tensor]]]


@dataclasses.dataclass
class Case:
    """`make` gives a call on fresh inputs, and all tensors that it must read or write once."""

    op: str
    size: str
    direction: str
    backend: str
    make: Make


def _pairs(compute: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype, device: str, back: bool) -> Make:
    def make():
        s = torch.randn(shape, device=device, dtype=dtype).requires_grad_(back)
        out = compute(s)
        outs = out if isinstance(out, tuple) else (out,)
        if not back:
            return lambda: compute(s), [s, *outs]
        grads = [torch.randn_like(x) for x in outs]
        return lambda: torch.autograd.grad(outs, s, grads, retain_graph=True), [s, s, *grads]

    return make


def cases(backend: str, device: str, shrink: int = 1) -> Iterator[Case]:
    """All cases of a backend, the more important first; `shrink` divides the batch sizes."""

    def pairs(op: str, compute: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype) -> Iterator[Case]:
        B, M, N = shape
        size = f"{B} x {M} x {N}, {str(dtype).removeprefix('torch.')}"
        for direction in ("forward", "backward"):
            small = (max(B // shrink, 1), M, N)
            yield Case(op, size, direction, backend, _pairs(compute, small, dtype, device, direction == "backward"))

    def interactions(s: Tensor) -> Tensor:
        return loupe_ext.pairwise_interactions(s, backend=backend)

    for shape in PAIRS:
        yield from pairs("pairwise", interactions, shape, torch.float32)
    yield from pairs("pairwise", interactions, (8192, 64, 64), torch.bfloat16)
    for order in (1, 2):
        sides = lambda s, order=order: torch.ops.loupe.sides(s, None, None, None, None, "max-mean", order, backend)  # noqa: E731
        for shape in ((65536, 16, 32), (16384, 49, 30)):
            yield from pairs(f"sides, order {order}", sides, shape, torch.float32)

    credit = lambda s: loupe_ext.maxsim_credit(s, backend=backend)  # noqa: E731
    yield from pairs("maxsim_credit", credit, (512, 1030, 32), torch.float32)

    def region(game: str, words: int) -> Make:
        def make():
            B = max(256 // shrink, 1)
            patches, masks = torch.randn(B, 49, 256, device=device), torch.rand(B, 32, 49, device=device) < 0.3
            text = torch.randn(B, words, 256, device=device) if words else torch.randn(B, 256, device=device)
            options = {"game": game, "num_samples": 256, "backend": backend}
            call = lambda: loupe_ext.region_interactions(patches, text, masks, **options)  # noqa: E731
            return call, [patches, text, masks, *call()]

        return make

    yield Case("region, walks", "256 images, 49 patches, 32 regions", "forward", backend, region("pooled-cosine", 0))
    yield Case("region, late", "256 images, 49 patches, 30 words", "forward", backend, region("late-interaction", 30))

    def draw():
        call = lambda: loupe_ext.sample_coalitions(196, 2**20 // shrink, device=device, backend=backend)  # noqa: E731
        return call, [call()]

    def moments():
        coalitions = loupe_ext.sample_coalitions(196, max(2**18 // shrink, 1), device=device, backend=backend)
        values = torch.randn(3, len(coalitions), device=device)
        call = lambda: loupe_ext.coalition_moments(coalitions, values, 196, backend=backend)  # noqa: E731
        return call, [coalitions, values, call()]

    yield Case("coalitions", "2^20 of 196 players", "draw", backend, draw)
    yield Case("moments", "2^18 of 196 players, 3 channels", "forward", backend, moments)


def size_of(tensors: list[Tensor]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors)


def microseconds(
    calls: list[Callable[[], Any]],
    event: Callable[[], Any],
    hold: Callable[[], object],
    synchronize: Callable[[], object],
    rounds: int = 3,
    length: int = 8,
) -> float:
    """Median microseconds of a call on the device, the calls taking turns; each was called once before."""
    turns = itertools.cycle(calls)
    for _ in calls:
        next(turns)()
    times = []
    for _ in range(rounds):
        synchronize()
        hold()
        marks = [event() for _ in range(length + 1)]
        marks[0].record()
        for mark in marks[1:]:
            next(turns)()
            mark.record()
        synchronize()
        times += [1e3 * a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
    return statistics.median(times)


def host_microseconds(call: Callable[[], Any], synchronize: Callable[[], object], length: int = 20) -> float:
    """What a call costs the host, which does not wait for the device."""
    times = []
    for _ in range(length):
        synchronize()
        before = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - before))
    return statistics.median(times)


def measure(case: Case, cache: int, timed: Callable[[list[Callable[[], Any]]], float]) -> dict[str, Any]:
    """A case's row; `timed` gives the microseconds of calls that take turns, `cache` is the L2 cache in bytes."""
    first, tensors = case.make()
    count = min(max(2, math.ceil(2 * cache / size_of(tensors))), 16)
    calls = [first, *(case.make()[0] for _ in range(count - 1))]
    half = math.ceil(size_of(tensors) / 2)
    copies = [torch.empty(2, half, dtype=torch.uint8, device=tensors[0].device) for _ in range(count)]
    ours = timed(calls)
    copy = timed([lambda x=x: x[1].copy_(x[0]) for x in copies])
    row = {"op": case.op, "size": case.size, "direction": case.direction, "backend": case.backend}
    return {**row, "us": round(ours, 1), "copy_us": round(copy, 1), "of_copy": round(copy / ours, 4), "sets": count}


def write(path: Path, content: object) -> None:
    """Whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    os.replace(partial, path)


def main(path: Path, seconds: float) -> int:
    until = time.monotonic() + seconds
    event = lambda: torch.cuda.Event(enable_timing=True)  # noqa: E731
    hold = lambda: torch.cuda._sleep(HOLD)  # noqa: E731
    timed = lambda calls: microseconds(calls, event, hold, torch.cuda.synchronize)  # noqa: E731
    cache = getattr(torch.cuda.get_device_properties(0), "L2_cache_size", 50 << 20)
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"rows": rows, "host_us": {}, "complete": False}
    for backend in ("cuda", "triton"):  # Triton last: it compiles for seconds what it is asked for the first time
        small = torch.randn(4, 16, 32, device="cuda")
        call = lambda: loupe_ext.pairwise_interactions(small, backend=backend)  # noqa: B023, E731
        call()
        result["host_us"][backend] = round(host_microseconds(call, torch.cuda.synchronize), 1)
        for case in cases(backend, "cuda"):
            if time.monotonic() > until:
                write(path, result)
                return 1
            try:
                row = measure(case, cache, timed)
            except Exception as error:  # the other rows are still worth having
                row = {"op": case.op, "size": case.size, "direction": case.direction, "backend": backend}
                row["error"] = f"{type(error).__name__}: {error}"[:500]
            rows.append(row)
            print(" ".join(str(x) for x in row.values()), flush=True)
            write(path, result)
    result["complete"] = True
    write(path, result)
    return int(any("error" in x for x in rows))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 60))
