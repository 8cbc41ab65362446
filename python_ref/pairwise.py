"""Exact region-phrase interactions of the max-mean game, in plain PyTorch.

The late-interaction game of LOUPE (Li et al., NeurIPS 2022, section 3.3): regions i = 1..M and phrases j = 1..N play

    v(T) = 1/2 [ mean_{i in T} max_{j in T} s_ij + mean_{j in T} max_{i in T} s'_ij ]

(0 without a region or a phrase).

Draw p, keep every player outside the pair with probability p. Then the r-th largest other phrase of a row is the
coalition's maximum with probability p q^(r-1), q = 1 - p, and the mean is over 1 + Binomial(M-1, p) regions, so the
interaction of region i and phrase j is a weighted sum over the sorted row (and, mirrored, the sorted column):

    row part_ij = F_i(s_ij) - sum_{i' != i} G_i'(s_i'j),      interaction = (row part + column part) / 2
    F_i(x) = a x + sum_{j': s_ij' < x} (x - s_ij') w_r        r = rank of j' in its row without j
    G_i(x) = b x + sum_{j': s_ij' < x} (x - s_ij') v_r

with the weights of `line_weights`: integrated over p (Shapley) or at one p (Banzhaf).
"""

import torch
from torch import Tensor


def line_weights(M: Tensor, N: Tensor, width: int, p: float | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weights a, b [B, 1, 1] and w, v [B, 1, width] of M lines with N entries each; w[..., r - 1] belongs to rank r."""
    M, N = M.view(-1, 1, 1), N.view(-1, 1, 1)
    r = torch.arange(1, width + 1, device=M.device).view(1, 1, -1)
    t = torch.arange(int(M.max()) if M.numel() else 0, device=M.device).view(1, 1, -1)
    others = (M - 1).clamp(min=1)
    mean = lambda x: (x * (t < M)).sum(-1, keepdim=True) / M.clamp(min=1)  # noqa: E731
    if p is None:
        a = mean(1 / (N + t).clamp(min=1).double())
        b = mean(1 / (N + t).clamp(min=1).double() - 1 / (M + N - 1).clamp(min=1).double()) / others
        w = 1 / (r * (M + r)).double()
        v = 1 / (r * (M + r - 1) * (M + r)).double()
    else:
        q = torch.tensor(1 - p, dtype=torch.float64, device=M.device)
        in_mean = mean(q**t)
        lone = mean(q**t - q ** (M - 1)) / others
        a, b = q ** (N - 1) * in_mean, q ** (N - 1) * lone
        w, v = p * q ** (r - 1) * in_mean, p * q ** (r - 1) * lone
    zero = torch.zeros((), dtype=torch.float64, device=M.device)
    inside, alone = r < N, M < 2
    return a, torch.where(alone, zero, b), torch.where(inside, w, zero), torch.where(alone | ~inside, zero, v)


def _lines(s: Tensor, M: Tensor, N: Tensor, p: float | None) -> Tensor:
    """The row part [B, M, N] of scores whose padding is 0."""
    a, b, w, v = (x.to(s.dtype) for x in line_weights(M, N, s.shape[-1], p))
    inside = torch.arange(s.shape[-1], device=s.device) < N.view(-1, 1, 1)
    order = s.masked_fill(~inside, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    x = s.gather(-1, order)

    def hinge_sums(slope: Tensor, weight: Tensor) -> Tensor:
        # The entry at place k has rank k - 1 among the others of any entry above it, so it carries weight[k - 2].
        at = torch.nn.functional.pad(weight[..., :-1], (1, 0))
        below = lambda y: y.flip(-1).cumsum(-1).flip(-1) - y  # noqa: E731
        return torch.empty_like(x).scatter(-1, order, x * (slope + below(at)) - below(at * x))

    F, G = hinge_sums(a, w), hinge_sums(b, v)
    rows = (torch.arange(s.shape[-2], device=s.device) < M.view(-1, 1)).unsqueeze(-1)
    G = torch.where(rows, G, torch.zeros_like(G))
    return F + G - G.sum(-2, keepdim=True)


def problems(
    scores: Tensor, col_scores: Tensor | None, region_lengths: Tensor | None, phrase_lengths: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Wide scores and column scores [B, M, N] with 0 in the padding, lengths [B], what is inside, what is finite."""
    wide = scores.dtype if scores.dtype in (torch.float32, torch.float64) else torch.float32
    s = scores.to(wide)
    c = s if col_scores is None else col_scores.to(wide)
    if scores.dim() == 2:
        s, c = s[None], c[None]
    B, rows, cols = s.shape
    M = torch.full((B,), rows, device=s.device) if region_lengths is None else region_lengths.view(-1).long()
    N = torch.full((B,), cols, device=s.device) if phrase_lengths is None else phrase_lengths.view(-1).long()
    inside = (torch.arange(rows, device=s.device) < M.view(-1, 1)).unsqueeze(-1) & (
        torch.arange(cols, device=s.device) < N.view(-1, 1)
    ).unsqueeze(-2)
    s, c = (torch.where(inside, x, torch.zeros_like(x)) for x in (s, c))
    finite = (s.isfinite() & c.isfinite()).all(-1, keepdim=True).all(-2, keepdim=True)
    return s, c, M, N, inside, finite


def pairwise_interactions(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    game: str = "max-mean",
    index: str = "shapley",
    p: float = 0.5,
) -> Tensor:
    """`loupe_ext.pairwise_interactions` with pairs="cross"; differentiable by autograd, float64-capable, any device.

    MaxSim is a sum of games of one line each, its columns.
    """
    s, c, M, N, inside, finite = problems(scores, col_scores, region_lengths, phrase_lengths)
    prob = {"shapley": None, "banzhaf": p}[index]
    if game == "maxsim":
        columns = s.transpose(-1, -2)
        one, regions = (x.repeat_interleave(s.shape[2]) for x in (torch.ones_like(M), M))
        out = _lines(columns.flatten(0, 1).unsqueeze(1), one, regions, prob).view(columns.shape).transpose(-1, -2)
    else:
        both = _lines(s, M, N, prob) + _lines(c.transpose(-1, -2), N, M, prob).transpose(-1, -2)
        out = both / 2
    out = torch.where(finite, out, torch.full_like(out, torch.nan))
    return torch.where(inside, out, torch.zeros_like(out)).reshape(scores.shape).to(scores.dtype)
