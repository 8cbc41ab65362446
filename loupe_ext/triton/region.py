"""The kernels of `region_interactions` in Triton (python_ref/region.py has what they compute).

A program takes some walks of one image under one region, each a row of its blocks, and keeps h = G 1_T of every player;
or one region of the late-interaction game, and its words in blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _value(a, q, least):
    return a * tl.rsqrt(tl.maximum(q, least, propagate_nan=tl.PropagateNan.ALL))


@triton.jit
def _gain(A, Q, floor, h, a, diagonal, floors, member, own_a, own_q, own_floor):
    """v(T+R) - v(T) - sum of v(T+i) - v(T) over R, of walks that are at T: small differences first."""
    base = _value(A, Q, floor)
    with_one = Q[:, None] + 2 * h + diagonal[None, :]
    alone = _value(A[:, None] + a[None, :], with_one, floor[:, None] + floors[None, :]) - base[:, None]
    joint = _value(A + own_a, Q + own_q + 2 * tl.sum(tl.where(member[None, :], h, 0.0), 1), floor + own_floor)
    return joint - base - tl.sum(tl.where(member[None, :], alone, 0.0), 1)


@triton.jit
def _walks_kernel(
    out,
    values,
    gram,
    regions,
    orders,
    R,
    K,
    n,
    WORDS: tl.constexpr,
    PREFIXES: tl.constexpr,
    EPS: tl.constexpr,
    TINY: tl.constexpr,
    BLOCK: tl.constexpr,
    P: tl.constexpr,
):
    region = tl.program_id(0).to(tl.int64)
    b = region // R
    walk = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, P)
    player = column < n
    word = tl.load(regions + region * WORDS + column // 64, mask=player, other=0)
    member = player & (((word >> (column % 64)) & 1) == 1)
    size = tl.sum(member.to(tl.int32))
    a = tl.load(values + b * n + column, mask=player, other=0.0)
    gram += b * n * n
    diagonal = tl.load(gram + column * (n + 1), mask=player, other=0.0)
    floors = diagonal * (4 * EPS * n)  # each patch's share of what Q counts as at least
    own_floor = tl.sum(tl.where(member, floors, 0.0))
    own_a = tl.sum(tl.where(member, a, 0.0))
    steps = tl.where(size < 2, 0, n)
    with_members = a * 0
    for i in range(0, steps):
        row = tl.load(gram + i * n + column, mask=player, other=0.0)
        with_members += tl.where(tl.sum(tl.where(column == i, member.to(tl.int32), 0)) > 0, row, 0.0)
    own_q = tl.sum(tl.where(member, with_members, 0.0))

    h = tl.zeros([BLOCK, P], dtype=a.dtype)
    A = tl.zeros([BLOCK], dtype=a.dtype)
    Q = tl.zeros([BLOCK], dtype=a.dtype)
    floor = tl.zeros([BLOCK], dtype=a.dtype) + TINY
    total = _gain(A, Q, floor, h, a, diagonal, floors, member, own_a, own_q, own_floor)
    at = (b * K + walk) * n
    for step in range(0, steps):
        j = tl.load(orders + at + step, mask=walk < K, other=-1)
        mine = column[None, :] == j[:, None]
        joins = tl.sum(tl.where(mine & player[None, :] & (member[None, :] == 0), 1, 0), 1) > 0
        row = tl.load(gram + j[:, None] * n + column[None, :], mask=joins[:, None] & player[None, :], other=0.0)
        mine = mine & joins[:, None]
        A += tl.sum(tl.where(mine, a[None, :], 0.0), 1)
        Q += tl.sum(tl.where(mine, 2 * h + diagonal[None, :], 0.0), 1)
        floor += tl.sum(tl.where(mine, floors[None, :], 0.0), 1)
        h += row
        if PREFIXES:
            total += tl.where(joins, _gain(A, Q, floor, h, a, diagonal, floors, member, own_a, own_q, own_floor), 0.0)
    if PREFIXES:
        end = total / (n - size + 1).to(a.dtype)
    else:
        end = _gain(A, Q, floor, h, a, diagonal, floors, member, own_a, own_q, own_floor)
    tl.store(out + region * K + walk, tl.where(size < 2, 0.0, end), mask=walk < K)


def walks(out: Tensor, values: Tensor, gram: Tensor, regions: Tensor, orders: Tensor, prefixes: bool) -> None:
    """Fills `out` [B, R, K]; the arguments of torch.ops.loupe.region_walks, contiguous."""
    B, R, K = out.shape
    n = values.shape[1]
    P = max(triton.next_power_of_2(n), 2)
    block = max(1, min(triton.next_power_of_2(K), 1024 // P))
    precision = torch.finfo(values.dtype)
    _walks_kernel[(B * R, triton.cdiv(K, block))](
        out,
        values,
        gram,
        regions,
        orders,
        R,
        K,
        n,
        WORDS=regions.shape[2],
        PREFIXES=prefixes,
        EPS=precision.eps,
        TINY=precision.tiny,
        BLOCK=block,
        P=P,
    )


@triton.jit
def _maxima_kernel(
    out,
    scores,
    order,
    regions,
    slopes,
    lengths,
    R,
    N,
    n,
    WORDS: tl.constexpr,
    BLOCK: tl.constexpr,
    P: tl.constexpr,
):
    region = tl.program_id(0).to(tl.int64)
    b = region // R
    length = tl.minimum(tl.maximum(tl.load(lengths + b), 0), N).to(tl.int32)
    column = tl.arange(0, P)
    word = tl.load(regions + region * WORDS + column // 64, mask=column < n, other=-1)
    outside = tl.sum(1 - ((word >> (column % 64)) & 1)).to(tl.int32)
    total = tl.zeros([BLOCK], dtype=scores.dtype.element_ty)
    for first in range(0, length, BLOCK):
        j = first + tl.arange(0, BLOCK)
        real = j < length
        rank = tl.zeros([BLOCK], dtype=tl.int32) + outside  # outside patches from here up
        psi = total * 0
        below = psi
        sums = psi
        highest = psi
        for step in range(0, n):
            at = (b * N + j) * n + (n - 1 - step)
            u = tl.load(scores + at, mask=real, other=0.0)
            i = tl.load(order + at, mask=real, other=-1)
            psi += (u - below) * tl.load(slopes + rank)
            below = u
            player = (i >= 0) & (i < n)
            bits = tl.load(regions + region * WORDS + i // 64, mask=player, other=0)
            inside = ((bits >> (i % 64)) & 1) == 1
            sums += tl.where(inside, psi, 0.0)
            highest = tl.where(inside, psi, highest)
            rank = tl.where(inside, rank, tl.maximum(rank - 1, 0))
        total += highest - sums
    mean = tl.sum(total) / tl.maximum(length, 1).to(total.dtype)
    tl.store(out + region, mean)


def maxima(out: Tensor, scores: Tensor, order: Tensor, regions: Tensor, slopes: Tensor, lengths: Tensor) -> None:
    """Fills `out` [B, R]; the arguments of torch.ops.loupe.region_maxima, contiguous."""
    B, R = out.shape
    _, N, n = scores.shape
    block, P = max(min(triton.next_power_of_2(N), 128), 1), max(triton.next_power_of_2(n), 2)
    sizes = {"WORDS": regions.shape[2], "BLOCK": block, "P": P}
    _maxima_kernel[(B * R,)](out, scores, order, regions, slopes, lengths, R, N, n, **sizes)
