"""A surrogate game, fitted to evaluated coalitions, whose interactions are known."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loupe_ext.explain.plan import Plan, pattern_weights

MAX_FEATURES = 3000
SAMPLES_PER_FEATURE = 2


@dataclass(frozen=True)
class Surrogate:
    r"""The game h(T) = c_t + a0_T + a1_T / t + sum over pairs in T of (b0_ij + b1_ij / t), with t = |T|.

    Its means over the coalitions of a size that hold both, one or neither of two players are known: those of a
    uniform subset. Several games at once: C of them.
    """

    level: Tensor  # [C, n + 1]
    single: Tensor  # [C, 2, n]
    double: Tensor  # [C, 2, n, n], symmetric, 0 on the diagonal

    def values(self, masks: Tensor) -> Tensor:
        """[C, S] of coalitions bool [S, n]."""
        x = masks.to(self.level.dtype)
        size = masks.sum(1)
        total = self.level[:, size]
        for k, scale in enumerate(_scales(size)):
            pairs = ((x @ self.double[:, k]) * x).sum(-1) / 2
            total = total + scale * (self.single[:, k] @ x.T + pairs)
        return total

    def contributions(self, plan: Plan, t: int) -> Tensor:
        """[C, n, n]: what coalitions of size `t` contribute to the interactions; on the diagonal, to the values."""
        n = plan.n
        pairs, values = (weights[t].tolist() for weights in pattern_weights(plan))
        scales = [float(scale) for scale in _scales(torch.tensor([t]))]
        a, b = (
            (torch.tensor(scales, dtype=x.dtype) @ x.flatten(2)).view(x.shape[0], *x.shape[2:])
            for x in (self.single, self.double)
        )
        level, row, total = self.level[:, t, None], b.sum(2), b.sum((1, 2))[:, None] / 2
        diagonal = self.level.new_zeros(len(self.level), n)
        for weight, here in ((values[0], 1), (-values[1], 0)):
            if weight:
                p1, p2 = _inclusion(t - here, n - 1)
                rest = p1 * (a.sum(1)[:, None] - a) + p2 * (total - row)
                diagonal += weight * (level + rest + here * (a + p1 * row))
        # A mean over coalitions with both, one or neither of i and j is that of t - 2, t - 1 or t others. What their
        # weighted sum holds of the level, of the others' singles and pairs, and of i's pairs with the others:
        both, one, none = pairs
        (both1, both2), (one1, one2), (none1, none2) = (_inclusion(t - k, n - 2) for k in (2, 1, 0))
        singles, doubles = both * both1 - 2 * one * one1 + none * none1, both * both2 - 2 * one * one2 + none * none2
        towards = both * both1 - one * one1
        common = (both - 2 * one + none) * level + singles * a.sum(1)[:, None] + doubles * total
        side = (both - one - singles) * a + (towards - doubles) * row
        out = (both + doubles - 2 * towards) * b + side[:, :, None] + (side + common)[:, None]
        return torch.diagonal_scatter(out, diagonal, dim1=1, dim2=2)


def _scales(size: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(size), dtype=torch.float64), 1 / size.clamp(min=1).double()


def _inclusion(size: int, players: int) -> tuple[float, float]:
    """The probability that one player, or two, are in a uniform subset of `size` of `players`."""
    one = size / players if players else 0.0
    return one, one * (size - 1) / (players - 1) if players > 1 else 0.0


def fit(masks: Tensor, values: Tensor) -> Surrogate | None:
    """Least squares over coalitions bool [S, n] with values [C, S]; None if they are too few to fit anything.

    Pairs are left out where there are too few coalitions for them, and the terms in 1/t where too few for those. (Pairs
    without terms in 1/t make the estimate worse than no pairs do.)
    """
    n = masks.shape[1]
    i, j = torch.triu_indices(n, n, 1)
    sizes = masks.sum(1)
    present = torch.unique(sizes)
    for scales, pairs in ((2, True), (2, False), (1, False)):
        width = scales * (n + len(i) * pairs) + len(present)
        if width <= MAX_FEATURES and SAMPLES_PER_FEATURE * width <= len(masks):
            break
    else:
        return None
    inside = torch.cat([masks, masks[:, i] & masks[:, j]], 1) if pairs else masks
    gram, moments = _normal_equations(inside, sizes, present, values, scales)
    gram.diagonal().add_(1e-10 * gram.diagonal().mean())
    coefficients = torch.linalg.solve(gram, moments).T  # [C, width]
    q = inside.shape[1]
    level = values.new_zeros(len(values), n + 1)
    level[:, present] = coefficients[:, scales * q :]
    single = values.new_zeros(len(values), 2, n)
    double = values.new_zeros(len(values), 2, n, n)
    for k in range(scales):
        single[:, k] = coefficients[:, k * q : k * q + n]
        if pairs:
            double[:, k, i, j] = double[:, k, j, i] = coefficients[:, k * q + n : (k + 1) * q]
    return Surrogate(level, single, double)


def _normal_equations(
    inside: Tensor, sizes: Tensor, present: Tensor, values: Tensor, scales: int
) -> tuple[Tensor, Tensor]:
    """The Gram matrix of all features and their moments with the values, size by size.

    Within a size, a feature is a bit times a constant, so one product of bits serves all scales; counts below 2^24
    are exact in float32. `both[k]` is their sum over sizes, weighted by t^-k.
    """
    q = inside.shape[1]
    width = scales * q + len(present)
    gram = values.new_zeros(width, width)
    moments = values.new_zeros(width, len(values))
    both = values.new_zeros(2 * scales - 1, q, q)
    for s, size in enumerate(present.tolist()):
        here = sizes == size
        bits = inside[here].float()
        counts, totals = bits.T @ bits, bits.sum(0).double()
        with_values = bits.T.double() @ values[:, here].T
        at = scales * q + s
        factors = [float(scale) for scale in _scales(torch.tensor([size]))[:scales]]
        for k, total in enumerate(both):
            total.add_(counts, alpha=factors[-1] ** k)
        for k, f in enumerate(factors):
            rows = slice(k * q, (k + 1) * q)
            gram[rows, at] = gram[at, rows] = f * totals
            moments[rows] += f * with_values
        gram[at, at] = len(bits)
        moments[at] = values[:, here].sum(1)
    for k in range(scales):
        for m in range(scales):
            gram[k * q : (k + 1) * q, m * q : (m + 1) * q] = both[k + m]
    return gram, moments
