"""Exact interactions within one side (regions, or phrases), in plain PyTorch: orders 1 (values) and 2 (pairs).

Both games are sums over lines. A direction has M lines of N entries, lines and entries being players, and its value
is the mean, over the lines in the coalition, of the largest entry in it. The max-mean game is half its rows and half
its columns; MaxSim, sum_{j in T} max_{i in T} s_ij, is a sum of games of one line each, its columns: for these M = 1.

Draw p, keep every other player with probability p, q = 1 - p. The r-th largest entry of a line is the coalition's
maximum with probability p q^(r-1), so with a line sorted in descending order, x_1 >= .. >= x_N,

    line value        sum_r g_r x_r - sum_{other lines} sum_r h_r x'_r
    entry value       sum_lines H(x),       H(x_k) = H(x_{k+1}) + (x_k - x_{k+1}) g_k,       H(x_N) = x_N g_N
    pair of lines     - sum_r c_r (x_r + x'_r) + sum_{other lines} sum_r d_r x''_r
    pair of entries   - sum_lines min(H(x), H(x')), with g_{k-1} in place of g_k (two entries have left the line)

where g, h, c, d are, integrated over p (Shapley) or at one p (Banzhaf), p q^(r-1) times

    g   E[1 / (1 + Bin(M-1))]                  h   E[1{B > 0} / (1 + B)] / (M-1),            B = Bin(M-1)
    c   E[1 / ((1 + B)(2 + B))], B = Bin(M-2)  d   2 E[1{B > 0} / ((1 + B)(2 + B))] / (M-2)
"""

import torch
from torch import Tensor

from python_ref.pairwise import line_weights, problems


def side_weights(M: Tensor, N: Tensor, width: int, p: float | None, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """What sorted places carry, [B, 1, width] each: in their own line's sum, in the other lines', in the slope of H."""
    g, h = line_weights(M, N + 1, width, p)[2:]
    if order == 1:
        return g + h, h, g
    slope = torch.cat([g[..., :1], g[..., :-1]], -1)
    M = M.view(-1, 1, 1, 1).double()
    r = torch.arange(1, width + 1, device=M.device).view(1, 1, -1, 1).double()
    m = torch.arange(max(int(M.max()) - 1, 0) if M.numel() else 0, device=M.device).view(1, 1, 1, -1).double()
    if p is None:
        term, last = 1 / ((r + m) * (r + m + 1)), 1 / ((r + M - 2) * (r + M - 1)).clamp(min=1)
    else:
        q = torch.tensor(1 - p, dtype=torch.float64, device=M.device)
        term, last = p * q ** (r + m - 1), p * q ** (r + M - 3)
    mean = lambda x: (x * (m + 1) * (m < M - 1)).sum(-1) / (M * (M - 1)).squeeze(-1).clamp(min=1)  # noqa: E731
    inside = r.squeeze(-1) <= N.view(-1, 1, 1)
    c, d = mean(term) * inside, 2 * mean(term - last) * inside / (M.squeeze(-1) - 2).clamp(min=1)
    return c + d, d, slope


def _lines(s: Tensor, M: Tensor, N: Tensor, p: float | None, order: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of scores [B, M, N] whose padding is 0: own and other sums of every line [B, M], and H of every entry."""
    own, other, slope = (x.to(s.dtype) for x in side_weights(M, N, s.shape[-1], p, order))
    inside = torch.arange(s.shape[-1], device=s.device) < N.view(-1, 1, 1)
    order_of = s.masked_fill(~inside, -torch.inf).sort(dim=-1, descending=True, stable=True).indices
    x = s.gather(-1, order_of)
    drop = torch.where(torch.arange(s.shape[-1], device=s.device) == N.view(-1, 1, 1) - 1, x, x - x.roll(-1, -1))
    hinge = (torch.where(inside, drop, torch.zeros_like(drop)) * slope).flip(-1).cumsum(-1).flip(-1)
    return (own * x).sum(-1), (other * x).sum(-1), torch.empty_like(x).scatter(-1, order_of, hinge)


def _lower_of_pairs(s: Tensor, hinge: Tensor, chunk: int = 64) -> Tensor:
    """sum_lines min(H(x), H(x')) [B, N, N], where the lower of equal entries is the one of higher index."""
    N = s.shape[-1]
    index = torch.arange(N, device=s.device)
    total = torch.zeros(s.shape[0], N, N, dtype=s.dtype, device=s.device)
    for x, h in zip(s.split(chunk, 1), hinge.split(chunk, 1), strict=True):
        below = (x[..., :, None] < x[..., None, :]) | ((x[..., :, None] == x[..., None, :]) & (index[:, None] > index))
        total = total + torch.where(below, h[..., :, None], h[..., None, :]).sum(1)
    return total


def sides(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    order: int,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    game: str = "max-mean",
    index: str = "shapley",
    p: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Of scores [B, M, N]: values [B, M], [B, N] (order 1), or pairs [B, M, M], [B, N, N] (order 2)."""
    s, c, M, N, inside, finite = problems(scores, col_scores, region_lengths, phrase_lengths)
    prob = {"shapley": None, "banzhaf": p}[index]
    one, ones = torch.ones((), dtype=s.dtype, device=s.device), torch.ones_like(N)
    by_column = [c.mT, inside.mT, ones if game == "maxsim" else N, M]
    by_row = [s, inside, M, N]
    parts: list[Tensor] = [torch.zeros((), dtype=s.dtype, device=s.device)] * 2  # of the regions, of the phrases
    for of_line, of_entry, (x, real, lines, entries) in ((0, 1, by_row), (1, 0, by_column)):
        if game == "maxsim" and of_line == 0:
            continue
        own, other, hinge = _lines(x, lines, entries, prob, order)
        share = one if game == "maxsim" else one / 2
        own, other, hinge = own * share, other * share, torch.where(real, hinge * share, torch.zeros_like(hinge))
        every = torch.where(real.any(-1), other, torch.zeros_like(other)).sum(-1, keepdim=True)
        if order == 1:
            parts[of_line] = parts[of_line] + own - every
            parts[of_entry] = parts[of_entry] + hinge.sum(1)
        else:
            parts[of_line] = parts[of_line] + every[..., None] - own[..., :, None] - own[..., None, :]
            parts[of_entry] = parts[of_entry] - _lower_of_pairs(x, hinge)
    results = []
    for part, real in zip(parts, (inside.any(2), inside.any(1)), strict=True):
        if order == 2:
            real = real[..., :, None] & real[..., None, :]
            self_pair = torch.eye(real.shape[-1], dtype=torch.bool, device=s.device)
            part = torch.where(self_pair, torch.zeros_like(part), part)
        bad = ~finite.view(-1, *[1] * (real.dim() - 1))
        part = torch.where(bad, torch.full_like(part, torch.nan), part)
        results.append(torch.where(real, part, torch.zeros_like(part)).to(scores.dtype))
    return results[0], results[1]
