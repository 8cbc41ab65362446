"""LOUPE's hybrid strategy: interactions are computed until they can be predicted, and then where they can't."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from loupe_ext._checks import check_int, check_like, check_number, length_mask
from loupe_ext._distributed import Group, check_group, place
from loupe_ext._dtypes import widened
from loupe_ext.unsil.learner import InteractionLearner, calibration, check_games, heteroscedastic_loss


class Estimate(NamedTuple):
    """What `Unsil` says of a batch of games."""

    interactions: Tensor  # [B, M, N] in at least float32, computed or predicted, without a gradient; 0 at the padding
    loss: Tensor  # scalar, the learner's own: its gradient goes to no other parameter
    metrics: dict[str, Tensor]  # scalars without a gradient


class Unsil(nn.Module):
    """Interactions of games that come in batches, from a learner that is trained on those computed (section 3.4).

    The learner is trusted while its running error, the root mean square over the games that are checked, is below
    `threshold`. Until then everything is computed. While it is trusted, a game whose predicted deviation (the root mean
    square over its pairs) is below `threshold` is predicted; other games are computed, and it learns from them. A whole
    game is one or the other, since drawing coalitions for one pair draws them for all.

    Deviations alone would not do: a learner is sure of itself also where it has never been. So every `check`-th game is
    computed however sure it is, in turn; when the games change, the running error says so, and all are computed again.

    Errors are in units of the root mean square of the interactions, a running one: a unit of each game would have to be
    taken from noisy interactions, and predictions of them would be biased. Where interactions are sampled, errors and
    deviations are of the samples: the learner, which averages over many games, may be nearer the truth than they.

    Everything that it has learned of its games is in parameters and buffers; without `train()` mode none of it changes.

    Args:
        dim: d of the regions and phrases.
        threshold: the error that is small enough.
        check: 1 or more; 1 computes everything.
        width: of the learner.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    steps: Tensor
    mean_square: Tensor
    error: Tensor

    def __init__(self, dim: int, threshold: float = 0.3, check: int = 8, width: int = 32) -> None:
        super().__init__()
        self.threshold = check_number("threshold", threshold, 0, above=True)
        self.check = check_int("check", check, 1, 2**31)
        self.learner = InteractionLearner(dim, width)
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("mean_square", torch.tensor(0.0))  # of the interactions
        self.register_buffer("error", torch.tensor(torch.inf))  # mean square, in units of mean_square

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Unsil":
        """The running means stay float32 in a half module: squares of small interactions are 0 in float16."""
        means = {"mean_square": self.mean_square, "error": self.error}
        super()._apply(fn, recurse)
        for name, mean in means.items():
            moved = getattr(self, name)
            if moved.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, mean.to(moved.device))
        return self

    @property
    def trusted(self) -> bool:
        """Whether the learner is."""
        return bool(self.error < self.threshold**2)

    def forward(
        self,
        regions: Tensor,
        phrases: Tensor,
        alignment: Tensor,
        compute: Callable[[Tensor], Tensor],
        region_lengths: Tensor | None = None,
        phrase_lengths: Tensor | None = None,
        *,
        first: int = 0,
        group: Group = None,
    ) -> Estimate:
        """Interactions of B games, some computed and some predicted, in the unit of those computed.

        Args:
            regions: [B, M, d]; phrases: [B, N, d]; alignment: [B, M, N] logits; floating dtypes. For games of
                regions with a whole text, the text is one phrase.
            compute: takes the places int64 [K] of games in the batch and gives their interactions [K, M, N], floating.
            region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
            first, group: where these games are a part of a larger batch that other processes hold the rest of: the
                place of the first of them, and the processes, which learn from all.

        Returns:
            The interactions, the loss (0 if nothing was computed), and the metrics: "computed", the share of games that
            were; and of the games that are checked, before the learner has seen them: "error" (root mean square, in
            units of the interactions' own), and those of `calibration`; NaN where none was. A game that holds NaN is
            computed, and nothing is learned from it.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value.
        """
        check_games(regions, phrases, alignment)
        first = check_int("first", first, 0, 2**62)
        check_group(group)
        if not callable(compute):
            raise TypeError(f"compute: expected a callable, got {type(compute).__name__}")
        there = length_mask("region_lengths", region_lengths, alignment, 1)
        present = length_mask("phrase_lengths", phrase_lengths, alignment, 2)
        pairs = there[:, :, None] & present[:, None]
        regions, phrases = regions.masked_fill(~there[..., None], 0), phrases.masked_fill(~present[..., None], 0)
        features = [regions.detach(), phrases.detach(), alignment.detach().masked_fill(~pairs, 0)]
        games = [*features, there.sum(1), present.sum(1)]
        with torch.no_grad():
            checked = torch.ones_like(there[:, 0])
            predicted, interactions = ~checked, torch.zeros_like(widened(alignment)[1][0])
            if self.trusted:
                checked = (torch.arange(len(pairs), device=pairs.device) + first + self.steps) % self.check == 0
                _, (mean, log_sigma) = widened(*self.learner(*games))
                variance = torch.where(pairs, (2 * log_sigma).exp(), 0).sum((1, 2)) / pairs.sum((1, 2))
                predicted = (variance < self.threshold**2) & ~checked
                interactions += mean * self.mean_square.sqrt()
            chosen = (~predicted).nonzero()[:, 0]
            if len(chosen):
                found = compute(chosen)
                check_like("compute", found, "alignment[chosen]", alignment[chosen], dtype=False)
                interactions[chosen] = torch.where(pairs[chosen], found.to(interactions.dtype), 0)
            finite = torch.stack([x.isfinite().flatten(1).all(1) for x in (*features, interactions)]).all(0)
            known = chosen[finite[chosen]]
            games = [x[known] for x in games]
            loss, metrics = self._learn(games, interactions[known], pairs[known], checked[known], group)
            if self.training:
                self.steps += 1
        return Estimate(interactions, loss, {"computed": (~predicted).float().mean(), **metrics})

    @torch.enable_grad()
    def _learn(
        self, games: list[Tensor], interactions: Tensor, pairs: Tensor, checked: Tensor, group: Group
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on games whose interactions are known, and how well those that are checked were predicted."""
        test = pairs & checked[:, None, None]
        targets = interactions.to(self.mean_square.dtype)
        rate = (1 / (self.steps + 1)).clamp(min=0.1)  # a mean at first, an exponential one later
        learned, tested, squares = _sums(group, pairs.sum(), test.sum(), targets[test].square().sum())
        if self.training and tested:
            self.mean_square.lerp_((squares / tested).to(self.mean_square.dtype), rate)
        if len(targets):
            mean, log_sigma = self.learner(*games)
        else:  # 0, with a gradient of 0 for each parameter, since other processes may have one
            mean = log_sigma = targets + sum(0 * x.sum() for x in self.learner.parameters())
        targets = targets / self.mean_square.sqrt().clamp(min=torch.finfo(targets.dtype).tiny)
        (wrong,) = _sums(group, (targets - mean.detach())[test].square().sum())
        error = (wrong / tested).to(self.error.dtype)
        if self.training and tested:
            self.error.copy_(error if self.error.isinf() else self.error.lerp(error, rate))
        loss = heteroscedastic_loss(mean, log_sigma, targets)[pairs].sum() / learned.clamp(min=1)
        loss = (loss * place(group)[1]).to(targets.dtype)
        return loss, {"error": error.sqrt(), **calibration(mean[test], log_sigma[test], targets[test])}


def _sums(group: Group, *values: Tensor) -> Tensor:
    """Of scalars over the processes, float64."""
    sums = torch.stack([x.detach().double() for x in values])
    if group is not None:
        dist.all_reduce(sums, group=group)
    return sums
