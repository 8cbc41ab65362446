"""Interactions of a game, by the best way it has."""

import torch

from loupe_ext._checks import check_choice, check_index, check_int
from loupe_ext.explain.aggregate import aggregate
from loupe_ext.explain.plan import plan
from loupe_ext.explain.results import Interactions
from loupe_ext.games import Game, closed_form

METHODS = ("auto", "closed form", "stratified", "bernoulli", "permutation")


def interactions(
    game: Game,
    *,
    order: int = 2,
    index: str = "shapley",
    p: float = 0.5,
    method: str = "auto",
    budget: int = 2**14,
    seed: int = 0,
    control: Game | None = None,
    progress: bool = False,
) -> Interactions:
    """Values of all players of a game and interactions of all pairs.

    Args:
        game: `MaxMean`, `MaxSim`, `LateInteraction`, `PooledCosine`, `Function` of `loupe_ext.games`, or your own.
        order: 2, or 1 for the players' values alone.
        index: "shapley" or "banzhaf" (with `p`).
        method: "auto": the closed form where the game has one, else "stratified"; or one of "closed form",
            "stratified", "bernoulli", "permutation" (designs of `plan`). The result says which it was.
        budget: evaluations of the game at most, where there is no closed form. From 2^n on, the result is exact.
        seed: of the coalitions.
        control: a game with known interactions that resembles this one, to make errors smaller (see `aggregate`).
        progress: whether to show a bar on the terminal while `aggregate` works.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; the game has no closed form.
    """
    if not isinstance(game, Game):
        raise TypeError(f"game: expected a Game (wrap a function in games.Function), got {type(game).__name__}")
    order = check_int("order", order, 1, 2)
    check_index(index, p)
    check_choice("method", method, METHODS)
    known = closed_form(game, index, p) if method in ("auto", "closed form") else None
    if known is None and method == "closed form":
        raise ValueError(f"method: expected another than 'closed form', which {type(game).__name__} does not have")
    if known is None:
        design = "stratified" if method == "auto" else method
        planned = plan(game.n, budget, index=index, p=p, design=design, seed=seed)
        values = torch.cat([game(planned.masks(part)) for part in planned.split(1 + len(planned) // 2**14)])
        found = aggregate(planned, values, control=control, players=list(game.players), progress=progress)
        return found.of_order(order)
    values = known.diagonal().clone()
    pairs = known.clone().fill_diagonal_(0)
    errors = torch.zeros_like(values), torch.zeros_like(pairs)
    baseline = game(torch.zeros(1, game.n, dtype=torch.bool))[0]
    return Interactions(values, pairs, *errors, game.players, index, p, baseline=baseline).of_order(order)
