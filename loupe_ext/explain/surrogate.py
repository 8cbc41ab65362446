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
        for scale, a, b in zip(_scales(size), self.single.unbind(1), self.double.unbind(1), strict=True):
            total = total + scale * (a @ x.T)
            if b.any():  # with many players there are no pair terms, and their product takes long
                total = total + scale * ((x @ b) * x).sum(-1) / 2
        return total

    def contributions(self, plan: Plan, shares: Tensor) -> Tensor:
        """[C, n, n]: what coalitions contribute to the interactions; on the diagonal, to the values.

        `shares` [n + 1]: how much of each size.
        """
        n, sizes = plan.n, torch.arange(plan.n + 1)
        pairs, values = ((shares[:, None] * weights).T for weights in pattern_weights(plan))
        both, one, none = pairs
        out = (self.level @ (both - 2 * one + none))[:, None, None].repeat(1, n, n)
        diagonal = (self.level @ (values[0] - values[1]))[:, None].repeat(1, n)
        for scale, a, b in zip(_scales(sizes), self.single.unbind(1), self.double.unbind(1), strict=True):
            row, others = b.sum(2), a.sum(1)[:, None] - a
            total = row.sum(1)[:, None] / 2
            for weight, here in ((scale * values[0], 1), (-scale * values[1], 0)):
                p0, p1, p2 = (float(weight @ p) for p in _inclusion(sizes - here, n - 1))
                diagonal += p1 * others + p2 * (total - row) + here * (p0 * a + p1 * row)
            # A mean over coalitions with both, one or neither of i and j is that of t - 2, t - 1 or t others. What
            # their weighted sum holds of the others' singles and pairs, and of i's pairs with the others:
            (both0, both1, both2), (one0, one1, one2), (_, none1, none2) = (
                [float(scale * weight @ p) for p in _inclusion(sizes - k, n - 2)]
                for k, weight in ((2, both), (1, one), (0, none))
            )
            singles, doubles, towards = both1 - 2 * one1 + none1, both2 - 2 * one2 + none2, both1 - one1
            side = (both0 - one0 - singles) * a + (towards - doubles) * row
            side += (singles * a.sum(1)[:, None] + doubles * total) / 2
            out += (both0 + doubles - 2 * towards) * b + (side[:, :, None] + side[:, None])
        return torch.diagonal_scatter(out, diagonal, dim1=1, dim2=2)


def _scales(size: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ones(len(size), dtype=torch.float64), 1 / size.clamp(min=1).double()


def _inclusion(size: Tensor, players: int) -> tuple[Tensor, Tensor, Tensor]:
    """The probability that none, one player, or two given ones are in a uniform subset of `size` of `players`."""
    one = size.double() / max(1, players)
    return torch.ones_like(one), one, one * (size - 1) / max(1, players - 1)


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
    order = sizes.argsort(stable=True)
    parts = order.split(torch.bincount(sizes)[present].tolist())
    for s, (size, here) in enumerate(zip(present.tolist(), parts, strict=True)):
        bits = inside[here].float()
        counts, totals = (bits.T @ bits).double(), bits.sum(0).double()
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
