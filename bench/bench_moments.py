"""coalition_moments beside a matrix product of torch's on masks, already unpacked and with the unpacking."""

import pytest
import torch

from bench.bench_pairwise import DEVICES, measure, threads  # noqa: F401
from loupe_ext import coalition_moments, sample_coalitions, unpack_coalitions

SAMPLES = 1 << 14


def by_torch(masks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return (masks * values[:, :, None]).transpose(1, 2) @ masks


def by_torch_backward(masks: torch.Tensor, grad: torch.Tensor) -> torch.Tensor:
    return ((masks @ grad) * masks).sum(-1)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("players", [16, 32, 64, 196])
@pytest.mark.parametrize("direction", ["moments", "moments, backward"])
@pytest.mark.parametrize("side", ["torch", "torch, unpacking", "loupe_ext"])
@pytest.mark.parametrize("device", DEVICES)
def test_moments(benchmark, threads, device, side, direction, players, channels):  # noqa: F811
    threads(1)
    place = "cpu" if device == "cpu" else "cuda"
    coalitions = sample_coalitions(players, SAMPLES, seed=1, device=place)
    values = torch.randn(channels, SAMPLES, generator=torch.Generator().manual_seed(0)).to(place).requires_grad_()
    unpack = lambda: unpack_coalitions(coalitions, players).float()  # noqa: E731
    masks = unpack()
    out = coalition_moments(coalitions, values, players, backend=device)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(place)
    ours = {
        "moments": lambda: coalition_moments(coalitions, values.detach(), players, backend=device),
        "moments, backward": lambda: torch.autograd.grad(out, values, grad, retain_graph=True)[0],
    }[direction]
    exact = {
        "moments": lambda x: by_torch(x, values.detach().to(x.dtype)),
        "moments, backward": lambda x: by_torch_backward(x, grad.to(x.dtype)),
    }[direction]
    want = exact(masks.double())
    torch.testing.assert_close(ours(), want.float(), rtol=0, atol=1e-5 * want.abs().max().item())
    call = {"torch": lambda: exact(masks), "torch, unpacking": lambda: exact(unpack()), "loupe_ext": ours}[side]
    info = {"op": "moments", "size": f"{players} x {channels}", "side": side, "direction": direction}
    measure(benchmark, call, device, pairs=SAMPLES * channels, **info)
