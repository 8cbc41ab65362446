"""Moments of coalitions in Triton: a program takes a tile of pairs of a group and channel or, backward, 16 coalitions.

Sums of a few samples are added up with the rounding error of every addition kept (Knuth's two-sum), as in CUDA.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 16  # samples summed before a rounding error is worth keeping
LEAST = 256  # rows that pay for a program


@triton.jit
def _holds(coalitions, k, WORDS, player, mask):
    """Whether coalition k holds a player; their shapes broadcast."""
    word = tl.load(coalitions + k * WORDS + player // 64, mask=mask, other=0)
    return (word >> (player % 64).to(tl.int64)) & 1 == 1


@triton.jit
def _add(high, low, x):
    """Adds x to the sum high + low."""
    total = high + x
    added = total - high
    return total, low + ((high - (total - added)) + (x - added))


@triton.jit
def _get(high, low):
    return tl.where(high - high == 0, high + low, high)  # not finite: low is NaN


@triton.jit
def _parts_kernel(
    coalitions,
    values,
    offsets,
    out,
    S,
    G,
    n,
    WORDS,
    PARTS: tl.constexpr,
    GROUPED: tl.constexpr,
    DOUBLE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """out[c, g, part, i, j], both triangles."""
    row_tile, column_tile = tl.program_id(0) // TILES, tl.program_id(0) % TILES
    if row_tile > column_tile:
        return
    number: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    S64 = tl.zeros([], tl.int64) + S
    matrix, part = tl.program_id(1).to(tl.int64) // PARTS, tl.program_id(1) % PARTS
    c, g = matrix // G, matrix % G
    begin, end = tl.zeros([], tl.int64), S64
    if GROUPED:
        begin = tl.minimum(tl.maximum(tl.load(offsets + g), 0), S64)
        end = tl.minimum(tl.maximum(tl.load(offsets + g + 1), begin), S64)
    count = end - begin
    end = begin + count * (part + 1) // PARTS
    begin = begin + count * part // PARTS
    i = row_tile * TILE + tl.arange(0, TILE)
    j = column_tile * TILE + tl.arange(0, TILE)
    high, low = tl.zeros([TILE, TILE], number), tl.zeros([TILE, TILE], number)
    for first in range(begin, end, CHUNK):
        k = first + tl.arange(0, CHUNK)
        real = k < end
        value = tl.load(values + c * S64 + k, mask=real, other=0.0).to(number)
        rows = _holds(coalitions, k[:, None], WORDS, i[None, :], real[:, None] & (i < n)[None, :])
        columns = _holds(coalitions, k[:, None], WORDS, j[None, :], real[:, None] & (j < n)[None, :])
        both = rows[:, :, None] & columns[:, None, :]
        high, low = _add(high, low, tl.sum(tl.where(both, value[:, None, None], 0.0), 0))
    total = _get(high, low)
    within = (i < n)[:, None] & (j < n)[None, :]
    to = out + (matrix * PARTS + part) * n * n
    tl.store(to + i[:, None] * n + j[None, :], total, mask=within)
    tl.store(to + j[None, :] * n + i[:, None], total, mask=within)


@triton.jit
def _backward_kernel(
    grad,
    coalitions,
    group_of,
    out,
    S,
    G,
    n,
    WORDS,
    DOUBLE: tl.constexpr,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    number: tl.constexpr = tl.float64 if DOUBLE else tl.float32
    c = tl.program_id(1).to(tl.int64)
    k = tl.program_id(0).to(tl.int64) * CHUNK + tl.arange(0, CHUNK)
    real = k < S
    matrix = (c * G + tl.load(group_of + k, mask=real, other=0)) * n * n
    high, low = tl.zeros([CHUNK, TILE], number), tl.zeros([CHUNK, TILE], number)
    for first_row in range(0, n, TILE):
        i = first_row + tl.arange(0, TILE)
        rows = _holds(coalitions, k[:, None], WORDS, i[None, :], real[:, None] & (i < n)[None, :])
        for first_column in range(0, n, TILE):
            j = first_column + tl.arange(0, TILE)
            columns = _holds(coalitions, k[:, None], WORDS, j[None, :], real[:, None] & (j < n)[None, :])
            at = matrix[:, None, None] + i[None, :, None] * n + j[None, None, :]
            x = tl.load(grad + at, mask=rows[:, :, None] & columns[:, None, :], other=0.0).to(number)
            high, low = _add(high, low, tl.sum(x, 2))
    tl.store(out + c * S + k, tl.sum(_get(high, low), 1), mask=real)


def forward(coalitions: Tensor, values: Tensor, offsets: Tensor | None, n: int) -> Tensor:
    """Moments [C, G, n, n] of contiguous values [C, S] and coalitions [S, W]; offsets [G + 1] or None."""
    C, S = values.shape
    G = 1 if offsets is None else len(offsets) - 1
    tile = min(triton.next_power_of_2(n), 16)
    tiles = triton.cdiv(n, tile)
    parts = max(1, min(S // (G * LEAST), 4096 // (C * G * tiles * tiles)))
    compute = torch.float64 if values.dtype == torch.float64 else torch.float32
    sums = torch.empty(C, G, parts, n, n, dtype=compute, device=values.device)
    _parts_kernel[(tiles * tiles, C * G * parts)](
        coalitions,
        values,
        coalitions if offsets is None else offsets,
        sums,
        S,
        G,
        n,
        coalitions.shape[1],
        PARTS=parts,
        GROUPED=offsets is not None,
        DOUBLE=compute == torch.float64,
        TILE=tile,
        TILES=tiles,
        CHUNK=CHUNK,
    )
    return sums.sum(2, dtype=torch.float64).to(compute).to(values.dtype)


def backward(grad: Tensor, coalitions: Tensor, offsets: Tensor | None) -> Tensor:
    """The gradient [C, S] of the values from that of the moments, contiguous [C, G, n, n]."""
    C, G, n, _ = grad.shape
    S = coalitions.shape[0]
    k = torch.arange(S, device=grad.device)
    group_of, outside = torch.zeros_like(k), None
    if offsets is not None:
        group_of = (torch.searchsorted(offsets, k, right=True) - 1).clamp(0, G - 1)
        outside = (k < offsets[group_of]) | (k >= offsets[group_of + 1])
    out = torch.empty(C, S, dtype=grad.dtype, device=grad.device)
    _backward_kernel[(triton.cdiv(S, CHUNK), C)](
        grad,
        coalitions,
        group_of,
        out,
        S,
        G,
        n,
        coalitions.shape[1],
        DOUBLE=grad.dtype == torch.float64,
        TILE=min(triton.next_power_of_2(n), 16),
        CHUNK=CHUNK,
    )
    return out if outside is None else out.masked_fill(outside, 0)
