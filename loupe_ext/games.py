"""Games: the value of each coalition of players, and which interactions are known in closed form."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from loupe_ext._checks import check_floating, check_index, check_int, check_names, check_tensor
from loupe_ext._indices import size_weights
from loupe_ext.ops import pairwise_interactions, shapley_values


class Game(ABC):
    """A game of `n` players: a value for each coalition. Subclass it, and write `value_function`, for one of your own.

    Call it with coalitions, masks bool [S, n], to get their values, float64 [S]. Gradients are not recorded.

    Args:
        n: players, 1 to 2^31 - 1. players: their names; None: "0", "1", ...

    Attributes:
        batch_size: coalitions at most per call of `value_function`; a subclass may set it.
    """

    batch_size = 2048
    _function = "value_function"  # what its errors are named by

    def __init__(self, n: int, players: Sequence[str] | None = None) -> None:
        n = check_int("n", n, 1, 2**31 - 1)
        self.n = n
        self.players = check_names("players", [str(i) for i in range(n)] if players is None else players, n)

    @abstractmethod
    def value_function(self, coalitions: Tensor) -> Tensor:
        """Values of coalitions, masks bool [S, n] on the CPU, as a floating tensor [S] on any device."""

    def exact(self, index: str = "shapley", p: float = 0.5) -> Tensor | None:
        """Interactions of all pairs in closed form, float64 [n, n], values on the diagonal; None if unknown."""
        return None

    @torch.no_grad()
    def __call__(self, coalitions: Tensor) -> Tensor:
        check_tensor("coalitions", coalitions)
        if coalitions.dtype != torch.bool:
            raise TypeError(f"coalitions: expected a bool tensor, got {coalitions.dtype}")
        if coalitions.dim() != 2 or coalitions.shape[1] != self.n:
            raise ValueError(f"coalitions: expected shape [S, {self.n}], got {tuple(coalitions.shape)}")
        if not len(coalitions):
            return torch.zeros(0, dtype=torch.float64)
        return torch.cat([self._values(part.clone()) for part in coalitions.split(self.batch_size)])  # it may change it

    def _values(self, coalitions: Tensor) -> Tensor:
        found, S = self.value_function(coalitions), len(coalitions)
        check_tensor(self._function, found)
        check_floating(self._function, found)
        if found.shape != (S,):
            raise ValueError(f"{self._function}: expected a result of shape [{S}], got {tuple(found.shape)}")
        return found.double().cpu()


def closed_form(game: Game, index: str, p: float) -> Tensor | None:
    """What `game.exact` returns, once it is sure to be a matrix of the game's players."""
    known = game.exact(index, p)
    if known is not None:
        check_tensor("exact", known)
        check_floating("exact", known)
        if known.shape != (game.n, game.n):
            raise ValueError(f"exact: expected a result of shape {(game.n, game.n)}, got {tuple(known.shape)}")
        known = known.detach().double().cpu()
    return known


