"""Which coalitions of a game to evaluate, so that all interactions can be estimated from their values."""

import functools
import itertools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from loupe_ext._checks import check_flag, check_index, check_int
from loupe_ext._indices import Index, size_weights
from loupe_ext._io import write
from loupe_ext.ops import pack_coalitions, sample_coalitions, sample_permutations, unpack_coalitions
from loupe_ext.ops.coalitions import MAX_PLAYERS

Design = Literal["stratified", "bernoulli", "permutation"]
DESIGNS = get_args(Design)
LEAST = 4  # coalitions of a size that is sampled, so that half of them with their complements still have a variance
SEEN = 12  # coalitions with each pattern of a pair wanted of a size that is sampled, so that hardly any has none
NEGLIGIBLE = 1e-12  # a size's part in the result below which it is left out: far sizes, for a Banzhaf index


@dataclass(frozen=True)
class Group:
    """Consecutive coalitions of a plan that estimate the same means: those of one size, or all.

    `size` is None where the sizes vary; `exhaustive`, where every coalition of the size is there once; `mirror`, the
    group that holds the complements of this one's coalitions, in the same order; `share`, the group's part in the
    estimate of its size.
    """

    size: int | None
    start: int
    stop: int
    exhaustive: bool = False
    mirror: int | None = None
    share: float = 1.0


