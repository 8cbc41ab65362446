"""Interactions of a game, as a result that can be read, kept and shown."""

import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import check_device, check_floating, check_index, check_int, check_names, check_tensor
from loupe_ext._indices import Index
from loupe_ext._io import write
from loupe_ext.extras import needs

_TENSORS = ("values", "pairs", "value_errors", "pair_errors")


@dataclass(frozen=True, eq=False)
class Interactions:
    """Values of the players of a game and interactions of its pairs.

    Attributes:
        values: [n] (or [C, n], of C games): the Shapley (Banzhaf) value of each player.
        pairs: [n, n] (or [C, n, n]), symmetric, 0 on the diagonal: the interaction of each pair. None in a result of
            order 1.
        value_errors, pair_errors: their standard errors; 0 where exact, NaN where unknown.
        players: names of the players.
        index, p: "shapley", or "banzhaf" with its probability.
        method: how they were found.
        evaluations: how often the game was evaluated for the values; 0 for a closed form.
        baseline: [] (or [C]): the value of the empty coalition, which the players' values are on top of; NaN where it
            was not evaluated.
    """

    values: Tensor
    pairs: Tensor | None
    value_errors: Tensor
    pair_errors: Tensor | None
    players: tuple[str, ...]
    index: Index = "shapley"
    p: float = 0.5
    method: str = "exact, closed form"
    evaluations: int = 0
    baseline: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))

    def __post_init__(self) -> None:
        check_index(self.index, self.p)
        object.__setattr__(self, "p", float(self.p))  # which JSON knows, as it does not NumPy's or a fraction
        check_names("players", self.players)
        if not isinstance(self.method, str):
            raise TypeError(f"method: expected a str, got {type(self.method).__name__}")
        object.__setattr__(self, "evaluations", check_int("evaluations", self.evaluations, 0, 2**63 - 1))
        check_tensor("values", self.values)
        for name in _TENSORS:
            x, dims = getattr(self, name), 2 if "pair" in name else 1
            if dims == 2 and self.pairs is self.pair_errors is None:
                continue
            check_tensor(name, x)
            check_floating(name, x)
            check_device(name, x, "values", self.values)
            expected = (*self.values.shape[:-1][:1], *[self.n] * dims)
            if x.shape != expected:
                raise ValueError(f"{name}: expected shape {expected} for these players, got {tuple(x.shape)}")
        check_tensor("baseline", self.baseline)
        check_floating("baseline", self.baseline)
        check_device("baseline", self.baseline, "values", self.values)
        if self.baseline.dim() == 0:
            object.__setattr__(self, "baseline", self.baseline.expand(self.values.shape[:-1]))
        if self.baseline.shape != self.values.shape[:-1]:
            expected, got = tuple(self.values.shape[:-1]), tuple(self.baseline.shape)
            raise ValueError(f"baseline: expected shape {expected}, got {got}")

    @property
    def n(self) -> int:
        return len(self.players)

    @property
    def order(self) -> int:
        """2 with the interactions of pairs, 1 with values alone."""
        return 1 if self.pairs is None else 2

    def of_order(self, order: int) -> "Interactions":
        """The same, or for order 1 its values alone."""
        return self if check_int("order", order, 1, 2) == 2 else replace(self, pairs=None, pair_errors=None)

    def __repr__(self) -> str:
        index = self.index if self.index == "shapley" else f"{self.index}, p={self.p}"
        games = f"{len(self.values)} games, " if self.values.dim() == 2 else ""
        return f"Interactions({games}{self.n} players, {index}, {self.method}, {self.evaluations} evaluations)"

    def top(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The `k` pairs whose interactions are largest in size, as (player, player, interaction). NaN last."""
        k = check_int("k", k, 0, 2**31)
        pairs = self._pairs_of_one_game()
        i, j = torch.triu_indices(self.n, self.n, 1)
        order = pairs[i, j].abs().nan_to_num(-1.0).argsort(descending=True, stable=True)[:k]
        return [(self.players[a], self.players[b], pairs[a, b].item()) for a, b in zip(i[order], j[order], strict=True)]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        tensors = {name: None if (x := getattr(self, name)) is None else x.tolist() for name in _TENSORS}
        return {
            "players": list(self.players),
            "index": self.index,
            "p": self.p,
            "method": self.method,
            "evaluations": self.evaluations,
            "baseline": self.baseline.tolist(),
            **tensors,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Interactions":
        """The reverse of `to_dict`; a baseline that is not stored is 0."""
        tensors = {
            name: None if stored[name] is None else torch.tensor(stored[name], dtype=torch.float64) for name in _TENSORS
        }
        tensors["baseline"] = torch.tensor(stored.get("baseline", 0.0), dtype=torch.float64)
        return cls(**{**stored, "players": tuple(stored["players"]), **tensors})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, in one piece. Every digit is kept."""
        write(path, json.dumps(self.to_dict()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Interactions":
        """What `save` wrote."""
        try:
            return cls.from_dict(json.loads(Path(path).read_text()))
        except (TypeError, ValueError, KeyError) as error:
            raise ValueError(f"path: expected saved interactions, got {path} ({error})") from error

    def to_shapiq(self) -> Any:
        """As shapiq's `InteractionValues` of order 2: "SII" (Shapley) or "BII" (Banzhaf, p = 1/2)."""
        pairs = self._pairs_of_one_game()
        if self.index == "banzhaf" and self.p != 0.5:
            raise ValueError(f"p: expected 0.5, the Banzhaf index that shapiq knows, got {self.p}")
        with needs("shapiq"):
            import numpy as np
            from shapiq import InteractionValues
        singles = {(i,): self.values[i].item() for i in range(self.n)}
        doubles = {(i, j): pairs[i, j].item() for i in range(self.n) for j in range(i + 1, self.n)}
        lookup = {players: at for at, players in enumerate([*singles, *doubles])}
        return InteractionValues(
            values=np.array([*singles.values(), *doubles.values()]),
            index="SII" if self.index == "shapley" else "BII",
            max_order=2,
            min_order=1,
            n_players=self.n,
            interaction_lookup=lookup,
            estimated=not self.method.startswith("exact"),
            estimation_budget=self.evaluations,
            baseline_value=self.baseline.item(),
        )

    def plot(self, axes: Any = None) -> Any:
        """A heat map of the pairs with the values on the diagonal, on matplotlib's `axes` (None: new ones).

        NaN is grey. Of more than 30 players, not all are named.
        """
        pairs = self._pairs_of_one_game()
        with needs("matplotlib"):
            import matplotlib.pyplot as plt
        if axes is None:
            _, axes = plt.subplots(layout="constrained")
        shown = pairs + torch.diag(self.values)
        limit = shown.nan_to_num().abs().max().item() or 1.0
        picture = axes.imshow(shown.numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
        axes.set_facecolor("grey")  # shows through where there is no number
        step = -(-self.n // 30)
        axes.set_xticks(range(0, self.n, step), self.players[::step], rotation=90, fontsize=8)
        axes.set_yticks(range(0, self.n, step), self.players[::step], fontsize=8)
        axes.figure.colorbar(picture, ax=axes, label="interaction; on the diagonal: value")
        return axes

    def _pairs_of_one_game(self) -> Tensor:
        if self.pairs is None:
            raise ValueError("interactions: expected those of order 2, got order 1, which has values alone")
        if self.values.dim() != 1:
            raise ValueError(f"interactions: expected those of one game, got {len(self.values)} games")
        return self.pairs
