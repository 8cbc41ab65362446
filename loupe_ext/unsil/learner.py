"""The network that predicts interactions and how far off it may be, its loss, and its calibration."""

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from loupe_ext._checks import (
    check_features,
    check_floating,
    check_int,
    check_like,
    check_number,
    check_same,
    check_tensor,
    length_mask,
)
from loupe_ext._dtypes import widened


def check_games(regions: object, phrases: object, alignment: object) -> None:
    """[B, M, d], [B, N, d] and [B, M, N] of floating dtypes."""
    regions = check_features("regions", regions, "BMd")
    phrases = check_features("phrases", phrases, "BNd")
    alignment = check_features("alignment", alignment, "BMN")
    check_same("phrases", phrases, "regions", regions, {"B": (0, 0), "d": (2, 2)})
    check_same("alignment", alignment, "regions", regions, {"B": (0, 0), "M": (1, 1)})
    check_same("alignment", alignment, "phrases", phrases, {"N": (2, 1)})


class InteractionLearner(nn.Module):
    """Predicts the interaction of each region with each phrase, and the standard deviation of its error (section 3.4).

    A pair's features are its alignment, softmaxed over phrases and over regions, the best and the mean of both along
    its row and its column, and a projection of region and phrase. One exchangeable layer (Hartford et al., ICML 2018)
    adds the means of its row and column, so the prediction does not depend on the order of regions or phrases.

    For the interaction of each region with a whole text, as at the token level, the text is one phrase: N = 1.

    Args:
        dim: d of the regions and phrases.
        width: of the hidden layer.

    Raises:
        TypeError, ValueError: an argument is out of its range.
    """

    def __init__(self, dim: int, width: int = 32) -> None:
        super().__init__()
        dim, width = check_int("dim", dim, 1, 2**31), check_int("width", width, 1, 2**31)
        self.scores = nn.Linear(6, width)
        self.region, self.phrase = (nn.Linear(dim, width, bias=False) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        self.own = nn.Linear(width, width)
        self.row, self.column = (nn.Linear(width, width, bias=False) for _ in range(2))
        self.head, self.skip = nn.Linear(width, 2), nn.Linear(6, 2, bias=False)
        for layer in (self.head.weight, self.head.bias, self.skip.weight):
            nn.init.zeros_(layer)  # at first: no interaction, and a deviation of one unit

    def forward(
        self,
        regions: Tensor,
        phrases: Tensor,
        alignment: Tensor,
        region_lengths: Tensor | None = None,
        phrase_lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Predict the interactions of B games. A game's prediction depends on no other game.

        Args:
            regions: [B, M, d]; phrases: [B, N, d]; alignment: [B, M, N] logits; floating dtypes.
            region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.

        Returns:
            The mean and the logarithm of the standard deviation, [B, M, N] each, in the network's dtype and in units of
            what it was trained on; 0 at the padding.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value.
        """
        check_games(regions, phrases, alignment)
        there = length_mask("region_lengths", region_lengths, alignment, 1)[:, :, None]
        present = length_mask("phrase_lengths", phrase_lengths, alignment, 2)[:, None]
        dtype, mask = self.head.weight.dtype, (there & present)[..., None]
        _, (alignment,) = widened(alignment)
        rows = alignment.masked_fill(~present, -torch.inf).softmax(2)
        columns = alignment.masked_fill(~there, -torch.inf).softmax(1)
        # Shares of n, times its square root: their size does not depend on n.
        shares = torch.stack([rows * present.sum(2, keepdim=True).sqrt(), columns * there.sum(1, keepdim=True).sqrt()])
        shares = torch.where(mask[..., 0], shares, 0)
        along = [shares[0].amax(2, keepdim=True), shares[1].amax(1, keepdim=True)]
        across = [shares[0].sum(1, keepdim=True) / there.sum(1, keepdim=True)]
        across += [shares[1].sum(2, keepdim=True) / present.sum(2, keepdim=True)]
        features = torch.stack([*shares, *(x.expand_as(alignment) for x in along + across)], -1).to(dtype)
        x = self.scores(features)
        x = x + self.region(regions.to(dtype).masked_fill(~there, 0))[:, :, None]
        x = x + self.phrase(phrases.to(dtype).masked_fill(~present.mT, 0))[:, None]
        y = self.norm(x)
        held = y * mask
        row = self.row(held.sum(2, keepdim=True) / present.sum(2)[:, :, None, None])
        column = self.column(held.sum(1, keepdim=True) / there.sum(1)[:, :, None, None])
        x = x + gelu(self.own(y) + row + column)
        mean, log_sigma = torch.where(mask, self.head(x) + self.skip(features), 0).unbind(-1)
        return mean, log_sigma.clamp(-7, 7)


def heteroscedastic_loss(mean: Tensor, log_sigma: Tensor, target: Tensor, beta: float = 0.5) -> Tensor:
    """exp(-2 log_sigma) (target - mean)^2 / 2 + log_sigma, each element weighted by sigma^(2 beta), a constant.

    beta = 0 is the negative log-likelihood of Kendall and Gal (NeurIPS 2017), LOUPE's choice. Under it the few large
    interactions are explained by a large sigma and learned no further: on the games of 300 steps of training, the error
    stayed at 0.8 of the interactions' root mean square, and came to 0.2 with beta = 1/2 (Seitzer et al., ICLR 2022).

    Args:
        mean, log_sigma, target: of one shape; floating dtypes, which promote.
        beta: 0 to 1; at 1 the mean learns by squared error.

    Returns:
        The loss of each element, in that shape and the promoted dtype; half types are computed in float32. Gradients
        flow to `mean` and `log_sigma`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    beta = check_number("beta", beta, 0, 1)
    dtype, (mean, log_sigma, target) = _alike(mean, log_sigma, target)
    loss = (target - mean).square() * torch.exp(-2 * log_sigma) / 2 + log_sigma
    return (loss * torch.exp(2 * beta * log_sigma.detach())).to(dtype)


def _alike(mean: Tensor, log_sigma: Tensor, target: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    check_tensor("mean", mean)
    check_floating("mean", mean)
    check_like("log_sigma", log_sigma, "mean", mean, dtype=False)
    check_like("target", target, "mean", mean, dtype=False)
    return widened(mean, log_sigma, target)


def calibration(mean: Tensor, log_sigma: Tensor, target: Tensor) -> dict[str, Tensor]:
    """Whether |error| / sigma is what it says.

    Args:
        mean, log_sigma, target: of one shape; floating dtypes.

    Returns:
        Scalars without a gradient, float32 (float64 if an argument is), NaN if there are no elements. "within_1",
        "within_2", "within_3": the shares of elements whose error is below 1, 2, 3 sigma (of a normal distribution
        .683, .954, .997). "calibration_error": the mean, over the levels .1 to .9, of how far the share within a
        level's central interval is from it (Kuleshov et al., ICML 2018).

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    _, (mean, log_sigma, target) = _alike(mean, log_sigma, target)
    z = ((target - mean) * torch.exp(-log_sigma)).detach().abs().flatten()
    levels = torch.arange(1, 10, device=z.device, dtype=z.dtype) / 10
    shares = (z[:, None] < levels.erfinv() * 2**0.5).to(z.dtype).mean(0)
    within = {f"within_{k}": (z < k).to(z.dtype).mean() for k in (1, 2, 3)}
    return {**within, "calibration_error": (shares - levels).abs().mean()}