@dataclass(frozen=True)
class Plan:
    """Coalitions to evaluate; see `plan`. It holds its parameters alone, and draws the same coalitions everywhere."""

    n: int
    budget: int
    index: Index = "shapley"
    p: float = 0.5
    design: Design = "stratified"
    pairs: tuple[tuple[int, int], ...] | None = None
    seed: int = 0
    antithetic: bool = True

    def __len__(self) -> int:
        return len(self.coalitions)

    @functools.cached_property
    def coalitions(self) -> Tensor:
        """int64 [S, ceil(n / 64)], packed: bit i % 64 of word i / 64 is player i."""
        return self._drawn[0]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups of coalitions, in order; none for the permutation design."""
        return self._drawn[1]

    def masks(self, part: slice = slice(None)) -> Tensor:
        """bool [S, n], the coalitions as masks, or a part of them."""
        return unpack_coalitions(self.coalitions[part], self.n)

    def split(self, parts: int) -> list[slice]:
        """The coalitions in `parts` slices of about equal length, to evaluate apart. Concatenate the values."""
        parts = check_int("parts", parts, 1, 2**31)
        edges = [len(self) * i // parts for i in range(parts + 1)]
        return [slice(start, stop) for start, stop in itertools.pairwise(edges)]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, in one piece."""
        write(path, json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Plan":
        """The plan that `save` wrote."""
        try:
            stored = json.loads(Path(path).read_text())
            return plan(stored.pop("n"), stored.pop("budget"), **stored)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ValueError(f"path: expected a saved plan, got {path} ({error})") from error

    @functools.cached_property
    def _drawn(self) -> tuple[Tensor, tuple[Group, ...]]:
        if self.design == "permutation":
            return (_walks if self.pairs is None else _pair_walks)(self), ()
        return (_bernoulli if self.design == "bernoulli" else _stratified)(self)


def plan(
    n: int,
    budget: int,
    *,
    index: Index = "shapley",
    p: float = 0.5,
    design: Design = "stratified",
    pairs: Sequence[tuple[int, int]] | None = None,
    seed: int = 0,
    antithetic: bool = True,
) -> Plan:
    """Plan the evaluation of a game of `n` players, so that `aggregate` finds its values and interactions.

    ```
    p = loupe_ext.plan(n=20, budget=4096)
    values = torch.cat([game(p.masks(part)) for part in p.split(8)])  # anywhere, in any batches
    found = loupe_ext.aggregate(p, values)
    ```

    Args:
        n: players, 1 to 1024.
        budget: evaluations at most. From 2^n on, every coalition is evaluated once, and the result is exact. (For a
            Banzhaf index, sizes that hold less than 1e-12 of the weight are always left out.)
        index: "shapley" or "banzhaf" (with `p`): the distribution of the coalitions that the interactions average over.
        p: a player's probability in "banzhaf", strictly between 0 and 1.
        design: how coalitions are chosen.

            "stratified": by size; small and large sizes, of which there are few coalitions, in full, the others at
            random, as many of each as lets all pairs' errors be least. Every evaluation serves every player and pair.
            "bernoulli": every player with probability p; for "banzhaf" alone. Every evaluation serves every pair.
            "permutation": the prefixes of random permutations, each also without its last player but one; an
            evaluation serves the players and pairs at its end. With `pairs`, those pairs alone: each permutation of
            the others is walked with neither, either and both of the pair.
        pairs: for "permutation": the pairs of players wanted. None: all.
        seed: 0 to 2^64 - 1. The same seed gives the same coalitions on every machine.
        antithetic: draw coalitions with their complements (permutations with their reverses) where these have
            the same distribution.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or is out of its range; the budget is too small for one
            evaluation of what the design needs.
    """
    n, budget = check_int("n", n, 1, MAX_PLAYERS), check_int("budget", budget, 1, 2**31 - 1)
    seed = check_int("seed", seed, 0, 2**64 - 1)
    check_index(index, p)
    antithetic = check_flag("antithetic", antithetic)
    if not isinstance(design, str) or design not in DESIGNS:
        raise ValueError(f"design: expected one of {DESIGNS}, got {design!r}")
    if design == "bernoulli" and index != "banzhaf":
        raise ValueError(f"design: expected 'stratified' or 'permutation' for index={index!r}, got 'bernoulli'")
    if design == "permutation" and index != "shapley":
        raise ValueError(f"design: expected 'stratified' or 'bernoulli' for index={index!r}, got 'permutation'")
    chosen = None
    if pairs is not None:
        if design != "permutation":
            raise ValueError(f"pairs: expected None for design={design!r}, which serves all pairs, got {pairs!r}")
        chosen = _check_pairs(pairs, n)
        if not chosen or any(i == j for i, j in chosen) or len({frozenset(pair) for pair in chosen}) < len(chosen):
            raise ValueError(f"pairs: expected distinct pairs of distinct players, got {pairs!r}")
    if n <= 30 and budget >= 2**n:
        design, chosen = "stratified", None
    walks = _shared(chosen) + 2 * _per_walk(n, chosen)
    least = min({"stratified": LEAST * (n + 1), "bernoulli": 2, "permutation": walks}[design], 2**n)
    if budget < least:
        raise ValueError(f"budget: expected at least {least} for design={design!r}, got {budget}")
    return Plan(n, budget, index, float(p), design, chosen, seed, antithetic)


def _check_pairs(pairs: Sequence[tuple[int, int]], n: int) -> tuple[tuple[int, int], ...]:
    try:
        listed = [(i, j) for i, j in pairs]
    except (TypeError, ValueError) as error:
        raise TypeError(f"pairs: expected a sequence of pairs of players, got {pairs!r}") from error
    return tuple((check_int("pairs", i, 0, n - 1), check_int("pairs", j, 0, n - 1)) for i, j in listed)


def pattern_weights(plan: Plan) -> tuple[Tensor, Tensor]:
    """How the means over coalitions of size t enter the interaction of i and j, and the value of i.

    [n + 1, 3]: the mean with both, minus those with one of the two, and with neither; and [n + 1, 2]: with i, and
    minus without.
    """
    pairs = torch.zeros(plan.n + 1, 3, dtype=torch.float64)
    values = torch.zeros(plan.n + 1, 2, dtype=torch.float64)
    single = size_weights(plan.n - 1, plan.index, plan.p)
    values[1:, 0], values[:-1, 1] = single, single
    if plan.n > 1:
        double = size_weights(plan.n - 2, plan.index, plan.p)
        pairs[2:, 0], pairs[1:-1, 1], pairs[:-2, 2] = double, double, double
    return pairs, values


def _allocate(plan: Plan) -> tuple[list[int], list[bool]]:
    """Evaluations of each size, and whether they are all there are.

    A size's error, summed over pairs, is as the squared weights of its four patterns over how often they occur; the
    best share of the budget is the root of that (Neyman's allocation for equal variances).
    """
    n = plan.n
    t = torch.arange(n + 1, dtype=torch.float64)
    pairs, values = pattern_weights(plan)
    least = torch.full_like(t, LEAST)
    if n > 1:
        shares = torch.stack([t * (t - 1), t * (n - t) / 2, (n - t) * (n - t - 1)], 1) / (n * (n - 1))
        need = torch.where(pairs > 0, pairs.square() / shares.clamp(min=1e-300), 0).sum(1).sqrt()
        rarest = torch.where(pairs > 0.01 * pairs.max(), shares, 1.0).amin(1)
        enough = torch.minimum(SEEN / rarest, torch.tensor([float(math.comb(n, k)) for k in range(n + 1)]))
        if float(enough[need > 0].sum()) <= plan.budget:
            least = enough.clamp(min=LEAST)
    else:
        need = values.sum(1)
    need = torch.where(need > NEGLIGIBLE * need.sum(), need, 0.0)
    there = [math.comb(n, size) for size in range(n + 1)]
    full = [False] * (n + 1)
    while True:
        left = plan.budget - sum(count for count, done in zip(there, full, strict=True) if done)
        counts = _share_out(left, *(torch.where(torch.tensor(full), 0.0, x) for x in (need, least))).tolist()
        fits = [not done and count >= whole for done, count, whole in zip(full, counts, there, strict=True)]
        if not any(fits):
            break
        full = [done or fit for done, fit in zip(full, fits, strict=True)]
    drawn = [int(count) for count in counts]
    if _mirrored(plan):
        drawn = [min(pair) for pair in zip(drawn, drawn[::-1], strict=True)]
        drawn[n // 2] -= drawn[n // 2] % 2 if n % 2 == 0 else 0
    return [whole if done else count for done, whole, count in zip(full, there, drawn, strict=True)], full


def _share_out(budget: int, need: Tensor, least: Tensor) -> Tensor:
    """Shares of a budget: of each at least `least`, if that is to be had, and the rest to those in need of more."""
    least = least * (need > 0)
    first = least * min(1.0, budget / max(1.0, float(least.sum())))
    more = (budget * need / need.sum().clamp(min=1e-300) - first).clamp(min=0)
    return first + more * ((budget - first.sum()).clamp(min=0) / more.sum().clamp(min=1e-300))


def _stratified(plan: Plan) -> tuple[Tensor, tuple[Group, ...]]:
    n, mirrored = plan.n, _mirrored(plan)
    counts, full = _allocate(plan)
    parts: dict[int, list[Tensor]] = {}
    for size, count in enumerate(counts):
        if full[size]:
            parts[size] = [subsets(n, size)]
        elif count and mirrored and size == n - size:
            half = _draw(plan, size, count // 2)
            parts[size] = [half, ~half]
        elif count and mirrored and size > n - size:
            parts[size] = [~parts[n - size][0]]
        elif count:
            parts[size] = [_draw(plan, size, count)]
    groups: list[Group] = []
    where = {}
    for size, halves in parts.items():
        where[size] = len(groups)
        for masks in halves:
            start = groups[-1].stop if groups else 0
            groups.append(Group(size, start, start + len(masks), full[size], share=1 / len(halves)))
    for at, group in enumerate(groups):
        if mirrored and not group.exhaustive:
            assert group.size is not None
            own, other = where[group.size], where[n - group.size]
            groups[at] = replace(group, mirror=other if own != other else 2 * own + 1 - at)
    return pack_coalitions(torch.cat([masks for halves in parts.values() for masks in halves])), tuple(groups)


def _mirrored(plan: Plan) -> bool:
    """Whether complements have the same distribution, and are wanted."""
    return plan.antithetic and (plan.index == "shapley" or plan.p == 0.5)


def _draw(plan: Plan, size: int, count: int) -> Tensor:
    """bool [count, n], uniform subsets of a size. Each size has its own random stream."""
    orders = sample_permutations(plan.n, count, 1, seed=plan.seed, antithetic=False, first_problem=size)[0]
    masks = torch.zeros(count, plan.n, dtype=torch.bool)
    return masks.scatter_(1, orders[:, :size].long(), True)


def subsets(n: int, size: int) -> Tensor:
    """bool [C(n, size), n], all subsets of a size."""
    if size > n - size:
        return ~subsets(n, n - size)
    members = torch.zeros(1, 0, dtype=torch.int64)
    for k in range(size):
        first = members[:, -1] + 1 if k else torch.zeros(1, dtype=torch.int64)
        room = n - size + k + 1 - first  # how many players can come next and leave enough for the rest
        which = torch.repeat_interleave(torch.arange(len(members)), room)
        step = torch.arange(len(which)) - (room.cumsum(0) - room)[which]
        members = torch.cat([members[which], (first[which] + step)[:, None]], 1)
    return torch.zeros(len(members), n, dtype=torch.bool).scatter_(1, members, True)


def _bernoulli(plan: Plan) -> tuple[Tensor, tuple[Group, ...]]:
    mirrored = _mirrored(plan)
    drawn = sample_coalitions(
        plan.n, plan.budget - plan.budget % 2, seed=plan.seed, index="banzhaf", p=plan.p, antithetic=mirrored
    )
    if not mirrored:
        return drawn, (Group(None, 0, len(drawn)),)
    half = len(drawn) // 2
    groups = (Group(None, 0, half, mirror=1, share=0.5), Group(None, half, 2 * half, mirror=0, share=0.5))
    return torch.cat([drawn[0::2], drawn[1::2]]), groups


def _per_walk(n: int, pairs: Sequence[tuple[int, int]] | None) -> int:
    return 2 * n - 2 if pairs is None else len(pairs) * 4 * (n - 1)


def _shared(pairs: Sequence[tuple[int, int]] | None) -> int:
    """Evaluations that serve all walks: those of the empty and the full coalition."""
    return 2 if pairs is None else 0


def walk_orders(plan: Plan) -> Tensor:
    """int64 [walks, players walked]: the permutation design's permutations; of the others, where pairs are given."""
    walks = (plan.budget - _shared(plan.pairs)) // _per_walk(plan.n, plan.pairs)
    walked = plan.n if plan.pairs is None else plan.n - 2
    return sample_permutations(walked, walks - walks % 2, seed=plan.seed, antithetic=plan.antithetic).long()


def prefixes(orders: Tensor) -> Tensor:
    """bool [walks, n + 1, n]: the first k players of each permutation, k = 0..n."""
    n = orders.shape[1]
    rank = orders.argsort(1)
    return rank[:, None] < torch.arange(n + 1)[:, None]


def _walks(plan: Plan) -> Tensor:
    """The empty and the full coalition; then of each walk prefixes 1..n-1, and prefixes 0..n-2 and the next but one."""
    orders = walk_orders(plan)
    before = prefixes(orders)
    skipped = before[:, : plan.n - 1].clone()
    skipped.scatter_(2, orders[:, 1:, None], True)
    ends = torch.stack([torch.zeros(plan.n, dtype=torch.bool), torch.ones(plan.n, dtype=torch.bool)])
    inner = torch.cat([before[:, 1:-1], skipped], 1).flatten(0, 1)
    return pack_coalitions(torch.cat([ends, inner]))


def _pair_walks(plan: Plan) -> Tensor:
    """Of each pair and walk, its prefixes 0..n-2 with neither, the first, the second and both of the pair."""
    assert plan.pairs is not None
    before = prefixes(walk_orders(plan))
    parts = []
    for i, j in plan.pairs:
        others = [k for k in range(plan.n) if k not in (i, j)]
        masks = torch.zeros(*before.shape[:2], 4, plan.n, dtype=torch.bool)
        masks[..., others] = before[:, :, None]
        masks[:, :, [1, 3], i] = True
        masks[:, :, [2, 3], j] = True
        parts.append(masks.flatten(0, 2))
    return pack_coalitions(torch.cat(parts))
