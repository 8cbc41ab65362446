"""Exact pair interactions in Triton: a program takes a few lines (rows or columns) of one problem.

The line's scores are sorted, scans give F and G (python_ref/pairwise.py) at every sorted place, and each entry finds
its place by binary search: no index has to travel through the sort, and every dtype takes the same way.
"""

import math
import struct
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

MAX_LINE = 4096  # entries; the sort of a line is unrolled


@triton.jit
def line_means(M, N, t, log_q, SHAPLEY: tl.constexpr):
    """What all lines share: the means of its terms over t = 0 .. M-1, and an empty line's factor (float64)."""
    m, n = tl.maximum(M, 1).to(tl.float64), tl.maximum(N, 1).to(tl.float64)
    others = tl.maximum(m - 1, 1.0)
    if SHAPLEY:
        term = 1.0 / (n + t.to(tl.float64))
        last = 1.0 / (m + n - 1)
        empty = 1.0
    else:
        term = tl.exp(t.to(tl.float64) * log_q)
        last = tl.exp((m - 1) * log_q)
        empty = tl.exp((n - 1) * log_q)
    in_mean = tl.sum(tl.where(t < M, term, 0.0)) / m
    lone = tl.where(M > 1, tl.sum(tl.where(t < M, term - last, 0.0)) / (m * others), 0.0)
    return in_mean, lone, empty


@triton.jit
def rank_weights(M, r, p, log_q, in_mean, lone, SHAPLEY: tl.constexpr):
    """w and v (float64) of ranks r >= 1."""
    m = tl.maximum(M, 1).to(tl.float64)
    if SHAPLEY:
        w = 1.0 / (r * (m + r))
        v = tl.where(M > 1, 1.0 / (r * tl.maximum(m + r - 1, 1.0) * (m + r)), 0.0)
    else:
        w = p * tl.exp((r - 1) * log_q) * in_mean
        v = p * tl.exp((r - 1) * log_q) * lone
    return w, v


@triton.jit
def _line_weights(M, N, k, t, p, log_q, share, SHAPLEY: tl.constexpr):
    """a, b and, at the places k of a sorted line, w, v, w_below, v_below (float64); M lines of N entries."""
    in_mean, lone, empty = line_means(M, N, t, log_q, SHAPLEY)
    real = (k >= 1) & (k < N)
    w, v = rank_weights(M, tl.where(real, k.to(tl.float64), 1.0), p, log_q, in_mean, lone, SHAPLEY)
    w = tl.where(real, w, 0.0) * share
    v = tl.where(real, v, 0.0) * share
    w_below = tl.cumsum(w, 0, reverse=True) - w
    v_below = tl.cumsum(v, 0, reverse=True) - v
    return empty * in_mean * share, empty * lone * share, w, v, w_below, v_below


@triton.jit
def find(keys, wanted, ROWS: tl.constexpr, P: tl.constexpr, LOG_P: tl.constexpr):
    """The first place of every `wanted` in its descending row of `keys` [ROWS, P]."""
    place = tl.zeros([ROWS, P], dtype=tl.int32)
    step = P // 2
    for _ in range(LOG_P):
        probe = tl.gather(keys, place + (step - 1), 1)
        place = tl.where(probe > wanted, place + step, place)
        step = step // 2
    return place


@triton.jit
def places(b, line, k, lines, entries, BY_COLUMN: tl.constexpr):
    """Where entries k of lines are in a batch of matrices; a line's neighbours are known to be so when compiled."""
    if BY_COLUMN:
        at = line[:, None].to(tl.int64) + k[None, :] * lines
    else:
        at = line[:, None].to(tl.int64) * entries + k[None, :]
    return b * lines * entries + at


