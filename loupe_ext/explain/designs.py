"""Which coalitions of one side of a dual encoder to embed."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from loupe_ext._indices import Index, size_weights
from loupe_ext.explain.plan import NEGLIGIBLE, subsets
from loupe_ext.ops import pack_coalitions, sample_coalitions, sample_permutations, unpack_coalitions
from loupe_ext.ops.coalitions import MAX_PLAYERS

MAX_SIDE = MAX_PLAYERS - 1  # Hadamard's matrix has a column more
RARE = 1e-6  # a smaller p (or 1 - p) would draw no two players together; values move by as little
SPARE = 8  # degrees of freedom left to the residuals, so that standard errors have something to go by


@dataclass(frozen=True, eq=False)
class Design:
    """Coalitions of n players.

    Attributes:
        kind: "all", every coalition once; "folded", Hadamard blocks, the second half the complements of the first;
            "sizes", so many of each size.
        masks: bool [K, n].
        counts: int64 [n + 1], of "sizes": how many of each size.
    """

    kind: str
    masks: Tensor
    counts: Tensor


def least_coalitions(n: int, index: Index, p: float) -> int:
    """The fewest coalitions that `design` takes."""
    if index == "banzhaf" and p == 0.5:
        least = 2 * max(_order(n), n + SPARE)
    elif index == "banzhaf":
        least = 2 * (n + SPARE)
    else:  # a fit at p = 1/2 has some sqrt(pi n) of the n + 1 sizes to go by
        least = 2 * math.ceil((n + SPARE) * (n + 1) / math.sqrt(math.pi * n))
    return min(least, 2**n)


def design(n: int, index: Index, p: float, seed: int, stream: int, most: int) -> Design:
    """At most `most` coalitions, those of a smaller `most` among them. Streams of a seed are independent."""
    if n < 30 and 2**n <= most:
        masks = (torch.arange(2**n)[:, None] >> torch.arange(n)) & 1 == 1
        return Design("all", masks, torch.tensor([math.comb(n, size) for size in range(n + 1)]))
    if index == "banzhaf" and p == 0.5:
        half = _hadamard(n, most // 2, seed, stream)
        return Design("folded", torch.cat([half, ~half]), torch.bincount(half.sum(1), minlength=n + 1))
    counts = _share_out(size_weights(n, index, frequent(p)), most)
    masks = torch.cat([_of_size(n, size, count, seed, stream) for size, count in enumerate(counts) if count])
    return Design("sizes", masks, torch.tensor(counts))


def frequent(p: float) -> float:
    """The probability with which coalitions are drawn for p."""
    return min(max(p, RARE), 1 - RARE)


def _order(n: int) -> int:
    """Of the Hadamard matrix with a column for each of n players besides the constant one."""
    return 1 << n.bit_length()


def _hadamard(n: int, rows: int, seed: int, stream: int) -> Tensor:
    """bool [rows, n]: random columns of Sylvester's matrix with random signs, its rows in random order, in blocks.

    The signs alone make the least squares unbiased. Blocks draw anew, so that what is aliased in one is not in others.
    """
    h = _order(n)
    blocks = -(-rows // h)
    columns, order = (
        sample_permutations(k, blocks, 1, seed=seed, antithetic=False, first_problem=stream + at)[0].long()
        for at, k in enumerate((h - 1, h))
    )
    flips = unpack_coalitions(
        sample_coalitions(n, blocks, 1, seed=seed, index="banzhaf", antithetic=False, first_problem=stream + 2)[0], n
    )
    bits = order[:, :, None] & (columns[:, None, :n] + 1)  # the parity of the bits that row and column share
    for shift in (16, 8, 4, 2, 1):
        bits = bits ^ (bits >> shift)
    return ((bits & 1 == 1) ^ flips[:, None]).flatten(0, 1)[:rows]


def _share_out(target: Tensor, most: int) -> list[int]:
    """How many coalitions of each size: in proportion to `target` [n + 1], but at most as many as there are."""
    n = len(target) - 1
    there = [math.comb(n, size) for size in range(n + 1)]
    shares = [share if share > NEGLIGIBLE else 0.0 for share in target.tolist()]

    def counts(level: int) -> list[int]:
        found = [min(whole, math.ceil(level * share)) for whole, share in zip(there, shares, strict=True)]
        if n % 2 == 0 and found[n // 2] < there[n // 2]:
            found[n // 2] &= ~1  # which come in pairs
        return found

    low, high = 0, int(most / min(share for share in shares if share))
    while low < high:  # the largest level that is affordable
        level = (low + high + 1) // 2
        low, high = (level, high) if sum(counts(level)) <= most else (low, level - 1)
    return counts(low)


def _of_size(n: int, size: int, count: int, seed: int, stream: int) -> Tensor:
    """bool [count, n], distinct subsets of a size, uniform; those of size n - size are the complements."""
    if count == math.comb(n, size):
        return subsets(n, size)
    if 2 * size > n:
        return ~_of_size(n, n - size, count, seed, stream)
    paired, draws = 2 * size == n, count
    wanted = count // 2 if paired else count
    while True:
        orders = sample_permutations(n, draws, 1, seed=seed, antithetic=False, first_problem=stream + size)[0]
        masks = torch.zeros(draws, n, dtype=torch.bool).scatter_(1, orders[:, :size].long(), True)
        if paired:
            masks ^= ~masks[:, :1]
        _, first = np.unique(pack_coalitions(masks).numpy(), axis=0, return_index=True)
        if len(first) >= wanted:
            masks = masks[torch.from_numpy(np.sort(first)[:wanted])]
            return torch.cat([masks, ~masks]) if paired else masks
        draws *= 2
