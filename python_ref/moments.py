"""Moments of coalitions: for every pair of players, the sum of the values of the coalitions that hold both.

M[c, g, i, j] = sum over the rows k of group g of values[c, k] where players i and j are in coalition k.
"""

import itertools

import torch
from torch import Tensor


def coalition_moments(coalitions: Tensor, values: Tensor, n: int, *, offsets: Tensor | None = None) -> Tensor:
    """Same contract as `loupe_ext.coalition_moments`; differentiable by autograd, float64-capable, any device."""
    wide = values if values.dtype in (torch.float32, torch.float64) else values.float()
    player = torch.arange(n, device=coalitions.device)
    holds = (coalitions[:, player // 64] >> player % 64) & 1 == 1
    pairs = holds.unsqueeze(-1) & holds.unsqueeze(-2)
    # A choice, not a product: a value that is not finite stays out of the pairs that its coalition does not hold.
    terms = torch.where(pairs, wide[..., None, None], torch.zeros((), dtype=wide.dtype, device=wide.device))
    if offsets is None:
        return terms.sum(-3).to(values.dtype)
    groups = [terms[..., a:b, :, :].sum(-3) for a, b in itertools.pairwise(offsets.tolist())]
    return (torch.stack(groups, -3) if groups else terms[..., :0, :, :]).to(values.dtype)
