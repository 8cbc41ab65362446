"""Random coalitions beside what torch offers, and beside a copy of as many bytes."""

import pytest
import torch

from bench.bench_pairwise import DEVICES, measure, threads  # noqa: F401
from loupe_ext import sample_coalitions, sample_permutations, unpack_coalitions

SAMPLES = 1 << 16


def by_torch(players: int, device: str) -> torch.Tensor:
    """Uniform sizes, and the players of the smallest random numbers: masks, since torch packs no bits."""
    rank = torch.rand(SAMPLES, players, device=device).argsort(-1).argsort(-1)
    return rank < torch.randint(0, players + 1, (SAMPLES, 1), device=device)


@pytest.mark.parametrize("players", [49, 196, 1024])
@pytest.mark.parametrize("side", ["torch", "uniform", "banzhaf", "permutations", "copy"])
@pytest.mark.parametrize("device", DEVICES)
def test_draw(benchmark, threads, device, side, players):  # noqa: F811
    threads(1)
    place = "cpu" if device == "cpu" else "cuda"
    options = {"device": place, "backend": device}
    draw = {
        "torch": lambda: by_torch(players, place),
        "uniform": lambda: sample_coalitions(players, SAMPLES, **options),
        "banzhaf": lambda: sample_coalitions(players, SAMPLES, index="banzhaf", **options),
        "permutations": lambda: sample_permutations(players, SAMPLES, **options),
    }
    if side == "copy":
        source = torch.zeros(SAMPLES, (players + 63) // 64, dtype=torch.int64, device=place)
        call = source.clone
    else:
        call = draw[side]
    result = call()
    if side in ("torch", "uniform", "banzhaf"):
        masks = result if side == "torch" else unpack_coalitions(result, players)
        assert abs(masks.double().mean().item() - 0.5) < 0.01
    info = {"op": "coalitions", "size": str(players), "side": side, "direction": "draw", "pairs": SAMPLES}
    measure(benchmark, call, device, rounds=5, bytes=result.numel() * result.element_size(), **info)
