"""Interactions of the MaxSim game v(S) = sum_j max_{i in S} s_ij, v(empty) = 0: players i of a document, a fixed query.

Draw a coalition T of others by the index (Shapley: its size uniform, then T uniform of that size; Banzhaf: each with
probability p), and let Psi(a) = E[max(T + a) - max(T)]. The interaction of two is -Psi of the smaller of their scores,
with the other M - 2 drawn, because max(T + a + b) - max(T + a) - max(T + b) + max(T) is max(T) - max(T + min(a, b)).
"""

import numpy as np
import torch
from torch import Tensor


def token_pairs(scores: Tensor, tokens: Tensor, *, index: str, p: float, document_lengths: Tensor) -> Tensor:
    """Interactions of `tokens` [B, k] of each document, within its length: float64 [B, k, k], 0 on the diagonal.

    A NaN or infinite score makes all those of its document NaN.
    """
    if tokens.shape[1] < 2:
        return torch.zeros(*tokens.shape, tokens.shape[1], dtype=torch.float64, device=scores.device)
    columns = _columns(scores, document_lengths)
    chosen = columns.gather(2, tokens[:, None].expand(-1, columns.shape[1], -1))  # [B, N, k]
    gains = _gains(columns, chosen, document_lengths, index, p)
    pairs = gains.new_zeros(*tokens.shape, tokens.shape[1])
    for a, x in zip(chosen.unbind(1), gains.unbind(1), strict=True):
        pairs -= torch.where(a[:, :, None] <= a[:, None], x[:, :, None], x[:, None])
    return pairs.masked_fill(torch.eye(tokens.shape[1], dtype=torch.bool, device=scores.device), 0)


def _within(lengths: Tensor, M: int) -> Tensor:
    """[B, M], True within each document."""
    return torch.arange(M, device=lengths.device) < lengths[:, None]


def _columns(scores: Tensor, lengths: Tensor) -> Tensor:
    """[B, N, M], the least number of all beyond the document's length."""
    beyond = ~_within(lengths, scores.shape[1])[:, None]
    return scores.mT.contiguous().masked_fill_(beyond, torch.finfo(scores.dtype).min)


def _gains(columns: Tensor, chosen: Tensor, lengths: Tensor, index: str, p: float) -> Tensor:
    """Psi, float64 [B, N, k], of the scores `chosen` [B, N, k] of columns [B, N, M].

    Two of the M players are not drawn: the one whose score it is, and the other of the pair, which is above it.
    """
    length = lengths[:, None, None]
    ranks = torch.arange(1, columns.shape[2] + 1, device=columns.device)
    others, among = (length - 2).clamp(min=0).double(), (ranks - 2).clamp(min=1).double()
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
    finite = total[:, :, -1].isfinite().all(1)  # in which every score is
    return torch.where(finite[:, None, None], gains, torch.nan)


def _ascending(x: Tensor) -> Tensor:
    if x.is_cuda:
        return x.sort(2).values
    return torch.from_numpy(np.sort(x.numpy(), 2))  # ten times as fast as torch's, which finds the order too