@triton.jit(do_not_specialize=["lines", "entries", "p_bits", "log_q_bits"])
def _lines_kernel(
    scores,
    grad,
    totals,
    f_out,
    g_out,
    bad,
    line_lengths,
    entry_lengths,
    lines,
    entries,
    p_bits,  # of float64: a float argument would arrive in float32
    log_q_bits,
    SHAPLEY: tl.constexpr,
    MAXSIM: tl.constexpr,
    BACKWARD: tl.constexpr,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    LOG_P: tl.constexpr,
    LINES_P: tl.constexpr,
):
    compute = tl.float64 if DOUBLE else tl.float32
    programs = tl.cdiv(lines, ROWS)  # per problem
    b = (tl.program_id(0) // programs).to(tl.int64)
    M = tl.load(line_lengths + b).to(tl.int32)
    N = tl.load(entry_lengths + b).to(tl.int32)
    line = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, P)
    p, log_q = p_bits.to(tl.float64, bitcast=True), log_q_bits.to(tl.float64, bitcast=True)
    a, bb, w, v, w_below, v_below = _line_weights(
        M * 0 + 1 if MAXSIM else M, N, k, tl.arange(0, LINES_P), p, log_q, 1.0 if MAXSIM else 0.5, SHAPLEY
    )
    w, v, w_below, v_below = w.to(compute), v.to(compute), w_below.to(compute), v_below.to(compute)
    a, bb = a.to(compute), bb.to(compute)

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
        f = tl.load(grad + at, mask=inside, other=0.0).to(compute)
        g = f - tl.load(totals + b * entries + k[None, :], mask=k[None, :] < N, other=0.0)
        g = tl.where(inside, g, 0.0)
        origin = slot_sorted % P
        f, g = tl.gather(f, origin, 1), tl.gather(g, origin, 1)
        f_above, g_above = tl.cumsum(f, 1) - f, tl.cumsum(g, 1) - g
        slope = f * (a + w_below[None, :]) + g * (bb + v_below[None, :])
        result = slope - (f_above * w[None, :] + g_above * v[None, :])
        rank = find(-slot_sorted, -slot, ROWS, P, LOG_P)
        result = tl.gather(result, rank, 1)
        tl.store(f_out + at, tl.where(inside, result, 0.0), mask=(line[:, None] < lines) & (k[None, :] < entries))
    else:
        x_sorted = tl.where(real, x_sorted, 0.0)
        x_below = tl.gather(x_sorted, tl.minimum(k + 1, P - 1)[None, :] + tl.zeros([ROWS, P], dtype=tl.int32), 1)
        drop = tl.where(k[None, :] + 1 < N, x_sorted - x_below, 0.0)
        g = bb * x_sorted + tl.cumsum(drop * v_below[None, :], 1, reverse=True)
        f = a * x_sorted + tl.cumsum(drop * w_below[None, :], 1, reverse=True) + g
        f, g = tl.gather(f, place, 1), tl.gather(g, place, 1)
        within = (line[:, None] < lines) & (k[None, :] < entries)
        tl.store(f_out + at, tl.where(inside, f, 0.0), mask=within)
        tl.store(g_out + at, tl.where(inside, g, 0.0), mask=within)


