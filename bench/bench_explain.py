"""Estimated interactions of all pairs beside shapiq's estimators, at equal numbers of evaluations."""

import pytest
import torch

from loupe_ext import aggregate, games, interactions, plan

BUDGET = 2**14


class SoftLateInteraction(games.Game):
    """Late interaction whose softmax over patches is taken inside the coalition: no closed form."""

    def __init__(self, scores):
        super().__init__(len(scores))
        self.scores = scores.double()

    def value_function(self, coalitions):
        weights = torch.where(coalitions[..., None], self.scores / 0.3, -torch.inf).softmax(1).nan_to_num()
        return (weights * self.scores).sum(1).mean(1)


def random(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SCORES = random(16, 8)
GAMES = {
    "max-mean, 20 players": games.MaxMean(random(10, 10)),
    "max-mean, 32 players": games.MaxMean(random(16, 16)),
    "pooled cosine, 16 players": games.PooledCosine(random(16, 6) - 0.3, random(6, seed=1)),
    "softmax in the coalition, 16 players": SoftLateInteraction(SCORES),
}
CONTROLS = {"softmax in the coalition, 16 players": games.LateInteraction(SCORES)}


def budget(game):
    return BUDGET if game.n > 16 else BUDGET // 4


def by_shapiq(kind, game, seed):
    approximators = pytest.importorskip("shapiq.approximator")
    approximator = getattr(approximators, kind)(game.n, 2, "SII", random_state=seed)
    found = approximator.approximate(budget(game), lambda masks: game(torch.from_numpy(masks).view(-1, game.n)).numpy())
    pairs = torch.zeros(game.n, game.n, dtype=torch.float64)
    for i in range(game.n):
        for j in range(i + 1, game.n):
            pairs[i, j] = pairs[j, i] = found[(i, j)]
    return pairs


def by_us(game, seed, **options):
    planned = plan(game.n, budget(game), seed=seed)
    return aggregate(planned, game(planned.masks()), **options).pairs


SIDES = {
    "loupe_ext": lambda game, name, seed: by_us(game, seed),
    "loupe_ext, without fit": lambda game, name, seed: by_us(game, seed, fit=False),
    "loupe_ext, with a control": lambda game, name, seed: by_us(game, seed, control=CONTROLS[name]),
    "shapiq, SVARM-IQ": lambda game, name, seed: by_shapiq("SVARMIQ", game, seed),
    "shapiq, KernelSHAP-IQ": lambda game, name, seed: by_shapiq("KernelSHAPIQ", game, seed),
    "shapiq, permutations": lambda game, name, seed: by_shapiq("PermutationSamplingSII", game, seed),
}


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("side", SIDES)
def test_estimate(benchmark, side, name):
    """The time holds the game's evaluations, which is the same for every side."""
    if "control" in side and name not in CONTROLS:
        pytest.skip("no control for this game")
    torch.set_num_threads(1)
    game = GAMES[name]
    truth = interactions(game, budget=2**16).pairs
    off = ~torch.eye(game.n, dtype=torch.bool)
    errors = []

    def call():
        found = SIDES[side](game, name, len(errors))
        errors.append(((found - truth)[off].square().mean() / truth[off].square().mean()).sqrt().item())

    slow = side.startswith("shapiq")
    benchmark.pedantic(call, rounds=1 if slow else 5, warmup_rounds=0 if slow else 1)
    error = sum(errors) / len(errors)
    info = {"op": "explain", "direction": "estimate", "device": "cpu", "size": name, "side": side}
    benchmark.extra_info.update(info, pairs=budget(game), error=error)
    assert slow or error < 0.3
