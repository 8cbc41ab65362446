"""Random coalitions and permutations, drawn by counter: what every kernel must give bit for bit, in Python's integers.

Sample k of problem b under a seed reads the words of Philox4x32-10 with the seed as its key and the counter
(draw, k', b low, b high), where k' is k or, antithetic, k / 2. Permutations set the highest bit of b: a stream of their
own. An odd antithetic sample is the even one turned over: the complement of a coalition (Bernoulli: of its random
words), the reverse of a permutation.

The distributions, for n players:

    uniform       size = floor(word (n + 1) / 2^32), then a uniform subset of that size
    stratified    size = (start + k') mod (n + 1), start drawn once per problem (counter k' = 2^32 - 1)
    bernoulli     each player with probability p, to 32 binary digits

A uniform subset of size c is Floyd's (Bentley and Floyd, CACM 1987), of the complement when c > n / 2; a permutation is
Fisher and Yates'. A bounded integer is the high word of a product: its bias is below bound / 2^32.
"""

from collections.abc import Iterator

WORD = 0xFFFFFFFF


def philox(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b & WORD, (a >> 32) ^ c3 ^ k1, a & WORD
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def words(seed: int, problem: int, sample: int, inverted: bool = False, stream: int = 0) -> Iterator[int]:
    draw = 0
    while True:
        for word in philox((draw, sample, problem & WORD, problem >> 32 | stream << 31), (seed & WORD, seed >> 32)):
            yield word ^ WORD if inverted else word
        draw += 1


def below(draws: Iterator[int], bound: int) -> int:
    return next(draws) * bound >> 32


def coalition(
    players: int,
    sample: int,
    problem: int = 0,
    seed: int = 0,
    p: float | None = None,
    stratified: bool = False,
    antithetic: bool = True,
) -> set[int]:
    """One coalition; p None for the distribution of the Shapley index, otherwise Bernoulli(p)."""
    counter, turned = (sample // 2, sample % 2 == 1) if antithetic else (sample, False)
    everyone = set(range(players))
    if p is not None:
        return bernoulli(words(seed, problem, counter, turned), players, min(max(round(p * 2**32), 1), WORD))
    draws = words(seed, problem, counter)
    if stratified:
        size = (below(words(seed, problem, WORD), players + 1) + counter) % (players + 1)
    else:
        size = below(draws, players + 1)
    chosen = floyd(draws, players, min(size, players - size))
    return chosen if (2 * size > players) == turned else everyone - chosen


def floyd(draws: Iterator[int], players: int, size: int) -> set[int]:
    chosen: set[int] = set()
    for j in range(players - size, players):
        i = below(draws, j + 1)
        chosen.add(j if i in chosen else i)
    return chosen


def bernoulli(draws: Iterator[int], players: int, threshold: int) -> set[int]:
    lowest = (threshold & -threshold).bit_length() - 1
    chosen = set()
    for first in range(0, players, 64):
        inside = 0
        for digit in range(lowest, 32):
            random = next(draws) | next(draws) << 32
            inside = inside | random if threshold >> digit & 1 else inside & random
        chosen |= {first + i for i in range(min(64, players - first)) if inside >> i & 1}
    return chosen


def permutation(players: int, sample: int, problem: int = 0, seed: int = 0, antithetic: bool = True) -> list[int]:
    counter, turned = (sample // 2, sample % 2 == 1) if antithetic else (sample, False)
    draws = words(seed, problem, counter, stream=1)
    order = list(range(players))
    for j in range(players - 1, 0, -1):
        i = below(draws, j + 1)
        order[i], order[j] = order[j], order[i]
    return order[::-1] if turned else order
