"""shapley_values, and pairwise_interactions with pairs="all", beside their peers."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bench.bench_pairwise import DEVICES, SIDES, measure, threads  # noqa: F401
from loupe_ext import pairwise_interactions, shapley_values
from python_ref import brute
from python_ref import pairwise as pairwise_reference
from python_ref import sides as reference
from tests.samples import random_pairs

SIZES = {"16x16": (1024, 16, 16), "16x32": (512, 16, 32), "49x30": (256, 49, 30), "64x64": (128, 64, 64)}
GAMES = ("max-mean", "maxsim")


def reference_values(s: Tensor, game: str) -> Tensor:
    return torch.cat(reference.sides(s, order=1, game=game), 1)


def reference_pairs(s: Tensor, game: str) -> Tensor:
    regions, phrases = reference.sides(s, order=2, game=game)
    cross = pairwise_reference.pairwise_interactions(s, game=game)
    return torch.cat([torch.cat([regions, cross], 2), torch.cat([cross.mT, phrases], 2)], 1)


def values(s: Tensor, game: str, backend: str = "auto") -> Tensor:
    return torch.cat(shapley_values(s, game=game, backend=backend), 1)


def pairs(s: Tensor, game: str, backend: str = "auto") -> Tensor:
    return pairwise_interactions(s, game=game, pairs="all", backend=backend)


OPS = {"values": (reference_values, values), "all pairs": (reference_pairs, pairs)}


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("device", "side"), SIDES)
def test_batch(benchmark, threads, device, side, op, game, size, direction):  # noqa: F811
    threads(2 if "2 threads" in side else 1)
    place = "cpu" if device == "cpu" else "cuda"
    s = random_pairs(*SIZES[size]).float().to(place)
    if side == "reference":
        s = s[: len(s) // 8]  # it takes that much longer
    s.requires_grad_(direction == "backward")
    by_reference, by_us = OPS[op]
    compute = partial(by_reference, game=game) if side == "reference" else partial(by_us, game=game, backend=device)
    out = compute(s)
    grad = torch.randn_like(out)
    exact = by_reference(s[:8].detach().double(), game=game).float()
    torch.testing.assert_close(out[:8].detach(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    info = {"op": f"{op}, {game}", "size": size, "side": side, "direction": direction, "pairs": s.numel()}
    if direction == "forward":
        measure(benchmark, lambda: compute(s), device, rounds=7, **info)
    else:
        measure(benchmark, lambda: torch.autograd.grad(out, s, grad, retain_graph=True), device, rounds=7, **info)


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("index", ["SV", "SII"])
def test_shapiq(benchmark, threads, index, game):  # noqa: F811
    """The field's exact computer, on the same game of six regions and six phrases; its answer is compared with ours."""
    shapiq = pytest.importorskip("shapiq")
    threads(1)
    n = 6
    s = random_pairs(1, n, n)[0]
    value = brute.maxsim_value if game == "maxsim" else partial(brute.max_mean_value, s)

    class LateInteraction(shapiq.Game):
        def __init__(self) -> None:
            super().__init__(n_players=2 * n, normalize=False)

        def value_function(self, coalitions):
            return value(s, torch.from_numpy(coalitions)).numpy()

    order = 1 if index == "SV" else 2
    exact = lambda: shapiq.ExactComputer(n_players=2 * n, game=LateInteraction())(index=index, order=order)  # noqa: E731
    result = benchmark.pedantic(exact, rounds=3)
    op = "values" if index == "SV" else "all pairs"
    info = {"op": f"{op}, {game}", "size": f"{n}x{n}", "direction": "shapiq", "device": "cpu", "pairs": s.numel()}
    benchmark.extra_info.update(info, side="shapiq", version=shapiq.__version__)
    if index == "SV":
        got, want = torch.tensor([result[(i,)] for i in range(2 * n)]), torch.cat(shapley_values(s, game=game))
    else:
        players = range(2 * n)
        pair = lambda i, j: 0.0 if i == j else result[(min(i, j), max(i, j))]  # noqa: E731
        got = torch.tensor([[pair(i, j) for j in players] for i in players])
        want = pairwise_interactions(s, game=game, pairs="all")
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)  # it keeps float32


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize("op", OPS)
def test_beside_shapiq(benchmark, threads, op, game):  # noqa: F811
    threads(1)
    s = random_pairs(4096, 6, 6)
    info = {"op": f"{op}, {game}", "size": "6x6", "direction": "shapiq", "pairs": s.numel()}
    measure(benchmark, lambda: OPS[op][1](s, game=game), "cpu", side="loupe_ext", **info)
