"""pairwise_interactions beside its peers. `make bench` runs this and prints the table (bench/table.py)."""

import pytest
import torch

from loupe_ext import _C, pairwise_interactions
from python_ref import pairwise as reference
from tests.samples import random_pairs

SIZES = {"16x16": (2048, 16, 16), "16x32": (1024, 16, 32), "49x30": (1024, 49, 30), "64x64": (512, 64, 64)}
DEVICES = ["cpu", *(["cuda", "triton"] if torch.cuda.is_available() else [])]
SIDES = [(device, side) for device in DEVICES for side in ("reference", "loupe_ext")] + [
    ("cpu", "loupe_ext, 2 threads")
]


def scores_of(size: str) -> torch.Tensor:
    return random_pairs(*SIZES[size]).float()


def measure(benchmark, call, device: str, rounds: int = 15, **info) -> None:
    """Times a call, several of it per round; on a GPU each call waits for the device."""

    def timed():
        call()
        if device != "cpu":
            torch.cuda.synchronize()

    benchmark.extra_info.update(info, device=device)
    benchmark.pedantic(timed, rounds=rounds, iterations=1 if info["side"] == "reference" else 3, warmup_rounds=2)


@pytest.fixture
def threads():
    """Sets torch's threads, and sets them back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("direction", ["forward", "backward"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("device", "side"), SIDES)
def test_batch(benchmark, threads, device, size, side, direction):
    threads(2 if "2 threads" in side else 1)
    place = "cpu" if device == "cpu" else "cuda"
    s = scores_of(size).to(place).requires_grad_(direction == "backward")
    grad = scores_of(size).to(place)
    options = {} if side == "reference" else {"backend": device}
    compute = reference.pairwise_interactions if side == "reference" else pairwise_interactions
    out = compute(s, **options)
    exact = reference.pairwise_interactions(s[:16].detach().double()).float()
    torch.testing.assert_close(out[:16].detach(), exact, rtol=0, atol=1e-5 * exact.abs().max().item())
    info = {"op": "pairwise", "size": size, "side": side, "direction": direction, "pairs": s.numel()}
    if direction == "forward":
        measure(benchmark, lambda: compute(s, **options), device, **info)
    else:
        measure(benchmark, lambda: torch.autograd.grad(out, s, grad, retain_graph=True), device, **info)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("target", _C.cpu_targets())
def test_simd_target(benchmark, threads, target, size):
    threads(1)
    before, s = _C.cpu_target(), scores_of(size)
    _C.set_cpu_target(target)
    info = {"op": "pairwise", "size": size, "side": target, "direction": "target", "pairs": s.numel()}
    measure(benchmark, lambda: pairwise_interactions(s), "cpu", **info)
    _C.set_cpu_target(before)


@pytest.mark.parametrize("size", SIZES)
def test_one_problem(benchmark, threads, size):
    threads(1)
    s = scores_of(size)[:1].contiguous()
    benchmark.extra_info.update(
        op="pairwise", size=size, side="loupe_ext", direction="one", device="cpu", pairs=s.numel()
    )
    benchmark.pedantic(lambda: pairwise_interactions(s), rounds=50, iterations=200, warmup_rounds=3)


@pytest.mark.parametrize("players", [6, 8])
def test_shapiq(benchmark, threads, players):
    """The field's exact computer, on the same game; its answer is compared with ours."""
    shapiq = pytest.importorskip("shapiq")
    threads(1)
    s = random_pairs(1, players, players)[0]

    class MaxMean(shapiq.Game):
        def __init__(self) -> None:
            super().__init__(n_players=2 * players, normalize=False)

        def value_function(self, coalitions):
            from python_ref.brute import max_mean_value

            return max_mean_value(s, s, torch.from_numpy(coalitions)).numpy()

    def exact():
        return shapiq.ExactComputer(n_players=2 * players, game=MaxMean())(index="SII", order=2)

    result = benchmark.pedantic(exact, rounds=1 if players == 8 else 3)
    info = {
        "op": "pairwise",
        "size": f"{players}x{players}",
        "direction": "shapiq",
        "device": "cpu",
        "pairs": s.numel(),
    }
    benchmark.extra_info.update(info, side="shapiq", version=shapiq.__version__)
    got = torch.tensor([[result[(i, players + j)] for j in range(players)] for i in range(players)])
    torch.testing.assert_close(got.double(), pairwise_interactions(s), rtol=1e-6, atol=1e-7)  # it keeps float32


@pytest.mark.parametrize("players", [6, 8])
def test_beside_shapiq(benchmark, threads, players):
    threads(1)
    s = random_pairs(4096, players, players)
    info = {"op": "pairwise", "size": f"{players}x{players}", "direction": "shapiq", "pairs": s.numel()}
    measure(benchmark, lambda: pairwise_interactions(s), "cpu", side="loupe_ext", **info)
