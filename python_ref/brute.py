"""Interactions by enumerating every coalition: the definition itself, for small games."""

import math
from collections.abc import Callable

import torch
from torch import Tensor


def max_mean_value(s: Tensor, col_s: Tensor, inside: Tensor) -> Tensor:
    """Values [K] of the max-mean game for coalitions `inside` [K, M + N] (bool; regions first, then phrases)."""
    M = s.shape[0]
    pair = inside[:, :M, None] & inside[:, None, M:]
    rows = s.masked_fill(~pair, -torch.inf).amax(-1).masked_fill(~inside[:, :M], 0).sum(-1) / inside[:, :M].sum(-1)
    cols = col_s.masked_fill(~pair, -torch.inf).amax(-2).masked_fill(~inside[:, M:], 0).sum(-1) / inside[:, M:].sum(-1)
    return torch.where(inside[:, :M].any(-1) & inside[:, M:].any(-1), (rows + cols) / 2, torch.zeros_like(rows))


def pooled_cosine_value(a: Tensor, gram: Tensor, inside: Tensor) -> Tensor:
    """Values [K] of the pooled-cosine game for coalitions `inside` [K, n] (bool), of a [n] and G [n, n]."""
    T = inside.to(gram.dtype)
    value = (T @ a) / ((T @ gram) * T).sum(-1).sqrt()
    return torch.where(inside.any(-1), value, torch.zeros_like(value))


def late_interaction_value(s: Tensor, inside: Tensor) -> Tensor:
    """Values [K] of the late-interaction game with a fixed text for coalitions `inside` [K, n] (bool), of s [n, N]."""
    mean = (inside.to(s.dtype) @ s.amax(-1)) / inside.sum(-1)
    best = s.masked_fill(~inside.unsqueeze(-1), -torch.inf).amax(1).mean(-1)
    return torch.where(inside.any(-1), (mean + best) / 2, torch.zeros_like(mean))


def coalition_law(outside: int, index: str, p: float) -> Tensor:
    """Probability [2^outside] of every coalition T of the outside players: size uniform and T uniform given its size
    (Shapley), or every player with probability p (Banzhaf)."""
    size = subsets(outside).sum(-1)
    if index == "banzhaf":
        by_size = [p**k * (1 - p) ** (outside - k) for k in range(outside + 1)]
    else:
        by_size = [1 / ((outside + 1) * math.comb(outside, k)) for k in range(outside + 1)]
    return torch.tensor(by_size, dtype=torch.float64)[size]


def subsets(n: int) -> Tensor:
    """All subsets of n players as bool [2^n, n]."""
    return (torch.arange(2**n).unsqueeze(-1) >> torch.arange(n)) & 1 == 1


def interaction(
    value: Callable[[Tensor], Tensor], n: int, coalition: list[int], index: str = "shapley", p: float = 0.5
) -> Tensor:
    """I(S) = E_T[ v(T+S) - sum_{i in S} v(T+i) + (|S|-1) v(T) ] (LOUPE section 3.1), S = `coalition` of n players."""
    rest = [i for i in range(n) if i not in coalition]
    T = torch.zeros(2 ** len(rest), n, dtype=torch.bool)
    T[:, rest] = subsets(len(rest))

    def joined(players: list[int]) -> Tensor:
        with_players = T.clone()
        with_players[:, players] = True
        return value(with_players)

    gain = joined(coalition) - sum(joined([i]) for i in coalition) + (len(coalition) - 1) * value(T)
    return (coalition_law(len(rest), index, p) * gain).sum()


def pairwise_interactions(
    scores: Tensor, col_scores: Tensor | None = None, *, index: str = "shapley", p: float = 0.5
) -> Tensor:
    """All region-phrase interactions [M, N] of one small problem (M + N up to about 14), in float64."""
    s = scores.double()
    c = s if col_scores is None else col_scores.double()
    M, N = s.shape
    value = lambda T: max_mean_value(s, c, T)  # noqa: E731
    rows = [[interaction(value, M + N, [i, M + j], index, p) for j in range(N)] for i in range(M)]
    return torch.stack([torch.stack(row) for row in rows])
