"""What bench/gpu_speed.py times: every op at the sizes that models have, the least work that it is, and its peer.

Operations are scalar ones of any kind: a comparison, an addition, a multiplication and addition. To sort a line of n
entries takes log2(n) comparisons an entry, to sweep it a few operations. A peer is what a user would write instead.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import loupe_ext

PAIRS = ((65536, 16, 16), (65536, 16, 32), (16384, 49, 30), (8192, 64, 64), (262144, 12, 3), (1024, 196, 64))
Call = Callable[[], Any]
Make = Callable[[], tuple[Call, list[Tensor]]]


@dataclasses.dataclass
class Case:
    """`make` gives a call on fresh inputs, and all tensors that it must read or write once; `peer` gives a call."""

    op: str
    size: str
    direction: str
    backend: str
    make: Make
    operations: float = 0
    peer: Callable[[], Call] | None = None

    @property
    def name(self) -> tuple[str, str, str]:
        return self.op, self.size, self.direction


def _sorted_both_ways(s: Tensor) -> object:
    return s.sort(1), s.sort(2)


def _sorted_columns(s: Tensor) -> object:
    return s.sort(1)


def _pairs(compute: Callable[..., Any], shape: tuple[int, ...], dtype: torch.dtype, device: str, back: bool) -> Make:
    def make() -> tuple[Call, list[Tensor]]:
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

    def pairs(
        op: str,
        compute: Callable[..., Any],
        shape: tuple[int, ...],
        per_entry: float,
        peer: Callable[[Tensor], object] = _sorted_both_ways,
        dtype: torch.dtype = torch.float32,
    ) -> Iterator[Case]:
        B, M, N = max(shape[0] // shrink, 1), *shape[1:]
        size = f"{' x '.join(map(str, shape))}, {str(dtype).removeprefix('torch.')}"

        def sort() -> Call:
            s = torch.randn(B, M, N, device=device, dtype=dtype)
            return lambda: peer(s)

        for direction in ("forward", "backward"):
            back = direction == "backward"
            make = _pairs(compute, (B, M, N), dtype, device, back)
            yield Case(op, size, direction, backend, make, B * M * N * per_entry, None if back else sort)

    def interactions(s: Tensor) -> Tensor:
        return loupe_ext.pairwise_interactions(s, backend=backend)

    # A sweep: the difference to the next entry; F and G, each a sum of such differences and a multiple of the entry.
    short = backend == "triton"  # which compiles for seconds what it is asked for the first time
    for dtype in (torch.float32,) if short else (torch.float32, torch.bfloat16):
        for shape in PAIRS:
            yield from pairs("pairwise", interactions, shape, 10 + math.log2(shape[1] * shape[2]), dtype=dtype)
    for B, M, N in () if short else ((65536, 16, 32), (8192, 64, 64)):
        rows, cols = (torch.randint(n // 2, n + 1, (max(B // shrink, 1),), device=device) for n in (M, N))
        ragged = lambda s, rows=rows, cols=cols: loupe_ext.pairwise_interactions(  # noqa: E731
            s, region_lengths=rows, phrase_lengths=cols, backend=backend
        )
        yield from pairs("pairwise, ragged", ragged, (B, M, N), 0.5625 * (10 + math.log2(M * N)))
    for order in (1, 2):
        sides = lambda s, order=order: torch.ops.loupe.sides(s, None, None, None, None, "max-mean", order, backend)  # noqa: E731
        for shape in ((65536, 16, 32), (16384, 49, 30))[short:]:
            # Of a sweep: the difference, H and two sums of the line; then the minima of all pairs of a side.
            per_entry = 8 + math.log2(shape[1] * shape[2]) + (shape[1] + shape[2] if order == 2 else 0)
            yield from pairs(f"sides, order {order}", sides, shape, per_entry)

    credit = lambda s: loupe_ext.maxsim_credit(s, backend=backend)  # noqa: E731
    yield from pairs("maxsim_credit", credit, (512, 1030, 32), 2 + math.log2(1030), _sorted_columns)

    B, n, R, K, words = max(256 // shrink, 1), 49, 32, 256, 30

    def region(game: str) -> Make:
        def make() -> tuple[Call, list[Tensor]]:
            patches, masks = torch.randn(B, n, 256, device=device), torch.rand(B, R, n, device=device) < 0.3
            late = game == "late-interaction"
            text = torch.randn(B, words, 256, device=device) if late else torch.randn(B, 256, device=device)
            options = {"game": game, "num_samples": K, "backend": backend}
            call = lambda: loupe_ext.region_interactions(patches, text, masks, **options)  # noqa: E731
            return call, [patches, text, masks, *call()]

        return make

    # A walk sums half of G for all regions. A region holds three tenths of the patches; whenever another joins, each of
    # them takes 10 operations: two sums of G, those of A, Q and floor, and of them the value less the one without it.
    walks = B * K * n * n * (0.5 + R * 0.3 * 0.7 * 10)
    size = "256 images, 49 patches, 32 regions"
    yield Case("region, walks", size, "forward", backend, region("pooled-cosine"), walks)
    late = B * words * n * (math.log2(n) + 4 * R) + B * n * words * 256
    yield Case("region, late", "256 images, 49 patches, 30 words", "forward", backend, region("late-interaction"), late)

    players, draws, drawn = 196, max(2**20 // shrink, 2), max(2**18 // shrink, 2)

    def draw() -> tuple[Call, list[Tensor]]:
        call = lambda: loupe_ext.sample_coalitions(players, draws, device=device, backend=backend)  # noqa: E731
        return call, [call()]

    def shuffle() -> Call:
        sizes = torch.randint(players + 1, (draws, 1), device=device)
        return lambda: torch.rand(draws, players, device=device).argsort(1) < sizes

    # Of a pair of samples one is drawn: a quarter of the players on average, each with a quarter of Philox's 10 rounds.
    yield Case("coalitions", "2^20 of 196 players", "draw", backend, draw, draws / 2 * players / 4 * 20, shuffle)

    def moments() -> tuple[Call, list[Tensor]]:
        coalitions = loupe_ext.sample_coalitions(players, drawn, device=device, backend=backend)
        values = torch.randn(3, drawn, device=device)
        call = lambda: loupe_ext.coalition_moments(coalitions, values, players, backend=backend)  # noqa: E731
        return call, [coalitions, values, call()]

    def products() -> Call:
        held, values = torch.rand(drawn, players, device=device).round(), torch.randn(3, drawn, 1, device=device)
        return lambda: [(held * x).T @ held for x in values]

    # A coalition of uniform size holds a third of all pairs on average, half of them twice.
    size = "2^18 of 196 players, 3 channels"
    yield Case("moments", size, "forward", backend, moments, 3 * drawn * players**2 / 6, products)
