"""From the values of a plan's coalitions to interactions with standard errors."""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from loupe_ext._checks import check_flag, check_names, check_tensor
from loupe_ext.explain import surrogate
from loupe_ext.explain.plan import Group, Plan, pattern_weights, walk_orders
from loupe_ext.explain.results import Interactions
from loupe_ext.extras import needs
from loupe_ext.games import Game, closed_form
from loupe_ext.ops import coalition_moments, unpack_coalitions

ROWS = 2**14  # coalitions unpacked at a time


def aggregate(
    plan: Plan,
    values: Tensor,
    *,
    control: Game | None = None,
    fit: bool = True,
    players: list[str] | None = None,
    progress: bool = False,
) -> Interactions:
    r"""Values of all players and interactions of all pairs, from the values of a plan's coalitions.

    The estimate of a group of coalitions (those of one size) is a difference of means, over the coalitions that hold
    both players, one of them, and neither; the sum over sizes, weighted by the index, is unbiased where each of
    these occurs, and exact where all coalitions of a size were evaluated. Where one of these is missing, because few
    coalitions of a size were drawn, the mean of the size stands in for its own, and its variance for its own: the
    estimate is then biased. Budgets from about 12 n^2 are enough for the stratified design; a Banzhaf index with a
    small or large p needs more in the Bernoulli design. Two control variates make the error smaller:

    - `fit`: of the sizes that were sampled, a game with pair terms is fitted to one half of the coalitions and
      subtracted on the other; its own interactions are known and added back. Fit and use on different halves keep the
      estimate unbiased. (Stratified designs.)
    - `control`: a game with known interactions is subtracted, times a coefficient, and added back. The coefficient is
      that of least squares over all coalitions; its bias is of the order of one over their number.

    Args:
        plan: what `loupe_ext.plan` returned.
        values: [S] or [C, S] of the plan's coalitions, in their order; a floating dtype. C games share the plan.
        control: a game of the same players that knows its values and interactions in closed form.
        fit: whether to fit the surrogate.
        players: names of the players; None: "0", "1", ...
        progress: whether to show a bar on the terminal: 512 players take seconds.

    Returns:
        `Interactions`, with float64 values [n] or [C, n] and pairs [n, n] or [C, n, n] and standard errors of the same
        shapes (0 where the result is exact, NaN where nothing is known about them). A pair that was never evaluated is
        NaN, and with chosen pairs all values are. A NaN or infinite value makes its own game's results NaN (in
        the permutation design, those that depend on it). Gradients do not pass. The baseline is the value of the
        empty coalition: it is NaN where the plan does not hold it, which can be so with a Banzhaf index.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
        ImportError: rich is missing, for the bar.
    """
    if not isinstance(plan, Plan):
        raise TypeError(f"plan: expected a Plan, got {type(plan).__name__}")
    check_tensor("values", values)
    if not values.is_floating_point():
        raise TypeError(f"values: expected a floating tensor, got {values.dtype}")
    fit = check_flag("fit", fit)
    if values.dim() not in (1, 2) or values.shape[-1] != len(plan):
        raise ValueError(f"values: expected shape [{len(plan)}] or [C, {len(plan)}], got {tuple(values.shape)}")
    names = check_names("players", [str(i) for i in range(plan.n)] if players is None else players, plan.n)
    y = values.detach().to("cpu", torch.float64).reshape(-1, len(plan))
    empty = (plan.coalitions == 0).all(1).nonzero().flatten()[:1]
    baseline = y[:, empty[0]] if len(empty) else y.new_full((len(y),), torch.nan)
    y = y - y[:, :1]  # differences alone matter; large common values would cost digits
    known = None
    if control is not None:
        known, y = _subtract_control(plan, y, control)
    if plan.groups:
        mean, variance = _by_groups(plan, y, fit, progress)
    else:
        mean, variance = (_by_walks if plan.pairs is None else _by_pair_walks)(plan, y)
    if known is not None:
        mean = mean + known
    error = variance.clamp(min=0).sqrt()
    one = values.dim() == 1
    mean, error, baseline = (x[0] if one else x for x in (mean, error, baseline))
    off = ~torch.eye(plan.n, dtype=torch.bool)
    return Interactions(
        values=mean.diagonal(dim1=-2, dim2=-1).clone(),
        pairs=mean.masked_fill(~off, 0),
        value_errors=error.diagonal(dim1=-2, dim2=-1).clone(),
        pair_errors=error.masked_fill(~off, 0),
        players=names,
        index=plan.index,
        p=plan.p,
        method="exact, all coalitions" if all(g.exhaustive for g in plan.groups) and plan.groups else plan.design,
        evaluations=len(plan),
        baseline=baseline.clone(),
    )


