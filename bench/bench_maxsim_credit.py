"""maxsim_credit beside plain PyTorch: a query of 32 tokens and documents of 1030, as ColPali's pages, or of 180."""

import pytest
import torch

from bench.bench_pairwise import SIDES, measure, threads  # noqa: F401
from loupe_ext import maxsim_credit
from python_ref import maxsim_credit as reference
from tests.samples import random_pairs

SIZES = {"1030x32": (1, 1030, 32), "100 of 1030x32": (100, 1030, 32), "100 of 180x32": (100, 180, 32)}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("device", "side"), SIDES)
def test_batch(benchmark, threads, device, side, size, direction):  # noqa: F811
    threads(2 if "2 threads" in side else 1)
    s = random_pairs(*SIZES[size]).float().to("cpu" if device == "cpu" else "cuda")
    s.requires_grad_(direction == "backward")
    compute = reference.maxsim_credit if side == "reference" else lambda x: maxsim_credit(x, backend=device)
    out = compute(s)
    grad = torch.randn_like(out)
    exact = reference.maxsim_credit(s[:2].detach().double()).float()
    torch.testing.assert_close(out[:2].detach(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    info = {"op": "credit", "size": size, "side": side, "direction": direction, "pairs": s.numel()}
    if direction == "forward":
        measure(benchmark, lambda: compute(s), device, rounds=7, **info)
    else:
        measure(benchmark, lambda: torch.autograd.grad(out, s, grad, retain_graph=True), device, rounds=7, **info)
