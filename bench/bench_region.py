"""region_interactions beside the torch reference: every region of every image walks 256 permutations."""

import pytest
import torch

from bench.bench_pairwise import DEVICES, measure, threads  # noqa: F401
from loupe_ext import boxes_to_regions, region_interactions, sample_permutations
from python_ref import region as reference
from tests.samples import random_pairs

WALKS = 256
SIZES = {"49 patches": (64, 7, 256), "196 patches": (8, 14, 768), "49 patches, d 1024": (64, 7, 1024)}
WORDS = 30


def problem(size: str, place: str, words: int | None = None) -> tuple[torch.Tensor, ...]:
    """Patches, text and 32 regions an image: boxes of a seventh to four sevenths of its side."""
    B, side, d = SIZES[size]
    random = torch.rand(2, B, 32, 2, generator=torch.Generator().manual_seed(0)) * side
    corner, extent = random[0] * 5 / 7, random[1] * 3 / 7 + side / 7
    regions = boxes_to_regions(torch.cat([corner, corner + extent], -1), side, side)
    text = random_pairs(B, words or 1, d, 1).float()
    return (
        random_pairs(B, side * side, d).float().to(place),
        (text if words else text[:, 0]).to(place),
        regions.to(place),
    )


def by_torch(patches: torch.Tensor, text: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """Image by image, which is faster than all at once: the walks of one fit the processor's caches."""
    orders = sample_permutations(patches.shape[1], WALKS, len(patches), device=patches.device)
    chunk = 1 if patches.device.type == "cpu" else 8
    parts = (x.split(chunk) for x in (*reference.pooled_cosine(patches, text), regions, orders))
    return torch.cat([reference.walk_values(*part).mean(-1) for part in zip(*parts, strict=True)])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("side", ["reference", "loupe_ext", "loupe_ext, 2 threads", "loupe_ext, 1024 walks"])
@pytest.mark.parametrize("device", DEVICES)
def test_pooled_cosine(benchmark, threads, device, side, size):  # noqa: F811
    if "2 threads" in side and device != "cpu":
        pytest.skip("threads are the CPU's")
    threads(2 if "2 threads" in side else 1)
    inputs = problem(size, "cpu" if device == "cpu" else "cuda")
    walks = 1024 if "1024" in side else WALKS
    compute = lambda x, t, r: region_interactions(x, t, r, num_samples=walks, backend=device)[0]  # noqa: E731
    if walks == WALKS:
        few = [x[:2] for x in inputs]
        torch.testing.assert_close(compute(*few), by_torch(*few), rtol=1e-4, atol=1e-5)
    steps = (inputs[2].shape[2] - inputs[2].sum(-1)).sum().item() * walks
    info = {"op": "region", "size": size, "side": side, "direction": "walk", "pairs": steps}
    if side == "reference":
        benchmark.extra_info.update(info, device=device)
        benchmark.pedantic(lambda: by_torch(*inputs), rounds=2)
    else:
        measure(benchmark, lambda: compute(*inputs), device, rounds=7, **info)


def exactly_by_torch(patches: torch.Tensor, words: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
    """All regions at once: their ranks along each word's sorted scores are a cumulative sum."""
    scores = patches @ words.transpose(1, 2)
    n, k = scores.shape[1], regions.sum(-1)
    best = scores.amax(-1, keepdim=True)
    inside = (regions.float() @ best)[..., 0] / k.clamp(min=1)
    outside = ((~regions).float() @ best)[..., 0] / (n - k).clamp(min=1)
    size, c = torch.arange(n + 1, device=k.device)[:, None], torch.arange(n + 1, device=k.device)
    spread = ((c <= n - size) * (size / (c + size).clamp(min=1) - size / (c + 1))).sum(-1) / (n + 1 - size[:, 0])
    mean = spread[k] * (inside - outside) - (k - 1) / (n - k + 1) * outside
    u, order = scores.sort(dim=1, descending=True)
    batch = torch.arange(len(order), device=k.device)[:, None, None]
    among = regions.transpose(1, 2)[batch, order]  # [B, n, N, R]
    slope = 1 / ((~among).cumsum(1) + 1)
    drop = torch.cat([u[:, :-1] - u[:, 1:], u[:, -1:]], 1).unsqueeze(-1)
    psi = (drop * slope).flip(1).cumsum(1).flip(1)
    highest = psi.gather(1, among.int().argmax(1, keepdim=True)).squeeze(1)
    maxima = (highest - (psi * among).sum(1)).mean(1)
    return torch.where(k < 2, 0, (mean + maxima) / 2)


@pytest.mark.parametrize("side", ["reference", "loupe_ext"])
@pytest.mark.parametrize("device", DEVICES)
def test_late_interaction(benchmark, threads, device, side):  # noqa: F811
    threads(1)
    inputs = problem("49 patches", "cpu" if device == "cpu" else "cuda", WORDS)
    ours = lambda *x: region_interactions(*x, game="late-interaction", backend=device)[0]  # noqa: E731
    few = [x[:2] for x in inputs]
    exact = reference.late_interactions(few[0] @ few[1].transpose(1, 2), few[2])
    for compute in (ours, exactly_by_torch):
        torch.testing.assert_close(compute(*few), exact, rtol=1e-4, atol=1e-4)
    info = {"op": "region", "size": f"49 patches, {WORDS} words", "side": side, "direction": "late", "pairs": 64 * 32}
    compute = exactly_by_torch if side == "reference" else ours
    measure(benchmark, lambda: compute(*inputs), device, rounds=7, **info)
