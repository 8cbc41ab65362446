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
    floor = 4 * len(a) * torch.finfo(gram.dtype).eps * (T @ gram.diagonal())  # python_ref/region.py says why
    return (T @ a) / torch.maximum(((T @ gram) * T).sum(-1), floor + torch.finfo(gram.dtype).tiny).sqrt()


def late_interaction_value(s: Tensor, inside: Tensor) -> Tensor:
    """Values [K] of the late-interaction game with a fixed text for coalitions `inside` [K, n] (bool), of s [n, N]."""
    mean = (inside.to(s.dtype) @ s.amax(-1)) / inside.sum(-1)
    best = s.masked_fill(~inside.unsqueeze(-1), -torch.inf).amax(1).mean(-1)
    return torch.where(inside.any(-1), (mean + best) / 2, torch.zeros_like(mean))


def coalition_weights(outside: int, index: str, p: float) -> Tensor:
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


def _outside(n: int, coalition: list[int]) -> Tensor:
    """Every T outside a coalition of n players, [2^(n - |S|), n]."""
    rest = [i for i in range(n) if i not in coalition]
    T = torch.zeros(2 ** len(rest), n, dtype=torch.bool)
    T[:, rest] = subsets(len(rest))
    return T


def _joined(T: Tensor, players: list[int]) -> Tensor:
    with_players = T.clone()
    with_players[:, players] = True
    return with_players


def interaction(
    value: Callable[[Tensor], Tensor], n: int, coalition: list[int], index: str = "shapley", p: float = 0.5
) -> Tensor:
    """I(S) = E_T[ v(T+S) - sum_{i in S} v(T+i) + (|S|-1) v(T) ] (LOUPE section 3.1), S = `coalition` of n players."""
    T = _outside(n, coalition)
    joined = lambda players: value(_joined(T, players))  # noqa: E731
    gain = joined(coalition) - sum(joined([i]) for i in coalition) + (len(coalition) - 1) * value(T)
    return (coalition_weights(n - len(coalition), index, p) * gain).sum()


def player_value(
    value: Callable[[Tensor], Tensor], n: int, player: int, index: str = "shapley", p: float = 0.5
) -> Tensor:
    """E_T[ v(T+i) - v(T) ], the Shapley or Banzhaf value of one of n players."""
    T = _outside(n, [player])
    return (coalition_weights(n - 1, index, p) * (value(_joined(T, [player])) - value(T))).sum()


def maxsim_value(s: Tensor, inside: Tensor) -> Tensor:
    """The same for MaxSim, the sum over the coalition's phrases of their best region in it."""
    M = s.shape[0]
    best = s.masked_fill(~inside[:, :M, None], -torch.inf).amax(-2).masked_fill(~inside[:, M:], 0).sum(-1)
    return torch.where(inside[:, :M].any(-1), best, torch.zeros_like(best))


def _value(scores: Tensor, col_scores: Tensor | None, game: str) -> Callable[[Tensor], Tensor]:
    s = scores.double()
    if game == "maxsim":
        return lambda T: maxsim_value(s, T)
    return lambda T: max_mean_value(s, s if col_scores is None else col_scores.double(), T)


def pairwise_interactions(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    pairs: str = "cross",
    game: str = "max-mean",
    index: str = "shapley",
    p: float = 0.5,
) -> Tensor:
    """All region-phrase interactions [M, N], or those of all players [M + N, M + N] with zeros on the diagonal, of one
    small problem (M + N up to about 14), in float64."""
    M, N = scores.shape
    value, n = _value(scores, col_scores, game), M + N
    rows, cols = (range(M), range(M, n)) if pairs == "cross" else (range(n), range(n))
    pair = lambda i, j: interaction(value, n, [i, j], index, p) if i != j else torch.zeros((), dtype=torch.float64)  # noqa: E731
    return torch.stack([torch.stack([pair(i, j) for j in cols]) for i in rows])


def shapley_values(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    game: str = "max-mean",
    index: str = "shapley",
    p: float = 0.5,
) -> tuple[Tensor, Tensor]:
    """Values of the regions [M] and of the phrases [N] of one small problem, in float64."""
    M, N = scores.shape
    value = _value(scores, col_scores, game)
    values = torch.stack([player_value(value, M + N, i, index, p) for i in range(M + N)])
    return values[:M], values[M:]
