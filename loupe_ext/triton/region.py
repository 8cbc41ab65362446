"""Walks of the pooled-cosine game in Triton: a program takes some walks of one image under one region.

It keeps h = G 1_T of every player of the image, as python_ref/region.py does; a walk is a row of its blocks.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _value(a, q, least):
    return a * tl.rsqrt(tl.maximum(q, least))


@triton.jit
def _gain(A, Q, h, a, diagonal, member, own_a, own_q, least):
    """v(T+R) - v(T) - sum of v(T+i) - v(T) over R, of walks that are at T: small differences first."""
    base = _value(A, Q, least)
    alone = _value(A[:, None] + a[None, :], Q[:, None] + 2 * h + diagonal[None, :], least) - base[:, None]
    joint = _value(A + own_a, Q + own_q + 2 * tl.sum(tl.where(member[None, :], h, 0.0), 1), least)
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
    EPS_SQUARED: tl.constexpr,
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
    least = tl.maximum(tl.sum(diagonal) * EPS_SQUARED, TINY)
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
    total = _gain(A, Q, h, a, diagonal, member, own_a, own_q, least)
    at = (b * K + walk) * n
    for step in range(0, steps):
        j = tl.load(orders + at + step, mask=walk < K, other=-1)
        mine = column[None, :] == j[:, None]
        joins = tl.sum(tl.where(mine & player[None, :] & (member[None, :] == 0), 1, 0), 1) > 0
        row = tl.load(gram + j[:, None] * n + column[None, :], mask=joins[:, None] & player[None, :], other=0.0)
        mine = mine & joins[:, None]
        A += tl.sum(tl.where(mine, a[None, :], 0.0), 1)
        Q += tl.sum(tl.where(mine, 2 * h + diagonal[None, :], 0.0), 1)
        h += row
        if PREFIXES:
            total += tl.where(joins, _gain(A, Q, h, a, diagonal, member, own_a, own_q, least), 0.0)
    end = total / (n - size + 1).to(a.dtype) if PREFIXES else _gain(A, Q, h, a, diagonal, member, own_a, own_q, least)
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
        EPS_SQUARED=precision.eps**2,
        TINY=precision.tiny,
        BLOCK=block,
        P=P,
    )