class _Scores(Game):
    """A game of regions and phrases (or of regions alone) over a matrix of scores."""

    def __init__(self, scores: Tensor, n: int, players: Sequence[str] | None) -> None:
        _check_matrix("scores", scores)
        super().__init__(n, players)
        self.scores = scores.detach().double().cpu()
        self.batch_size = max(1, 2**21 // max(1, scores.numel()))


class MaxMean(_Scores):
    """LOUPE's late interaction: `pairwise_interactions` has the formula. Players: M regions, then N phrases.

    Args:
        scores: [M, N], a floating dtype; col_scores: the same for the second direction. None: `scores`.
        players: names of the M + N players.
    """

    def __init__(self, scores: Tensor, col_scores: Tensor | None = None, players: Sequence[str] | None = None) -> None:
        _check_matrix("scores", scores)
        super().__init__(scores, sum(scores.shape), players)
        if col_scores is not None:
            _check_matrix("col_scores", col_scores)
            if col_scores.shape != scores.shape:
                raise ValueError(
                    f"col_scores: expected the shape of scores {tuple(scores.shape)}, got {tuple(col_scores.shape)}"
                )
        self.col_scores = self.scores if col_scores is None else col_scores.detach().double().cpu()

    def value_function(self, coalitions: Tensor) -> Tensor:
        regions, phrases = coalitions.tensor_split([self.scores.shape[0]], 1)
        rows = _mean_of_max(self.scores, regions, phrases)
        return (rows + _mean_of_max(self.col_scores.T, phrases, regions)) / 2

    def exact(self, index: str = "shapley", p: float = 0.5) -> Tensor:
        scores = self.scores, self.col_scores
        pairs = pairwise_interactions(*scores, pairs="all", index=index, p=p)
        return pairs + torch.diag(torch.cat(shapley_values(*scores, index=index, p=p)))


class MaxSim(_Scores):
    """ColBERT's late interaction (Khattab and Zaharia, SIGIR 2020): each query token's best document token, summed.

    Players: M document tokens (regions), then N query tokens (phrases).

    Args:
        scores: [M, N], a floating dtype.
        players: names of the M + N players.
    """

    def __init__(self, scores: Tensor, players: Sequence[str] | None = None) -> None:
        _check_matrix("scores", scores)
        super().__init__(scores, sum(scores.shape), players)

    def value_function(self, coalitions: Tensor) -> Tensor:
        regions, phrases = coalitions.tensor_split([self.scores.shape[0]], 1)
        return _mean_of_max(self.scores.T, phrases, regions) * phrases.sum(1)

    def exact(self, index: str = "shapley", p: float = 0.5) -> Tensor:
        pairs = pairwise_interactions(self.scores, pairs="all", game="maxsim", index=index, p=p)
        return pairs + torch.diag(torch.cat(shapley_values(self.scores, game="maxsim", index=index, p=p)))


class LateInteraction(_Scores):
    r"""Patches (or document tokens) against a fixed text: LOUPE's token level for a late-interaction model.

    .. math:: v(T) = \tfrac12 \big[ \operatorname{mean}_{i \in T} \max_j s_{ij}
                     + \tfrac1N \sum_j \max_{i \in T} s_{ij} \big]

    Args:
        scores: [n, N] of n patches, the players, with N words; a floating dtype.
        players: names of the n players.
    """

    def __init__(self, scores: Tensor, players: Sequence[str] | None = None) -> None:
        _check_matrix("scores", scores)
        super().__init__(scores, len(scores), players)

    def value_function(self, coalitions: Tensor) -> Tensor:
        best = self.scores.amax(1)
        means = (coalitions.double() @ best) / coalitions.sum(1).clamp(min=1)
        covered = torch.where(coalitions[..., None], self.scores, -torch.inf).amax(1).mean(1)
        return torch.where(coalitions.any(1), (means + covered) / 2, 0.0)

    def exact(self, index: str = "shapley", p: float = 0.5) -> Tensor:
        """Of a word's maximum, the gain x brings to a coalition of m others is, on average,

            Psi(x) = e x + sum over the others u_r below x, r their rank, of (x - u_r) f_r

        with e = 1/(m + 1) and f_r = 1/(r (r + 1)) (Banzhaf: q^m and q^(r - 1) p). A pair of patches interacts by
        -Psi of the smaller, which the larger one hides; those below it are the same whether one or both are left out.
        """
        n = self.n
        probability = check_index(index, p)
        best = self.scores.amax(1)
        values = _mean_values(best, size_weights(n - 1, index, p)) + _gains(self.scores, n - 1, probability).mean(1)
        if n == 1:
            return torch.diag(values / 2)
        hidden = _gains(self.scores, n - 2, probability)  # [n, N]
        pairs = _mean_pairs(best, size_weights(n - 2, index, p))
        for word in hidden.T.split(max(1, 2**22 // (n * n))):
            pairs -= torch.minimum(word[:, :, None], word[:, None]).sum(0) / self.scores.shape[1]
        return torch.diagonal_scatter(pairs, values) / 2


class PooledCosine(Game):
    """The cosine of a text with the sum of the patches in the coalition: LOUPE's token level for a pooled embedding.

    Any weighted mean of patches has this form, if the weights are in the patches: a cosine does not see a scale.

    Args:
        patches: [n, d] of n players, a floating dtype. text: [d], any length but 0.
        players: names of the n players.

    The squared norm of the sum counts as at least 4 n eps times the sum of the patches' squared norms, which is above
    its rounding error in `region_interactions`: a coalition whose patches cancel has value about 0. eps is float64's
    for float64 patches and float32's for all others.
    """

    def __init__(self, patches: Tensor, text: Tensor, players: Sequence[str] | None = None) -> None:
        _check_matrix("patches", patches)
        check_tensor("text", text)
        check_floating("text", text)
        _check_held("text", text)
        if text.shape != patches.shape[1:]:
            raise ValueError(f"text: expected shape [{patches.shape[1]}], got {tuple(text.shape)}")
        super().__init__(len(patches), players)
        x, t = _scaled(patches), _scaled(text)
        self.alignment = x @ torch.nn.functional.normalize(t, dim=0)
        self.gram = x @ x.T
        eps = torch.finfo(torch.float64 if patches.dtype == torch.float64 else torch.float32).eps
        self._floors = 4 * len(x) * eps * self.gram.diagonal()

    def value_function(self, coalitions: Tensor) -> Tensor:
        x = coalitions.double()
        floor = x @ self._floors + torch.finfo(torch.float64).tiny
        return (x @ self.alignment) / torch.maximum(((x @ self.gram) * x).sum(1), floor).sqrt()


class Function(Game):
    """Any function of coalitions.

    Args:
        function: masks bool [S, n] -> values, a floating tensor [S]. Gradients are not recorded.
        n: players. players: their names.
        batch_size: coalitions at most per call.
    """

    _function = "function"

    def __init__(
        self, function: Callable[[Tensor], Tensor], n: int, players: Sequence[str] | None = None, batch_size: int = 1024
    ) -> None:
        super().__init__(n, players)
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        self.function, self.batch_size = function, check_int("batch_size", batch_size, 1, 2**31 - 1)

    def value_function(self, coalitions: Tensor) -> Tensor:
        return self.function(coalitions)


def _scaled(x: Tensor) -> Tensor:
    """With 1 as the largest entry, float64: a cosine does not see a scale, and its squares would overflow."""
    x = x.detach().double().cpu()
    largest = x.abs().max()
    return x / torch.where(largest == 0, torch.ones_like(largest), largest)


def _check_held(name: str, value: Tensor) -> None:
    if value.is_meta:
        raise ValueError(f"{name}: expected values, got a tensor on meta")


def _check_matrix(name: str, value: Tensor) -> None:
    check_tensor(name, value)
    check_floating(name, value)
    _check_held(name, value)
    if value.dim() != 2 or 0 in value.shape:
        raise ValueError(f"{name}: expected a matrix, none of its sides 0, got {tuple(value.shape)}")


def _mean_of_max(scores: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The mean over the rows in a coalition of the best of its columns; 0 without a row or a column."""
    best = torch.where(columns[:, None], scores, -torch.inf).amax(2)
    total = torch.where(rows & columns.any(1, keepdim=True), best, 0.0).sum(1)
    return total / rows.sum(1).clamp(min=1)


def _gains(scores: Tensor, others: int, probability: float | None) -> Tensor:
    """Psi of each entry of each column [n, N] with `others` other players, those below it in its column."""
    n = len(scores)
    ordered, order = scores.sort(0, descending=True)
    ranks = torch.arange(1, n + 1, dtype=torch.float64) - (n - others)  # without the players left out, who are above
    ranks = ranks.clamp(min=1)[:, None]
    if probability is None:
        alone, below = 1 / (others + 1), 1 / (ranks * (ranks + 1))
    else:
        alone, below = (1 - probability) ** others, probability * (1 - probability) ** (ranks - 1)
    after = below.flip(0).cumsum(0).flip(0) - below  # sums over those below
    weighted = (below * ordered).flip(0).cumsum(0).flip(0) - below * ordered
    gains = alone * ordered + after * ordered - weighted
    return torch.empty_like(scores).scatter_(0, order, gains)


def _mean_values(x: Tensor, sizes: Tensor) -> Tensor:
    """Values in the game of the coalition's mean, of which the empty one has 0."""
    c = torch.arange(len(sizes), dtype=torch.float64)
    rest = (x.sum() - x) / max(1, len(x) - 1)
    share = (sizes / (c + 1)).sum()
    return x * share - rest * (share - sizes[0])


def _mean_pairs(x: Tensor, sizes: Tensor) -> Tensor:
    """Interactions in the same game."""
    c = torch.arange(len(sizes), dtype=torch.float64)
    both = x[:, None] + x
    rest = (x.sum() - both) / max(1, len(x) - 2)
    inner = (sizes * (c / (c + 2) - 2 * c / (c + 1) + 1))[1:].sum()
    return both * (sizes * (1 / (c + 2) - 1 / (c + 1))).sum() + rest * inner