def _subtract_control(plan: Plan, y: Tensor, control: Game) -> tuple[Tensor, Tensor]:
    """The control's part of the result [C, n, n], and the values without it.

    The coefficient is fitted to the coalitions that were sampled, less the mean of their group. It is 0 where the
    control varies there by no more than rounding.
    """
    if not isinstance(control, Game):
        raise TypeError(f"control: expected a Game, got {type(control).__name__}")
    if control.n != plan.n:
        raise ValueError(f"control: expected a game of {plan.n} players, got one of {control.n}")
    exact = closed_form(control, plan.index, plan.p)
    if exact is None:
        raise ValueError("control: expected a game that knows its interactions in closed form")
    h = torch.cat([control(plan.masks(part)).double() for part in plan.split(1 + len(plan) // 4096)])
    groups = [g for g in plan.groups if not g.exhaustive] or [Group(None, 0, len(plan))]
    covariance, variance = y.new_zeros(len(y)), y.new_zeros(())
    for g in groups:
        a, b = y[:, g.start : g.stop], h[g.start : g.stop]
        if len(b):
            b = b - b.mean()
            covariance, variance = covariance + (a * b).sum(1), variance + b.square().sum()
    rounding = len(h) * (16 * torch.finfo(h.dtype).eps * h.abs().max()).square()
    slope = torch.where(variance > rounding, covariance / variance, 0)
    return slope[:, None, None] * exact, y - slope[:, None] * h


def _by_groups(plan: Plan, y: Tensor, fit: bool, progress: bool) -> tuple[Tensor, Tensor]:
    """Interactions [C, n, n], values on the diagonal, and their variances."""
    groups, known = list(plan.groups), y.new_zeros(len(y), plan.n, plan.n)
    if fit and plan.design == "stratified":
        groups, known, y = _cross_fit(plan, y)
    pairs, values = pattern_weights(plan)
    if plan.design == "bernoulli":
        pairs, values = torch.ones(1, 3, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    sums = _Sums(plan, y)
    for at, group in enumerate(_with_bar(groups) if progress else groups):
        mirror = None if group.mirror is None else groups[group.mirror]
        if group.mirror is None or group.mirror > at:  # else done with its mirror
            sums.add(group, mirror, *(group.share * x[group.size or 0] for x in (pairs, values)))
    mean, variance = sums.results()
    return mean + known, variance


def _with_bar(groups: list[Group]) -> Iterable[Group]:
    with needs("rich"):
        from rich.console import Console
        from rich.progress import track
    return track(groups, "aggregate", console=Console(stderr=True), transient=True)


class _Sums:
    """Sums over groups of weighted means, and of the variances of these: [2, C, n, n], and [2, C, n] of the values.

    The means are over the coalitions that hold two players both, one of them, or neither; of one alone, the row's is
    kept, and the column's is its transpose. A mirror's coalitions are the complements of the group's, and the weights
    of its means are those of the complements' (of the values, negated): a coalition and its complement are one
    observation, the sum of their values (of the values, the difference).
    """

    def __init__(self, plan: Plan, y: Tensor) -> None:
        self.coalitions, self.n, self.y = plan.coalitions, plan.n, y
        self.same, self.alone = y.new_zeros(2, 2, len(y), plan.n, plan.n)
        self.values = y.new_zeros(2, len(y), plan.n)
        self.level = y.new_zeros(len(y), 1)

    def add(self, group: Group, mirror: Group | None, pairs: Tensor, values: Tensor) -> None:
        """A group, with its mirror if it has one; `pairs` and `values` are rows of `pattern_weights`."""
        coalitions = self.coalitions[group.start : group.stop]
        y = torch.stack([self.y[:, g.start : g.stop] for g in (group, mirror) if g is not None])
        level = y.sum(2, keepdim=True) / max(1, len(coalitions))
        y = y - level  # squares of a large level would drown the variance
        whole = y.var(2).sum(0) if len(coalitions) > 1 else y.new_full(y.shape[1:2], torch.nan)
        both, one, none = pairs.tolist()
        having, lacking = values.tolist()

        def channels(x: Tensor) -> Tensor:  # a variance needs the squares
            return torch.cat([torch.ones_like(x[:1]), x] + [x.square()] * (not group.exhaustive))

        x = channels(y.sum(0))
        held = coalition_moments(coalitions, x, self.n)
        single = held.diagonal(dim1=1, dim2=2).clone()
        alone = single[:, :, None] - held
        neither = (x.sum(1)[:, None] - single)[:, None] - alone
        _add_mean(self.same, both, held, whole[:, None, None])
        _add_mean(self.alone, -one, alone, whole[:, None, None])
        _add_mean(self.same, none, neither, whole[:, None, None])
        self.level += (both - 2 * one + none) * level.sum(0)

        x = channels(y[0] - y[1:].sum(0))
        single = torch.zeros_like(single)
        for part, rows in zip(x.split(ROWS, 1), coalitions.split(ROWS), strict=True):
            single += part @ unpack_coalitions(rows, self.n).double()
        neither = x.sum(1)[:, None] - single
        _add_mean(self.values, having, single, whole[:, None])
        _add_mean(self.values, -lacking, neither, whole[:, None])
        self.values[0] += (having - lacking) * (level[0] - level[1:].sum(0))

    def results(self) -> Tensor:
        """[2, C, n, n]: the means, values on the diagonal, and their variances."""
        half = self.alone + self.same / 2
        out = half + half.mT
        out[0] += self.level[:, :, None]
        return torch.diagonal_scatter(out, self.values, dim1=2, dim2=3)


def _add_mean(to: Tensor, weight: float, sums: Tensor, whole: Tensor) -> None:
    """Adds a weighted mean to `to[0]`, and its variance to `to[1]`; overwrites the sums.

    `sums`: the count, those of C values, and of their squares where there is a variance, [1 + 2C, ...]. Means over
    fewer than two coalitions get the variance `whole`.
    """
    count, values, squares = sums.tensor_split([1, 1 + to.shape[1]])
    few, divisor = (2 - count).clamp_(0, 1), (count - 1).mul_(count).clamp_(min=1)
    to[0].addcdiv_(values, count.clamp_(min=1), value=weight)
    if len(squares):
        within = squares.addcdiv_(values.square_(), count, value=-1).clamp_(min=0)
        to[1].addcdiv_(within, divisor, value=weight**2).addcmul_(few, whole, value=weight**2)


def _cross_fit(plan: Plan, y: Tensor) -> tuple[list[Group], Tensor, Tensor]:
    """Sampled groups cut in two, what the surrogates contribute [C, n, n], and the values less the other half's fit."""
    sampled = [group for group in plan.groups if not group.exhaustive and group.stop - group.start > 3]  # halves of two
    folds = [
        [slice(g.start + (g.stop - g.start) * f // 2, g.start + (g.stop - g.start) * (f + 1) // 2) for g in sampled]
        for f in (0, 1)
    ]
    here = [torch.cat([torch.arange(s.start, s.stop) for s in fold]) if fold else torch.arange(0) for fold in folds]
    masks = [unpack_coalitions(plan.coalitions[where], plan.n) for where in here]
    fits = [surrogate.fit(m, y[:, where]) if len(where) else None for m, where in zip(masks, here, strict=True)]
    known = y.new_zeros(len(y), plan.n, plan.n)
    if fits[0] is None or fits[1] is None:
        return list(plan.groups), known, y
    y, shares = y.clone(), y.new_zeros(plan.n + 1)
    for group in sampled:
        assert group.size is not None
        shares[group.size] += group.share / 2
    for f, other in ((0, fits[1]), (1, fits[0])):
        y[:, here[f]] -= other.values(masks[f])
        known += other.contributions(plan, shares)
    halved: list[Group] = []
    place, cut = {}, set(sampled)
    for at, group in enumerate(plan.groups):
        place[at] = len(halved)
        if group in cut:
            middle = group.start + (group.stop - group.start) // 2
            halved.append(replace(group, stop=middle, share=group.share / 2))
            halved.append(replace(group, start=middle, share=group.share / 2))
        else:
            halved.append(group)
    for at, group in enumerate(plan.groups):
        if group.mirror is not None:
            for f in range(1 + (group in cut)):
                halved[place[at] + f] = replace(halved[place[at] + f], mirror=place[group.mirror] + f)
    return halved, known, y


def _by_walks(plan: Plan, y: Tensor) -> tuple[Tensor, Tensor]:
    """From the permutation design: marginal contributions of all players, and interactions of neighbours."""
    n, orders = plan.n, walk_orders(plan)
    inner = y[:, 2:].view(len(y), len(orders), 2 * n - 2)
    empty, full = (y[:, k, None, None].expand(-1, len(orders), 1) for k in (0, 1))
    before = torch.cat([empty, inner[..., : n - 1], full], 2)  # prefixes 0..n
    steps = before.diff(dim=2)
    alone = inner[..., n - 1 :] - before[..., : n - 1]  # what the next but one adds without the next
    gains = steps[..., 1:] - alone
    singles = torch.zeros_like(steps).scatter_(2, orders.expand_as(steps), steps)
    cells = torch.minimum(orders[:, 1:], orders[:, :-1]) * n + torch.maximum(orders[:, 1:], orders[:, :-1])
    if plan.antithetic:  # a reversed walk has the same neighbours, from the other end
        singles = (singles[:, 0::2] + singles[:, 1::2]) / 2
        gains, cells = (gains[:, 0::2] + gains[:, 1::2].flip(2)) / 2, cells[0::2]
    gains, cells = gains.flatten(1), cells.flatten()

    def summed(x: Tensor) -> Tensor:
        return torch.zeros(len(x), n * n, dtype=torch.float64).index_add_(1, cells, x)

    count = summed(torch.ones_like(gains[:1]))
    mean = summed(gains) / count  # NaN where there is none
    squares = summed((gains - mean[:, cells]).square())
    variance = torch.where(count > 1, squares / (count - 1).clamp(min=1) / count, torch.nan)
    mean, variance = (x.view(-1, n, n).triu(1) for x in (mean, variance))
    mean, variance = mean + mean.mT, variance + variance.mT
    mean.diagonal(dim1=1, dim2=2).copy_(singles.mean(1))
    variance.diagonal(dim1=1, dim2=2).copy_(_variance_of_mean(singles.mT))
    return mean, variance


def _by_pair_walks(plan: Plan, y: Tensor) -> tuple[Tensor, Tensor]:
    """From walks around chosen pairs: their interactions, and NaN elsewhere."""
    assert plan.pairs is not None
    neither, first, second, both = y.view(len(y), len(plan.pairs), -1, plan.n - 1, 4).unbind(-1)
    found = (both - first - second + neither).mean(-1)  # over the sizes: [C, pairs, walks]
    if plan.antithetic:
        found = (found[..., 0::2] + found[..., 1::2]) / 2
    mean, variance = torch.full((2, len(y), plan.n, plan.n), torch.nan, dtype=torch.float64)
    i, j = torch.tensor(plan.pairs).T
    mean[:, i, j] = mean[:, j, i] = found.mean(-1)
    variance[:, i, j] = variance[:, j, i] = _variance_of_mean(found)
    return mean, variance


def _variance_of_mean(x: Tensor) -> Tensor:
    """Of the mean over the last dimension; NaN where that is one observation."""
    return x.var(-1) / x.shape[-1] if x.shape[-1] > 1 else torch.full_like(x[..., 0], torch.nan)
