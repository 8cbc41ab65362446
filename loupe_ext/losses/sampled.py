"""LOUPE's own way to the interactions of regions with phrases: Monte Carlo over coalitions."""

import torch
from torch import Tensor

from loupe_ext._checks import check_features, check_int, check_like, length_mask
from loupe_ext._dtypes import widened
from loupe_ext.ops import sample_coalitions, unpack_coalitions
from loupe_ext.ops.coalitions import MAX_PLAYERS

_ENTRIES = 2**18  # of all coalitions' score matrices that are held at a time: they stay in a core's cache


def sampled_interactions(
    rows: Tensor,
    columns: Tensor,
    num_samples: int = 64,
    seed: int = 0,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    *,
    first_problem: int = 0,
) -> Tensor:
    """The interactions of `pairwise_interactions`, estimated as LOUPE does (sections 3.2 to 3.4).

    For each region i and phrase j, the mean of v(T+i+j) - v(T+i) - v(T+j) + v(T) over random coalitions T of the other
    players, drawn under the Shapley index's distribution; unbiased. It is: p uniform on (0, 1), then each player with
    probability p. So a coalition of all players, without i and j and without players that a problem lacks, is such a T,
    and one draw serves all pairs of its problem.

    Args:
        rows, columns: [B, M, N] scores s and s' of the two directions of the max-mean game; floating dtypes, which
            promote.
        num_samples: K, coalitions per problem, 1 or more. The error falls as 1 / sqrt(K).
        seed: 0 to 2^64 - 1. The coalitions are a function of the seed and the problem's place in the batch.
        region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
        first_problem: where this part of a larger batch, of the same M and N, starts: problem b draws what problem
            `first_problem` + b of that batch draws.

    Returns:
        [B, M, N] in the scores' unit and promoted dtype (half types are computed in float32), 0 at the padding, without
        a gradient. Memory does not grow with K.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value; or M + N is above 1024.
    """
    check_features("rows", rows, "BMN")
    check_like("columns", columns, "rows", rows, dtype=False)
    num_samples, seed = check_int("num_samples", num_samples, 1, 2**31), check_int("seed", seed, 0, 2**64 - 1)
    B, M, N = rows.shape
    first_problem = check_int("first_problem", first_problem, 0, 2**62 - B)
    if M + N > MAX_PLAYERS:
        raise ValueError(f"rows: expected at most {MAX_PLAYERS} regions and phrases together, got {M + N}")
    there = length_mask("region_lengths", region_lengths, rows, 1)
    present = length_mask("phrase_lengths", phrase_lengths, rows, 2)
    pairs = there[:, :, None] & present[:, None]
    dtype, both = widened(rows.detach(), columns.detach())
    scores = torch.where(pairs, torch.stack(both), 0)
    players = torch.cat([there, present], 1)[:, None]
    total = torch.zeros_like(scores[0])
    samples = max(1, min(num_samples, _ENTRIES // (M * N)))
    problems = max(1, _ENTRIES // (M * N * samples))
    for b in range(0, B, problems):
        own = slice(b, b + problems)
        for k in range(0, num_samples, samples):
            drawn = sample_coalitions(
                M + N,
                min(samples, num_samples - k),
                len(total[own]),
                seed=seed,
                antithetic=False,
                first_problem=first_problem + b,
                first_sample=k,
                device=rows.device,
            )
            regions, phrases = (unpack_coalitions(drawn, M + N) & players[own]).split([M, N], 2)
            total[own] += _differences(scores[0, own], regions, phrases).sum(1)
            total[own] += _differences(scores[1, own].mT, phrases, regions).sum(1).mT
    return torch.where(pairs, total / (2 * num_samples), 0).to(dtype)


def _differences(scores: Tensor, inside: Tensor, columns: Tensor) -> Tensor:
    """Second differences of the mean, over the rows inside a coalition, of the largest of its columns.

    scores [B, M, N], inside bool [B, K, M], columns bool [B, K, N] -> [B, K, M, N], in each of them for the coalition
    without row i and column j.
    """
    scores = scores[:, None]
    held = scores.masked_fill(~columns[:, :, None], -torch.inf)
    best, winner = held.max(3, keepdim=True)
    second = held.scatter(3, winner, -torch.inf).amax(3, keepdim=True)
    columns_of = torch.arange(scores.shape[3], device=scores.device)
    others = torch.where(columns_of == winner, second, best)  # the largest without column j
    gain = torch.maximum(others, scores) - others.masked_fill(others == -torch.inf, 0)  # when j joins; no column is 0
    member = inside[..., None].to(scores.dtype)
    gains = (gain * member).sum(2, keepdim=True) - gain * member  # of the rows other than i
    count = member.sum(2, keepdim=True) - member
    return (gains + gain) / (count + 1) - gains / count.clamp(min=1)
