"""late_interaction_similarity beside the plain einsum, forward and backward: time, and memory beyond the features."""

import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from bench.bench_pairwise import threads  # noqa: F401
from loupe_ext import late_interaction_similarity

M, N, D = 49, 32, 256


def problem(B: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (B, M, D), (B, N, D)
    return [normalize(torch.randn(*shape, generator=generator), dim=-1).requires_grad_() for shape in shapes]


def by_einsum(regions: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    similarity = torch.einsum("imd,cnd->imcn", regions, tokens)
    return similarity.max(3).values.mean(1), similarity.max(1).values.mean(2)


SIDES = {"einsum": by_einsum, "loupe_ext": late_interaction_similarity}


def step(side: str, inputs: list[torch.Tensor]) -> list[torch.Tensor]:
    """Both similarities, and the gradients of a weighted sum of them."""
    outputs = SIDES[side](*inputs)
    shares = torch.linspace(-1, 1, outputs[0].numel()).view_as(outputs[0])
    return [*outputs, *torch.autograd.grad(outputs, inputs, (shares, shares.T.contiguous()))]


def print_peak(side: str, B: int) -> None:
    """How far a step takes this process's memory, in bytes. ru_maxrss would start at what the parent process had."""
    torch.set_num_threads(1)
    step(side, problem(2))  # loads what is loaded once
    inputs, status = problem(B), Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is resident
    kilobytes = lambda: int(status.read_text().split("VmHWM:")[1].split()[0])  # noqa: E731
    before = kilobytes()
    step(side, inputs)
    print((kilobytes() - before) * 1024)


def peak(side: str, B: int) -> int:
    code = f"from bench.bench_late_interaction import print_peak; print_peak({side!r}, {B})"
    command = [sys.executable, "-c", code]
    root = Path(__file__).parents[1]
    return int(subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("B", [64, 128, 256])
@pytest.mark.parametrize("count", [1, 2], ids=["1-thread", "2-threads"])
def test_late(benchmark, threads, count, B):  # noqa: F811
    threads(count)
    inputs, of_einsum = problem(B), []
    for x, y in zip(step("loupe_ext", inputs), step("einsum", inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-5 * y.abs().max().item())

    def einsum_in_turn():
        start = time.perf_counter()
        step("einsum", inputs)
        of_einsum.append(time.perf_counter() - start)

    suffix = "" if count == 1 else ", 2 threads"
    info = {"op": "late", "device": "cpu", "direction": "both", "size": str(B), "side": f"loupe_ext{suffix}"}
    peaks = {side: peak(side, B) if count == 1 else None for side in SIDES}
    benchmark.pedantic(lambda: step("loupe_ext", inputs), setup=einsum_in_turn, rounds=5)
    others = {f"einsum{suffix}": (statistics.median(of_einsum), peaks["einsum"])}
    benchmark.extra_info.update(info, pairs=B * B, peak=peaks["loupe_ext"], others=others)
