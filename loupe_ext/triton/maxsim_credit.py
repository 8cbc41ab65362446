"""MaxSim's credit in Triton: a program takes a few columns of one problem, sorted as in pairwise.py."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from loupe_ext.triton.pairwise import Problem, find, places


@triton.jit(do_not_specialize=["lines", "entries", "p_bits", "log_q_bits"])
def _credit_kernel(
    scores,
    grad,
    out,
    bad,
    line_lengths,
    entry_lengths,
    lines,
    entries,
    p_bits,  # of float64, unused: the share needs log_q alone
    log_q_bits,
    SHAPLEY: tl.constexpr,
    MAXSIM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    LOG_P: tl.constexpr,
    LINES_P: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    compute = tl.float64 if DOUBLE else tl.float32
    programs = tl.cdiv(lines, ROWS)  # per problem
    b = (tl.program_id(0) // programs).to(tl.int64)
    M, N = tl.load(line_lengths + b).to(tl.int32), tl.load(entry_lengths + b).to(tl.int32)
    line, k = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    rank = k.to(tl.float64) + 1
    if SHAPLEY:
        share, before = 1 / rank, 1 / tl.maximum(rank - 1, 1.0)
    else:
        log_q = log_q_bits.to(tl.float64, bitcast=True)
        share, before = tl.exp((rank - 1) * log_q), tl.exp(tl.maximum(rank - 2, 0.0) * log_q)
    at = places(b, line, k, lines, entries, BY_COLUMN)
    inside = (line[:, None] < M) & (k[None, :] < N)
    x = tl.load(scores + at, mask=inside, other=0.0).to(compute)
    wrong = inside & ((x != x) | (tl.abs(x) == float("inf")))
    tl.store(bad + b, 1, mask=tl.max(wrong.to(tl.int32)) > 0)
    real = (k[None, :] < N) & (line[:, None] >= 0)
    x = tl.where(real, tl.where(wrong, 0.0, x), float("-inf"))
    x_sorted = tl.sort(x, 1, descending=True)
    place = find(x_sorted, x, ROWS, P, LOG_P)
    if BACKWARD:
        # Among equal scores the lower index comes first: sort the places with the indices that ask for them.
        slot = place * P + k[None, :]
        slot_sorted = tl.sort(slot, 1)
        g = tl.gather(tl.load(grad + at, mask=inside, other=0.0).to(compute), slot_sorted % P, 1)
        above = tl.cumsum(g, 1) - g
        step = tl.where(k > 0, before - share, 0.0)
        result = g * share.to(compute)[None, :] - above * step.to(compute)[None, :]
        result = tl.gather(result, find(-slot_sorted, -slot, ROWS, P, LOG_P), 1)
    else:
        x_sorted = tl.where(real, x_sorted, 0.0)
        x_below = tl.gather(x_sorted, tl.minimum(k + 1, P - 1)[None, :] + tl.zeros([ROWS, P], dtype=tl.int32), 1)
        drop = tl.where(k[None, :] + 1 < N, x_sorted - x_below, x_sorted)
        result = tl.cumsum(drop * share.to(compute)[None, :], 1, reverse=True)
        result = tl.gather(result, place, 1)
    tl.store(out + at, tl.where(inside, result, 0.0), mask=(line[:, None] < lines) & (k[None, :] < entries))


def run(grad: Tensor | None, scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None) -> Tensor:
    """The credit [B, M, N] of contiguous scores or, of a gradient of it, that of the scores."""
    problem = Problem(scores, rows_of, cols_of, p, "maxsim")
    out = torch.empty(scores.shape, dtype=problem.compute, device=scores.device)
    problem.launch(_credit_kernel, True, scores, scores if grad is None else grad, out, BACKWARD=grad is not None)
    return problem.finish(out)
