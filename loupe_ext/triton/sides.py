"""Exact values and same-side pairs in Triton: a program takes a few lines, or a tile of pairs, of one problem.

Lines are sorted and entries find their place as in pairwise.py; the pairs of entries are sums of minima over the lines.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from loupe_ext.triton.pairwise import Problem, find, line_means, places, rank_weights

TILE = 32  # players by players, or lines by players
RUN = 32  # terms summed on their own, so that rounding hardly grows with the number of terms


@triton.jit
def _side_weights(M, N, k, t, p, log_q, share, SHAPLEY: tl.constexpr, ORDER: tl.constexpr):
    """own, other, slope, step of python_ref/sides.py at places k of a sorted line (float64); M lines of N entries."""
    in_mean, lone, _ = line_means(M, N, t, log_q, SHAPLEY)
    real = k < N
    r = k.to(tl.float64) + 1
    w, v = rank_weights(M, r, p, log_q, in_mean, lone, SHAPLEY)
    if ORDER == 1:
        own, other = w + v, v
        slope = w
    else:
        m, n, u = tl.maximum(M, 1).to(tl.float64), tl.maximum(N, 1).to(tl.float64), t.to(tl.float64)
        pairs, triples = m * tl.maximum(m - 1, 1.0), m * tl.maximum(m - 1, 1.0) * tl.maximum(m - 2, 1.0)
        if SHAPLEY:
            # c(r) = c(r+1) + v(r), and alike for d, from sums of positive terms: nothing cancels.
            y, z = n + u, tl.maximum(n + m - 2, 1.0)
            c_term = (u + 1) / (y * (y + 1))
            d_term = 2 * (u + 1) * (z - y) * (z + y + 1) / (y * (y + 1) * z * (z + 1))
            after = k + 1 < N
            c_step = tl.where(after, v, 0.0)
            d_step = 2 / (r * tl.maximum(m + r - 2, 1.0) * (m + r - 1) * (m + r))
            c = tl.cumsum(c_step, 0, reverse=True)
            d = tl.cumsum(tl.where(after, d_step, 0.0), 0, reverse=True)
            c += tl.sum(tl.where(t + 1 < M, c_term, 0.0)) / pairs
            d += tl.sum(tl.where(t + 1 < M, d_term, 0.0)) / triples
        else:
            c_term = (u + 1) * tl.exp(u * log_q)
            d_term = 2 * (u + 1) * (tl.exp(u * log_q) - tl.exp((m - 2) * log_q))
            here = p * tl.exp((r - 1) * log_q)
            c = here * (tl.sum(tl.where(t + 1 < M, c_term, 0.0)) / pairs)
            d = here * (tl.sum(tl.where(t + 1 < M, d_term, 0.0)) / triples)
        d = tl.where(M > 2, d, 0.0)
        own, other = c + d, d
        slope, _ = rank_weights(M, tl.maximum(r - 1, 1.0), p, log_q, in_mean, lone, SHAPLEY)
    before, _ = rank_weights(M, tl.maximum(r - ORDER, 1.0), p, log_q, in_mean, lone, SHAPLEY)
    step = tl.where(k > 0, before - slope, 0.0)
    keep = tl.where(real, share, 0.0)
    return own * keep, other * keep, slope * keep, step * keep


@triton.jit(do_not_specialize=["lines", "entries", "p_bits", "log_q_bits"])
def _sums_kernel(
    scores,
    hinge,
    own_out,
    other_out,
    bad,
    line_lengths,
    entry_lengths,
    lines,
    entries,
    p_bits,  # of float64: a float argument would arrive in float32
    log_q_bits,
    SHAPLEY: tl.constexpr,
    MAXSIM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    LOG_P: tl.constexpr,
    LINES_P: tl.constexpr,
    ORDER: tl.constexpr,
):
    """H of every entry, and the two sums of every line."""
    compute = tl.float64 if DOUBLE else tl.float32
    programs = tl.cdiv(lines, ROWS)  # per problem
    b = (tl.program_id(0) // programs).to(tl.int64)
    M, N = tl.load(line_lengths + b).to(tl.int32), tl.load(entry_lengths + b).to(tl.int32)
    line, k = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    p, log_q = p_bits.to(tl.float64, bitcast=True), log_q_bits.to(tl.float64, bitcast=True)
    own, other, slope, _ = _side_weights(
        M * 0 + 1 if MAXSIM else M, N, k, tl.arange(0, LINES_P), p, log_q, 1.0 if MAXSIM else 0.5, SHAPLEY, ORDER
    )
    at = places(b, line, k, lines, entries, BY_COLUMN)
    inside = (line[:, None] < M) & (k[None, :] < N)
    x = tl.load(scores + at, mask=inside, other=0.0).to(compute)
    wrong = inside & ((x != x) | (tl.abs(x) == float("inf")))
    tl.store(bad + b, 1, mask=tl.max(wrong.to(tl.int32)) > 0)
    real = (k[None, :] < N) & (line[:, None] >= 0)
    x = tl.where(real, tl.where(wrong, 0.0, x), float("-inf"))
    x_sorted = tl.sort(x, 1, descending=True)
    place = find(x_sorted, x, ROWS, P, LOG_P)
    x_sorted = tl.where(real, x_sorted, 0.0)
    x_below = tl.gather(x_sorted, tl.minimum(k + 1, P - 1)[None, :] + tl.zeros([ROWS, P], dtype=tl.int32), 1)
    drop = tl.where(k[None, :] + 1 < N, x_sorted - x_below, x_sorted)
    height = tl.cumsum(drop * slope.to(compute)[None, :], 1, reverse=True)
    height = tl.gather(height, place, 1)
    tl.store(hinge + at, tl.where(inside, height, 0.0), mask=(line[:, None] < lines) & (k[None, :] < entries))
    own_sum = tl.sum(x_sorted * own.to(compute)[None, :], 1)
    other_sum = tl.sum(x_sorted * other.to(compute)[None, :], 1)
    tl.store(own_out + b * lines + line, tl.where(line < M, own_sum, 0.0), mask=line < lines)
    tl.store(other_out + b * lines + line, tl.where(line < M, other_sum, 0.0), mask=line < lines)


@triton.jit(do_not_specialize=["lines", "entries", "p_bits", "log_q_bits"])
def _grads_kernel(
    scores,
    part,
    own_grad,
    shared_grad,
    out,
    bad,
    line_lengths,
    entry_lengths,
    lines,
    entries,
    p_bits,
    log_q_bits,
    SHAPLEY: tl.constexpr,
    MAXSIM: tl.constexpr,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    ROWS: tl.constexpr,
    P: tl.constexpr,
    LOG_P: tl.constexpr,
    LINES_P: tl.constexpr,
    ORDER: tl.constexpr,
):
    """The scores' gradient, from what reaches H of every entry (part), every line's sum and the sum over all lines."""
    compute = tl.float64 if DOUBLE else tl.float32
    programs = tl.cdiv(lines, ROWS)  # per problem
    b = (tl.program_id(0) // programs).to(tl.int64)
    M, N = tl.load(line_lengths + b).to(tl.int32), tl.load(entry_lengths + b).to(tl.int32)
    line, k = tl.program_id(0) % programs * ROWS + tl.arange(0, ROWS), tl.arange(0, P)
    p, log_q = p_bits.to(tl.float64, bitcast=True), log_q_bits.to(tl.float64, bitcast=True)
    own, other, slope, step = _side_weights(
        M * 0 + 1 if MAXSIM else M, N, k, tl.arange(0, LINES_P), p, log_q, 1.0 if MAXSIM else 0.5, SHAPLEY, ORDER
    )
    at = places(b, line, k, lines, entries, BY_COLUMN)
    inside = (line[:, None] < M) & (k[None, :] < N)
    x = tl.load(scores + at, mask=inside, other=0.0).to(compute)
    wrong = inside & ((x != x) | (tl.abs(x) == float("inf")))
    tl.store(bad + b, 1, mask=tl.max(wrong.to(tl.int32)) > 0)
    real = (k[None, :] < N) & (line[:, None] >= 0)
    x = tl.where(real, tl.where(wrong, 0.0, x), float("-inf"))
    place = find(tl.sort(x, 1, descending=True), x, ROWS, P, LOG_P)
    # Among equal scores the lower index comes first: sort the places with the indices that ask for them.
    slot = place * P + k[None, :]
    slot_sorted = tl.sort(slot, 1)
    f = tl.gather(tl.load(part + at, mask=inside, other=0.0), slot_sorted % P, 1)
    above = tl.cumsum(f, 1) - f
    mine = tl.load(own_grad + b * lines + line, mask=line < lines, other=0.0)
    shared = tl.load(shared_grad + b)
    grad = f * slope.to(compute)[None, :] - above * step.to(compute)[None, :]
    grad += mine[:, None] * own.to(compute)[None, :] + shared * other.to(compute)[None, :]
    grad = tl.gather(grad, find(-slot_sorted, -slot, ROWS, P, LOG_P), 1)
    tl.store(out + at, tl.where(inside, grad, 0.0), mask=(line[:, None] < lines) & (k[None, :] < entries))


@triton.jit(do_not_specialize=["lines", "entries"])
def _minima_kernel(
    hinge,
    out,
    lines,
    entries,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
):
    """The sums over the lines of min(H(x), H(x')) for a tile of pairs of entries."""
    tiles = tl.cdiv(entries, TILE)
    b = (tl.program_id(0) // (tiles * tiles)).to(tl.int64)
    tile = tl.program_id(0) % (tiles * tiles)
    k, m = tile // tiles * TILE + tl.arange(0, TILE), tile % tiles * TILE + tl.arange(0, TILE)
    here = hinge + b * lines * entries
    line_step = 1 if BY_COLUMN else entries
    entry_step = lines if BY_COLUMN else 1
    total = tl.zeros([TILE, TILE], dtype=tl.float64 if DOUBLE else tl.float32)
    for begin in range(0, lines, RUN):
        run = tl.zeros([TILE, TILE], dtype=total.dtype)
        for line in range(begin, min(lines, begin + RUN)):
            x = tl.load(here + line * line_step + k * entry_step, mask=k < entries, other=0.0)
            y = tl.load(here + line * line_step + m * entry_step, mask=m < entries, other=0.0)
            run += tl.minimum(x[:, None], y[None, :])
        total += run
    at = (b * entries + k[:, None]) * entries + m[None, :]
    tl.store(out + at, total, mask=(k[:, None] < entries) & (m[None, :] < entries))


@triton.jit(do_not_specialize=["lines", "entries"])
def _lower_kernel(
    scores,
    grads,
    out,
    lines,
    entries,
    DOUBLE: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    TILE: tl.constexpr,
    RUN: tl.constexpr,
):
    """For a tile of lines and entries, minus the gradients of the line's pairs in which the entry is the lower: the
    smaller, or of equal ones the one of higher index."""
    compute = tl.float64 if DOUBLE else tl.float32
    tiles = tl.cdiv(entries, TILE)
    per_problem = tl.cdiv(lines, TILE) * tiles
    b = (tl.program_id(0) // per_problem).to(tl.int64)
    tile = tl.program_id(0) % per_problem
    line, k = tile // tiles * TILE + tl.arange(0, TILE), tile % tiles * TILE + tl.arange(0, TILE)
    line_step = 1 if BY_COLUMN else entries
    entry_step = lines if BY_COLUMN else 1
    row = b * lines * entries + line.to(tl.int64) * line_step
    inside = (line[:, None] < lines) & (k[None, :] < entries)
    x = tl.load(scores + row[:, None] + k[None, :] * entry_step, mask=inside, other=0.0).to(compute)
    total = tl.zeros([TILE, TILE], dtype=compute)
    for begin in range(0, entries, RUN):
        run = tl.zeros([TILE, TILE], dtype=compute)
        for m in range(begin, min(entries, begin + RUN)):
            y = tl.load(scores + row + m * entry_step, mask=line < lines, other=0.0).to(compute)[:, None]
            grad = tl.load(grads + (b * entries + m) * entries + k, mask=k < entries, other=0.0)[None, :]
            lower = (x < y) | ((x == y) & (m < k)[None, :])
            run += tl.where(lower, grad, 0.0)
        total += run
    tl.store(out + row[:, None] + k[None, :] * entry_step, -total, mask=inside)


class _Sides(Problem):
    def __init__(self, order: int, *problem: Any) -> None:
        super().__init__(*problem)
        self.order = order

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.compute, device=self.scores.device)

    def sums(self, scores: Tensor, by_column: bool) -> tuple[Tensor, Tensor, Tensor]:
        """H [B, M, N], and of every line its own sum and the sum over all lines."""
        B, M, N = scores.shape
        lines = N if by_column else M
        hinge, own, other = self.empty(B, M, N), self.empty(B, lines), self.empty(B, lines)
        self.launch(_sums_kernel, by_column, scores, hinge, own, other, ORDER=self.order)
        return hinge, own, other.sum(1, keepdim=True)

    def grads(self, scores: Tensor, by_column: bool, part: Tensor, own: Tensor) -> Tensor:
        out = torch.empty_like(part)
        shared = own.sum(1) * (-1.0 if self.order == 1 else -0.5)
        self.launch(_grads_kernel, by_column, scores, part, own, shared, out, ORDER=self.order)
        return out

    def minima(self, hinge: Tensor, by_column: bool) -> Tensor:
        """The sums over one direction's lines of the minima of every two entries."""
        B, M, N = hinge.shape
        n = M if by_column else N
        out = self.empty(B, n, n)
        self._tiled(_minima_kernel, by_column, n, hinge, out)
        return out

    def of_lower(self, scores: Tensor, by_column: bool, grads: Tensor) -> Tensor:
        """What the pairs' gradients leave with the lower entry of each pair in a line."""
        out = self.empty(*scores.shape)
        self._tiled(_lower_kernel, by_column, out.shape[2 if by_column else 1], scores, grads, out)
        return out

    def _tiled(self, kernel: Any, by_column: bool, rows: int, *tensors: Tensor) -> None:
        B, M, N = self.scores.shape
        lines, entries = (N, M) if by_column else (M, N)
        tiles = triton.cdiv(rows, TILE) * triton.cdiv(entries, TILE)
        options = {"DOUBLE": self.compute == torch.float64, "BY_COLUMN": by_column, "TILE": TILE, "RUN": RUN}
        kernel[(B * tiles,)](*tensors, lines, entries, **options)

    def outside(self, side: int) -> Tensor:
        """Which values [B, n] or pairs [B, n, n] are not of a side's players, where lengths are given."""
        players = self.inside.any(1 if side else 2)
        return ~(players if self.order == 1 else players[:, :, None] & players[:, None, :])

    def finish_side(self, x: Tensor, side: int) -> Tensor:
        """The same as `finish`, for a side's values or pairs."""
        if self.order == 2:
            x = x.masked_fill(torch.eye(x.shape[1], dtype=torch.bool, device=x.device), 0)
        wide = lambda y: y.view(-1, *[1] * (x.dim() - 1))  # noqa: E731
        x = x.masked_fill(wide(self.bad != 0), math.nan)
        if self.ragged:
            x = x.masked_fill(self.outside(side), 0).masked_fill(wide(~self.valid), math.nan)
        return x.to(self.scores.dtype)


def forward(
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
) -> tuple[Tensor, Tensor]:
    """Values [B, M] and [B, N], or pairs [B, M, M] and [B, N, N], of contiguous scores [B, M, N] with entries."""
    problem = _Sides(order, scores, rows_of, cols_of, p, game)
    hinge, own, every = [scores.new_zeros(1)] * 2, [scores.new_zeros(1, 1)] * 2, [scores.new_zeros(1, 1)] * 2
    for by_column in (True,) if problem.maxsim else (False, True):
        h, own[by_column], every[by_column] = problem.sums(scores if cols is None or not by_column else cols, by_column)
        hinge[not by_column] = h.sum(2 if by_column else 1) if order == 1 else problem.minima(h, by_column)
    results = []
    for side in range(2):
        if order == 1:
            x = own[side] - every[side] + hinge[side]
        else:
            x = every[side][..., None] - (own[side][:, :, None] + own[side][:, None, :]) - hinge[side]
        results.append(problem.finish_side(x, side))
    return results[0], results[1]


def backward(
    side_grads: tuple[Tensor, Tensor],
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
) -> list[Tensor]:
    """Gradients of the scores and, if given, of the column scores."""
    problem = _Sides(order, scores, rows_of, cols_of, p, game)
    given, lines = [], []  # what reaches a side's players as entries, and as lines
    for side, grad in enumerate(side_grads):
        grad = grad.to(problem.compute)
        if problem.ragged:
            grad = grad.masked_fill(problem.outside(side), 0)
        if order == 2:
            grad = (grad + grad.mT).masked_fill(torch.eye(grad.shape[1], dtype=torch.bool, device=grad.device), 0)
        given.append(grad)
        lines.append(grad if order == 1 else -grad.sum(2))
    grads = []
    for by_column in (True,) if problem.maxsim else (False, True):
        read = cols if by_column and cols is not None else scores
        if order == 1:
            part = given[not by_column].unsqueeze(2 if by_column else 1).expand(scores.shape).contiguous()
        else:
            part = problem.of_lower(read, by_column, given[not by_column])
        grads.append(problem.grads(read, by_column, part, lines[by_column]))
    return [problem.finish(x) for x in ([torch.stack(grads).sum(0)] if cols is None else grads)]
