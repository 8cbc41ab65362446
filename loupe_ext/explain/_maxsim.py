"""Closed forms of the MaxSim game v(S) = sum_j max_{i in S} s_ij, v(empty) = 0: players i of a document, a fixed query.

Draw a coalition T of others by the index (Shapley: its size uniform, then T uniform of that size; Banzhaf: each with
probability p), and let Psi(a) = E[max(T + a) - max(T)]. A player's value is Psi of its score, with the other M - 1
drawn. The interaction of two is -Psi of the smaller of their scores, with the other M - 2 drawn, because
max(T + a + b) - max(T + a) - max(T + b) + max(T) = max(T) - max(T + min(a, b)).
"""

import numpy as np
import torch
from torch import Tensor


def credit(scores: Tensor, *, index: str, p: float, document_lengths: Tensor) -> Tensor:
    """Values of document tokens per query token, [B, M, N] of scores [B, M, N]; 0 beyond `document_lengths` [B]."""
    columns = _columns(scores, document_lengths)
    gains = _gains(columns, columns, document_lengths, 1, index, p)
    return gains.mT.to(scores.dtype).masked_fill(~within(document_lengths, scores.shape[1])[:, :, None], 0)


def token_pairs(scores: Tensor, tokens: Tensor, *, index: str, p: float, document_lengths: Tensor) -> Tensor:
    """Interactions of `tokens` [B, k] of each document, within its length: float64 [B, k, k], 0 on the diagonal.

    A NaN or infinite score makes all those of its document NaN.
    """
    columns = _columns(scores, document_lengths)
    chosen = columns.gather(2, tokens[:, None].expand(-1, columns.shape[1], -1))  # [B, N, k]
    gains = _gains(columns, chosen, document_lengths, 2, index, p)
    pairs = gains.new_zeros(*tokens.shape, tokens.shape[1])
    for a, x in zip(chosen.unbind(1), gains.unbind(1), strict=True):
        pairs -= torch.where(a[:, :, None] <= a[:, None], x[:, :, None], x[:, None])
    return pairs.masked_fill(torch.eye(tokens.shape[1], dtype=torch.bool, device=scores.device), 0)


def within(lengths: Tensor, M: int) -> Tensor:
    """[B, M], True within each document."""
    return torch.arange(M, device=lengths.device) < lengths[:, None]


def _columns(scores: Tensor, lengths: Tensor) -> Tensor:
    """[B, N, M], the least number of all beyond the document's length."""
    beyond = ~within(lengths, scores.shape[1])[:, None]
    return scores.mT.contiguous().masked_fill_(beyond, torch.finfo(scores.dtype).min)


def _gains(columns: Tensor, chosen: Tensor, lengths: Tensor, left_out: int, index: str, p: float) -> Tensor:
    """Psi, float64 [B, N, k], of the scores `chosen` [B, N, k] of columns [B, N, M].

    `left_out` of the M players are not drawn: the one whose score it is, and those known to be above.
    """
    length = lengths[:, None, None]
    ranks = torch.arange(1, columns.shape[2] + 1, device=columns.device)
    others, among = (length - left_out).clamp(min=0).double(), (ranks - left_out).clamp(min=1).double()
    if index == "shapley":
        empty, best = 1 / (others + 1), 1 / (among * (among + 1))  # that T is empty; that the best in it has this rank
    else:
        empty, best = (1 - p) ** others, p * (1 - p) ** (among - 1)
    best = torch.where(ranks <= length, best, 0)
    least_first = _ascending(-columns)
    rank = torch.searchsorted(least_first, -chosen).clamp_(max=len(ranks) - 1)  # of equals any: they add nothing
    total = (best * least_first).cumsum(2)
    below = total[:, :, -1:] - total.gather(2, rank)  # of the scores below, weighted; negative as those are
    share = best.cumsum(2).expand_as(total)
    gains = (empty + share[:, :, -1:] - share.gather(2, rank)) * chosen + below
    return torch.where(columns.isfinite().all(2, keepdim=True), gains, torch.nan)


def _ascending(x: Tensor) -> Tensor:
    if x.is_cuda:
        return x.sort(2).values
    return torch.from_numpy(np.sort(x.numpy(), 2))  # ten times as fast as torch's, which finds the order too
