"""From the embeddings of one side's coalitions to its players' vector-valued Banzhaf values; products of two sides'.

The p-Banzhaf values A_i = E[f(S + i) - f(S)] of an encoder f are linear in its embeddings, and so are their estimates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loupe_ext.explain.designs import Design, frequent

RIDGE = 1e-3  # of a player's variance, where a node has few coalitions to go by


@dataclass(frozen=True, eq=False)
class Linear:
    """q vectors of d numbers, each linear in K observations.

    Attributes:
        estimate: float64 [q, d].
        weights: [q, K] of the observations; residuals: [K, d], what is random of each, as large as its deviation is.
            None where the estimate is exact.
    """

    estimate: Tensor
    weights: Tensor | None = None
    residuals: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Fit:
    """One side at one p: the values of its players, q = n, and the mean embedding, q = 1."""

    players: Linear
    mean: Linear


def fit(design: Design, embeddings: Tensor, p: float) -> Fit:
    """From embeddings float64 [K, d] of a design's coalitions, where each player is there with probability p."""
    if design.kind == "folded":
        return _folded(design.masks, embeddings)
    x = design.masks.double()
    sizes, n = design.masks.sum(1), x.shape[1]
    if design.kind == "all":
        mean = _log_probability(sizes[None].double(), n, p).exp()
        others = _log_probability(sizes - x.T, n - 1, p).exp()  # of the coalition without the player itself
        return Fit(Linear((2 * x.T - 1) * others @ embeddings), Linear(mean @ embeddings))
    p = frequent(p)
    there = torch.tensor([math.comb(n, size) for size in range(n + 1)], dtype=torch.float64)
    share = _log_probability(sizes.double(), n, p).exp() * (there / design.counts)[sizes]
    share = share / share.sum()
    x = torch.cat([torch.ones_like(x[:, :1]), x - p], 1)
    weighted = (share[:, None] * x).T
    gram = weighted @ x
    gram.diagonal()[1:] += RIDGE * p * (1 - p)
    weights = torch.linalg.solve(gram, weighted)
    estimate = weights @ embeddings
    leverage = (x.T * weights).sum(0).clamp(max=1 - 1e-6)
    known = (1 - design.counts / there)[sizes]  # of a size that is there in full nothing is random
    residuals = (embeddings - x @ estimate) * (known.sqrt() / (1 - leverage))[:, None]
    return Fit(Linear(estimate[1:], weights[1:], residuals), Linear(estimate[:1], weights[:1], residuals))


def _log_probability(sizes: Tensor, n: int, p: float) -> Tensor:
    return sizes * math.log(p) + (n - sizes) * math.log1p(-p)


def _folded(masks: Tensor, embeddings: Tensor) -> Fit:
    """Least squares of the differences of complements, which hold nothing of even order; the mean of their means."""
    half = len(masks) // 2
    first, second = embeddings.split(half)
    x = 2 * masks[:half].double() - 1
    weights = torch.linalg.solve(x.T @ x, x.T)
    estimate = weights @ (first - second)
    leverage = (x.T * weights).sum(0)
    residuals = (first - second - x @ estimate) / (1 - leverage).sqrt()[:, None]
    even = (first + second) / 2
    mean = even.mean(0, keepdim=True)
    shares = torch.full((1, half), 1 / half, dtype=torch.float64)
    return Fit(Linear(estimate, weights, residuals), Linear(mean, shares, (even - mean) / math.sqrt(1 - 1 / half)))


def product(left: Sequence[Linear], right: Sequence[Linear], shares: Sequence[float]) -> tuple[Tensor, Tensor]:
    """The sum over nodes, by their shares, of the scalar products [q, r] of two sides' vectors; its standard errors.

    The delta method: an error of one side is multiplied by the other's estimate, whose own error makes that too large,
    by the product of both errors, which is subtracted where there is but one node.
    """
    value = sum(w * a.estimate @ b.estimate.T for w, a, b in zip(shares, left, right, strict=True))
    assert isinstance(value, Tensor)
    variance = _carried(left, right, shares) + _carried(right, left, shares).T
    if len(shares) == 1:
        variance = torch.maximum(variance - _of_both(left[0], right[0]), variance / 4)
    return value, variance.sqrt()


def _carried(own: Sequence[Linear], other: Sequence[Linear], shares: Sequence[float]) -> Tensor:
    """[q, r]: the variance that comes from the errors of `own`."""
    found = own[0].estimate.new_zeros(len(own[0].estimate), len(other[0].estimate))
    if own[0].weights is None:
        return found
    carried = [a.residuals @ b.estimate.T for a, b in zip(own, other, strict=True)]  # type: ignore[operator]
    if len(own) == 1:
        return own[0].weights.square() @ carried[0].square()
    for j in range(found.shape[1]):
        parts = (w * a.weights * c[:, j] for w, a, c in zip(shares, own, carried, strict=True))  # type: ignore[operator]
        found[:, j] = sum(parts).square().sum(1)  # type: ignore[union-attr]
    return found


def _of_both(left: Linear, right: Linear) -> Tensor:
    if left.weights is None or right.weights is None or left.residuals is None or right.residuals is None:
        return left.estimate.new_zeros(())
    return left.weights.square() @ (left.residuals @ right.residuals.T).square() @ right.weights.square().T
