"""Pseudo boxes: where a phrase's patches interact the most, exactly, in the late-interaction game."""

import functools

import torch
from torch import Tensor

from loupe_ext.model.image import PATCH


def region_interactions(scores: Tensor, regions: Tensor) -> Tensor:
    """Shapley interaction I(R) of regions of patches, in the late-interaction game of one phrase, exactly.

    A coalition T of patches is worth v(T) = 1/2 [ mean of the scores of T + max of the scores of T ] (and 0 if empty).
    With k patches in R and m outside, mu_R and mu their mean scores, and u_1 >= ... >= u_m the outside scores,

        I(R) = 1/2 { mean_{c=0..m} [ k (mu_R - mu) (1/(c+k) - 1/(c+1)) - (k-1) mu 1{c=0} ]
                     + Psi(max_R s) - sum_{i in R} Psi(s_i) },   Psi(x) = x/(m+1) + sum_r max(x - u_r, 0) / (r (r+1)).

    Args:
        scores: [n, P] floating, of P patches with each of n phrases.
        regions: [n, C, P] booleans, the patches of C regions; none empty, none full.

    Returns:
        [n, C]. Patches of one object are substitutes, so I(R) is negative on objects.
    """
    size = scores.shape[1]
    order = scores.argsort(dim=1, descending=True, stable=True)
    u = scores.gather(1, order)[:, None]
    inside = regions.gather(2, order[:, None].expand_as(regions)).to(scores.dtype)
    outside = 1 - inside
    rank = outside.cumsum(2)  # of the outside patches; r
    above = torch.arange(1, size + 1, device=u.device, dtype=u.dtype) - rank  # how many of R are at least as good
    k, m = above[..., -1], rank[..., -1]
    in_sum = (inside * u).cumsum(2)
    total = in_sum[..., -1]
    mu_R, mu = total / k, (u.sum(2) - total) / m
    # sum_r / (r (r+1)) of max(x - u_r, 0), for the best x of R and, subtracted, for each x of R
    weight = outside / (rank * (rank + 1)).clamp(min=1)
    best = u.expand_as(inside).masked_fill(inside == 0, -torch.inf).amax(2)
    gain = (best[..., None] - u).clamp(min=0) - (in_sum - above * u)
    psi = (best - total) / (m + 1) + (weight * gain).sum(2)
    harmonic = _harmonic(size + 1, u)
    at = (k + m).round().long()
    drift = (harmonic[at] - harmonic[(k - 1).round().long()] - harmonic[(m + 1).round().long()]) / (m + 1)
    return (k * (mu_R - mu) * drift - (k - 1) * mu / (m + 1) + psi) / 2


def _harmonic(n: int, like: Tensor) -> Tensor:
    """H(0), ..., H(n)."""
    return torch.cat([like.new_zeros(1), (1 / torch.arange(1, n + 1, dtype=like.dtype, device=like.device)).cumsum(0)])


@functools.lru_cache
def _squares(smallest: int, largest: int) -> Tensor:
    """x0, y0 and side of every square that holds the patch 0, 0: [C, 3]."""
    sides = range(smallest, largest + 1)
    return torch.tensor([(-x, -y, side) for side in sides for y in range(side) for x in range(side)])


def interaction_boxes(heat: Tensor, smallest: int = 3, largest: int = 7) -> Tensor:
    """For each heat map [n, h, w] the square around its peak whose patches have the largest -I(R)/|R|: [n, 4] pixels.

    Squares of `smallest` to `largest` patches a side that hold the peak and lie in the image compete. The sign is turned because patches of one
    object are substitutes in this game (see `region_interactions`); dividing by the size makes squares of all sizes comparable.
    """
    n, h, w = heat.shape
    peak = heat.flatten(1).argmax(1)
    squares = _squares(smallest, min(largest, h, w)).to(heat.device)
    x0, y0 = (peak % w)[:, None] + squares[:, 0], (peak // w)[:, None] + squares[:, 1]
    x1, y1 = x0 + squares[:, 2], y0 + squares[:, 2]
    valid = (x0 >= 0) & (y0 >= 0) & (x1 <= w) & (y1 <= h)
    x, y = torch.arange(w, device=heat.device), torch.arange(h, device=heat.device)
    columns = (x >= x0[..., None]) & (x < x1[..., None])
    rows = (y >= y0[..., None]) & (y < y1[..., None])
    regions = (rows[..., None] & columns[..., None, :]).flatten(2)
    gain = -region_interactions(heat.flatten(1), regions) / regions.sum(2)
    best = gain.masked_fill(~valid, -torch.inf).argmax(1, keepdim=True)
    return torch.cat([edge.gather(1, best) for edge in (x0, y0, x1, y1)], 1) * float(PATCH)
