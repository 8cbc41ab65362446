"""Interactions of the players of one side of a dual encoder with each other."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from loupe_ext.explain.designs import Design
from loupe_ext.explain.fits import Linear

MOST = 2**13  # coalitions: a matrix has as many rows and columns
GROUPS = 16  # of coalitions, for standard errors
DECAYS = (0.15, 0.3, 0.6, 1.0, 1.6, 2.5, 4.0)  # n times the kernel's ratio from one order of interactions to the next


def pairs_within(
    design: Design, embeddings: Tensor, means: Sequence[Linear], nodes: Sequence[float], shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """Interactions float64 [n, n] and their standard errors, from a side's embeddings and the other's mean at each p.

    f is fitted by a Gaussian process with the kernel prod_i (1 + rho z_i z'_i), z = 1 for a player there and -1 for one
    absent, with a linear part that is not shrunk (universal kriging), and rho of the least leave-one-out error. The
    interactions of a product are known at every p. Standard errors are of the jackknife, a sixteenth of the coalitions
    left out at a time; they do not know of what is shrunk away.
    """
    exact, n = design.kind == "all", design.masks.shape[1]
    _, first = np.unique(design.masks.numpy(), axis=0, return_index=True)
    masks, embeddings = design.masks[first], embeddings[first]
    z = 2 * masks.double() - 1
    rho, fits = (0.0, embeddings[None]) if exact else _krige(z, embeddings, _groups(masks))
    found, of_mean = embeddings.new_zeros(len(fits), n, n), embeddings.new_zeros(GROUPS, n, n)
    for p, share, mean in zip(nodes, shares, means, strict=True):
        each = torch.where(z > 0, z.new_tensor(p), z.new_tensor(1 - p)) if exact else 1 + rho * z * (2 * p - 1)
        part = (z if exact else 2 * rho * z) / each
        whole = share * each.log().sum(1).exp()

        def interactions(games: Tensor, part: Tensor = part, whole: Tensor = whole) -> Tensor:
            """[G, n, n] of games' coefficients [G, K]."""
            return torch.stack([(part.T * (whole * game)) @ part for game in games])

        found += interactions(fits @ mean.estimate[0])
        if mean.weights is not None and mean.residuals is not None:
            shifts = mean.weights[0][:, None] * mean.residuals
            shifts = torch.stack([shifts[group::GROUPS].sum(0) for group in range(GROUPS)])
            of_mean += interactions(shifts @ fits[0].T)
    variance = of_mean.square().sum(0)
    if len(fits) > 1:
        variance += (GROUPS - 1) / GROUPS * (found[1:] - found[:1]).square().sum(0)
    off = ~torch.eye(n, dtype=torch.bool)
    return found[0] * off, variance.sqrt() * off


def _inverse(z: Tensor, rho: float) -> Tensor:
    """[K, K] Q: Q Y are the kernel's coefficients of embeddings Y; over Q's diagonal, the leave-one-out errors."""
    agree = (z.shape[1] + z @ z.T) / 2
    kernel = (agree * math.log1p(rho) + (z.shape[1] - agree) * math.log1p(-rho)).exp()
    kernel.diagonal().mul_(1 + 1e-9)
    linear = torch.cat([torch.ones_like(z[:, :1]), z], 1)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    seen = inverse @ linear
    return inverse - seen @ torch.linalg.solve(linear.T @ seen, seen.T)


def _decay(z: Tensor, embeddings: Tensor) -> float:
    """The rho of least leave-one-out error, of 1,024 coalitions at most."""
    some = torch.linspace(0, len(z) - 1, min(len(z), 1024)).long().unique()
    losses = []
    for decay in DECAYS:
        inverse = _inverse(z[some], min(decay / z.shape[1], 0.95))
        losses.append((inverse @ embeddings[some] / inverse.diagonal()[:, None]).square().sum().item())
    return min(DECAYS[losses.index(min(losses))] / z.shape[1], 0.95)


def _groups(masks: Tensor) -> Tensor:
    """[K], of 0 to 15: a coalition and its complement, which err alike, are in one."""
    _, pair = np.unique((masks ^ ~masks[:, :1]).numpy(), axis=0, return_inverse=True)
    return torch.from_numpy(pair.reshape(-1)) % GROUPS


def _krige(z: Tensor, embeddings: Tensor, groups: Tensor) -> tuple[float, Tensor]:
    """rho; and [1 + GROUPS, K, d], the kernel's coefficients, of all coalitions and without each group (0 there)."""
    rho = _decay(z, embeddings)
    inverse = _inverse(z, rho)
    alpha = inverse @ embeddings
    fits = [alpha]
    for group in range(GROUPS):
        out = (groups == group).nonzero().flatten()
        fits.append(alpha - inverse[:, out] @ torch.linalg.solve(inverse[out][:, out], alpha[out]))
    return rho, torch.stack(fits)
