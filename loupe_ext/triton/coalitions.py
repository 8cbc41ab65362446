"""Random coalitions and permutations in Triton: a program takes a block of samples of one problem.

The distribution and the order of the random words are python_ref/coalitions.py's, bit for bit.
"""

import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _words(draw, sample, problem, seed_low, seed_high, STREAM: tl.constexpr):
    """The four words of counter (draw, sample, problem), whose shapes broadcast."""
    low = (problem & 0xFFFFFFFF).to(tl.uint32)
    high = ((problem >> 32) | (STREAM << 31)).to(tl.uint32)
    zero = (draw * 0 + sample * 0).to(tl.uint32)
    key_low, key_high = seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True)
    return tl.philox_impl(
        zero + draw.to(tl.uint32), zero + sample.to(tl.uint32), zero + low, zero + high, key_low, key_high
    )


@triton.jit
def _below(word, bound):
    return ((word.to(tl.uint64) * bound.to(tl.uint64)) >> 32).to(tl.int32)


@triton.jit
def _coalitions_kernel(
    out,
    samples,
    first_problem,
    first_sample,
    seed_low,
    seed_high,
    PLAYERS: tl.constexpr,
    WORDS: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    STRATIFIED: tl.constexpr,
    THRESHOLD: tl.constexpr,
    LOWEST: tl.constexpr,
    BLOCK: tl.constexpr,
    W: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    problem = b + first_problem
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sample = k + first_sample
    turned = (sample % 2 == 1) & ANTITHETIC
    counter = sample // 2 if ANTITHETIC else sample
    column = tl.arange(0, W)[None, :]
    left = PLAYERS - 64 * column
    one = tl.full([BLOCK, W], 1, tl.int64)
    everyone = tl.where(left >= 64, -one, (one << tl.minimum(tl.maximum(left, 0), 63)) - 1)
    bits = tl.zeros([BLOCK, W], dtype=tl.int64)
    if THRESHOLD > 0:
        for digit in tl.static_range(LOWEST, 32):
            q = (column * (32 - LOWEST) + (digit - LOWEST)) * 2
            w0, w1, w2, w3 = _words(q // 4, counter[:, None], problem, seed_low, seed_high, 0)
            first = q % 4 == 0
            low, high = tl.where(first, w0, w2), tl.where(first, w1, w3)
            random = low.to(tl.int64) | (high.to(tl.int64) << 32)
            random = tl.where(turned[:, None], ~random, random)
            bits = bits | random if (THRESHOLD >> digit) & 1 else bits & random
        bits = bits & everyone
    else:
        SKIPPED: tl.constexpr = 0 if STRATIFIED else 1  # the first word is the size
        zero = k * 0
        w0, w1, w2, w3 = _words(zero, counter, problem, seed_low, seed_high, 0)
        if STRATIFIED:
            start, _, _, _ = _words(zero, zero + 0xFFFFFFFF, problem, seed_low, seed_high, 0)
            size = ((_below(start, zero + PLAYERS + 1) + counter) % (PLAYERS + 1)).to(tl.int32)
        else:
            size = _below(w0, zero + PLAYERS + 1)
        outside = 2 * size > PLAYERS
        drawn = tl.where(outside, PLAYERS - size, size)
        for draw in range((PLAYERS // 2 + SKIPPED + 3) // 4):
            w0, w1, w2, w3 = _words(zero + draw, counter, problem, seed_low, seed_high, 0)
            for lane in tl.static_range(4):
                if lane == 0:
                    word = w0
                elif lane == 1:
                    word = w1
                elif lane == 2:
                    word = w2
                else:
                    word = w3
                step = 4 * draw + lane - SKIPPED
                j = PLAYERS - drawn + step
                i = _below(word, j + 1)
                here = tl.sum(tl.where(column == (i // 64)[:, None], bits, 0), 1)
                chosen = tl.where((here >> (i % 64)) & 1 == 1, j, i)
                active = (step >= 0) & (step < drawn)
                mine = (column == (chosen // 64)[:, None]) & active[:, None]
                bits = tl.where(mine, bits | (one << (chosen % 64)[:, None].to(tl.int64)), bits)
        bits = tl.where((outside != turned)[:, None], bits ^ everyone, bits)
    at = (b * samples + k)[:, None] * WORDS + column
    tl.store(out + at, bits, mask=(k < samples)[:, None] & (column < WORDS))


@triton.jit
def _permutations_kernel(
    out,
    samples,
    first_problem,
    first_sample,
    seed_low,
    seed_high,
    PLAYERS: tl.constexpr,
    ANTITHETIC: tl.constexpr,
    BLOCK: tl.constexpr,
    P: tl.constexpr,
):
    b = tl.program_id(0).to(tl.int64)
    problem = b + first_problem
    k = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    sample = k + first_sample
    turned = (sample % 2 == 1) & ANTITHETIC
    counter = sample // 2 if ANTITHETIC else sample
    column = tl.arange(0, P)[None, :]
    order = column + tl.zeros([BLOCK, P], dtype=tl.int32)
    for draw in range((PLAYERS + 2) // 4):
        w0, w1, w2, w3 = _words(k * 0 + draw, counter, problem, seed_low, seed_high, 1)
        for lane in tl.static_range(4):
            if lane == 0:
                word = w0
            elif lane == 1:
                word = w1
            elif lane == 2:
                word = w2
            else:
                word = w3
            j = PLAYERS - 1 - (4 * draw + lane)
            if j > 0:
                i = _below(word, (k * 0 + j + 1))[:, None]
                at_i = tl.sum(tl.where(column == i, order, 0), 1)[:, None]
                at_j = tl.sum(tl.where(column == j, order, 0), 1)[:, None]
                order = tl.where(column == i, at_j, tl.where(column == j, at_i, order))
    place = tl.where(turned[:, None], PLAYERS - 1 - column, column)
    at = (b * samples + k)[:, None] * PLAYERS + place
    tl.store(out + at, order, mask=(k < samples)[:, None] & (column < PLAYERS))


def sample(
    out: Tensor,
    what: str,
    problems: int,
    samples: int,
    first_problem: int,
    first_sample: int,
    seed: int,
    players: int,
    antithetic: bool,
    stratified: bool,
    threshold: int,
) -> None:
    """Fills `out`, [problems, samples, words] int64 for coalitions or [problems, samples, players] int32."""
    if out.numel() == 0:
        return
    width = max(triton.next_power_of_2(out.shape[-1]), 1)
    block = max(1, 256 // width)
    grid = (problems, triton.cdiv(samples, block))
    signed = [x - 2**32 if x >= 2**31 else x for x in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)]
    numbers = (samples, first_problem, first_sample, *signed)
    if what == "permutations":
        _permutations_kernel[grid](out, *numbers, PLAYERS=players, ANTITHETIC=antithetic, BLOCK=block, P=width)
        return
    _coalitions_kernel[grid](
        out,
        *numbers,
        PLAYERS=players,
        WORDS=out.shape[-1],
        ANTITHETIC=antithetic,
        STRATIFIED=stratified,
        THRESHOLD=threshold,
        LOWEST=(threshold & -threshold).bit_length() - 1 if threshold else 0,
        BLOCK=block,
        W=width,
    )
