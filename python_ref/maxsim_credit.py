"""The credit of a document's tokens for each query token of a MaxSim score, in plain PyTorch.

With the query fixed, v(S) = sum_j max_{i in S} s_ij (0 for no token) is a sum of games, one per column. A column in
descending order, s_(1) >= .. >= s_(M) and s_(M+1) = 0, is a sum of steps: max over S = sum_r (s_(r) - s_(r+1)) [S holds
one of the first r]. In the r-th, the first r tokens are alike and the others do nothing. So each of the r has 1/r of it
(Shapley), or what it adds alone, while the r - 1 others are absent: q^(r-1), q = 1 - p (p-weighted Banzhaf), and

    c_(k) = sum_{r >= k} (s_(r) - s_(r+1)) a_r,     a_r = 1/r or q^(r-1)
"""

import torch
from torch import Tensor

from python_ref.pairwise import problems


def maxsim_credit(
    scores: Tensor,
    *,
    document_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    index: str = "shapley",
    p: float = 0.5,
) -> Tensor:
    """Of scores [B, M, N] or [M, N]; differentiable by autograd, float64-capable, any device."""
    s, _, M, _, inside, finite = problems(scores, None, document_lengths, query_lengths)
    order = s.masked_fill(~inside, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    x, rank = s.gather(1, order), torch.arange(1, s.shape[1] + 1, device=s.device)[:, None]
    step = torch.where(rank == M.view(-1, 1, 1), x, x - x.roll(-1, 1))
    share = 1 / rank.to(s.dtype) if index == "shapley" else (1 - p) ** (rank - 1).to(s.dtype)
    step = torch.where(rank <= M.view(-1, 1, 1), step * share, torch.zeros_like(step))
    credit = torch.zeros_like(s).scatter(1, order, step.flip(1).cumsum(1).flip(1))
    credit = torch.where(finite, credit, torch.full_like(credit, torch.nan))
    return torch.where(inside, credit, torch.zeros_like(credit)).reshape(scores.shape).to(scores.dtype)