class Problem:
    """One call's sizes, shared by the launches of its two directions."""

    def __init__(
        self, scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, game: str
    ) -> None:
        B, M, N = scores.shape
        self.scores, self.p, self.maxsim = scores, p, game == "maxsim"
        if M > MAX_LINE or (N > MAX_LINE and not self.maxsim):  # MaxSim sorts columns alone
            raise ValueError(f"scores: expected M and N up to {MAX_LINE} for backend 'triton', got {M} x {N}")
        full = lambda n: torch.full((B,), n, dtype=torch.int64, device=scores.device)  # noqa: E731
        self.rows, self.cols = full(M) if rows_of is None else rows_of, full(N) if cols_of is None else cols_of
        self.compute = torch.float64 if scores.dtype == torch.float64 else torch.float32
        self.bad = torch.zeros(B, dtype=torch.int32, device=scores.device)
        self.ragged = rows_of is not None or cols_of is not None
        if self.ragged:
            self.valid = (self.rows >= 0) & (self.rows <= M) & (self.cols >= 0) & (self.cols <= N)
            self.rows, self.cols = torch.where(self.valid, self.rows, 0), torch.where(self.valid, self.cols, 0)
            self.inside = (torch.arange(M, device=scores.device) < self.rows[:, None])[:, :, None] & (
                torch.arange(N, device=scores.device) < self.cols[:, None]
            )[:, None, :]

    def launch(self, kernel: Any, by_column: bool, *tensors: Tensor, **options: Any) -> None:
        """Runs a kernel over one direction's lines, and notes which problems hold anything not finite."""
        B, M, N = self.scores.shape
        lines, entries = (N, M) if by_column else (M, N)
        # Small sizes share a compiled kernel: a block has more threads than they have entries.
        P, lines_p = max(triton.next_power_of_2(entries), 16), max(triton.next_power_of_2(lines), 64)
        rows = max(1, min(triton.next_power_of_2(max(lines, 16)), 1024 // P))
        p_bits, log_q_bits = struct.unpack("<qq", struct.pack("<dd", self.p or 0.5, math.log1p(-(self.p or 0.5))))
        kernel[(B * triton.cdiv(lines, rows),)](
            *tensors,
            self.bad,
            self.cols if by_column else self.rows,
            self.rows if by_column else self.cols,
            lines,
            entries,
            p_bits,
            log_q_bits,
            SHAPLEY=self.p is None,
            MAXSIM=self.maxsim,
            DOUBLE=self.compute == torch.float64,
            BY_COLUMN=by_column,
            ROWS=rows,
            P=P,
            LOG_P=P.bit_length() - 1,
            LINES_P=lines_p,
            num_warps=4 if P < 512 else 8,
            **options,
        )

    def lines(
        self, scores: Tensor, by_column: bool, grad: Tensor | None = None, totals: Tensor | None = None
    ) -> list[Tensor]:
        """Both numbers of every entry (forward) or its gradient (backward) from one direction's lines."""
        count = 2 if grad is None else 1
        out = [torch.empty(scores.shape, dtype=self.compute, device=scores.device) for _ in range(count)]
        given = scores if grad is None else grad, scores if totals is None else totals
        self.launch(_lines_kernel, by_column, scores, *given, out[0], out[-1], BACKWARD=grad is not None)
        return out

    def finish(self, x: Tensor) -> Tensor:
        """0 in the padding; NaN all over a problem that holds anything not finite or whose lengths are out of range."""
        x = x.masked_fill((self.bad != 0)[:, None, None], math.nan)
        if self.ragged:
            x = x.masked_fill(~self.inside, 0).masked_fill(~self.valid[:, None, None], math.nan)
        return x.to(self.scores.dtype)


def forward(
    scores: Tensor, cols: Tensor | None, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, game: str
) -> Tensor:
    """Interactions [B, M, N] of contiguous scores [B, M, N]; lengths int64 [B] or None; p None: the Shapley index."""
    if scores.numel() == 0:
        return torch.empty_like(scores)
    problem = Problem(scores, rows_of, cols_of, p, game)
    col_f, col_g = problem.lines(scores if cols is None else cols, by_column=True)
    if problem.maxsim:
        return problem.finish(col_f)
    row_f, row_g = problem.lines(scores, by_column=False)
    return problem.finish(row_f + col_f - row_g.sum(1, keepdim=True) - col_g.sum(2, keepdim=True))


def backward(
    grad: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
) -> list[Tensor]:
    """Gradients of the scores and, if given, of the column scores."""
    if scores.numel() == 0:
        return [torch.empty_like(x) for x in (scores, cols) if x is not None]
    problem = Problem(scores, rows_of, cols_of, p, game)
    real = (torch.where(problem.inside, grad, 0) if problem.ragged else grad).to(problem.compute)
    by_col = problem.lines(scores if cols is None else cols, True, real, real.sum(2))[0]
    if problem.maxsim:
        return [problem.finish(by_col)]
    by_row = problem.lines(scores, False, real, real.sum(1))[0]
    return [problem.finish(x) for x in ([by_row + by_col] if cols is None else [by_row, by_col])]
