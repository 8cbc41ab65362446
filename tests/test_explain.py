"""Plans, aggregation, games and results: unbiased, calibrated, exact where they can be, and kept to the bit."""

import itertools
import json
import math

import pytest
import torch

import loupe_ext
from loupe_ext import games
from loupe_ext._indices import size_weights
from loupe_ext.explain.plan import Plan, pattern_weights, subsets

INDICES = [("shapley", 0.5), ("banzhaf", 0.5), ("banzhaf", 0.2)]


def enumerated(values, n, index="shapley", p=0.5):
    """[n, n]: interactions by their definition, values on the diagonal. `values` [2^n], by the coalition's bits."""
    out = torch.zeros(n, n, dtype=torch.float64)
    for i, j in itertools.combinations_with_replacement(range(n), 2):
        pair = 1 << i | 1 << j
        others = n - len({i, j})
        weights = size_weights(others, index, p)
        for rest in range(2**n):
            if rest & pair:
                continue
            size = rest.bit_count()
            gain = values[rest | 1 << i] - values[rest]
            if i != j:
                gain = values[rest | pair] - values[rest | 1 << j] - gain
            out[i, j] += weights[size] / math.comb(others, size) * gain
        out[j, i] = out[i, j]
    return out


def table_game(values):
    n = (len(values) - 1).bit_length()
    return games.Function(lambda masks: values[(masks.long() << torch.arange(n)).sum(1)], n)


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def as_matrix(found):
    return found.pairs + torch.diag(found.values)


SMALL_GAMES = {
    "max-mean": lambda: games.MaxMean(random(3, 4)),
    "max-mean, two directions": lambda: games.MaxMean(random(3, 3), random(3, 3, seed=1)),
    "max-mean, 1 x 1": lambda: games.MaxMean(random(1, 1)),
    "maxsim": lambda: games.MaxSim(random(4, 3)),
    "late interaction": lambda: games.LateInteraction(random(6, 3)),
    "late interaction, ties": lambda: games.LateInteraction(random(6, 3).round()),
    "late interaction, one patch": lambda: games.LateInteraction(random(1, 3)),
    "late interaction, two patches": lambda: games.LateInteraction(random(2, 1)),
    "pooled cosine": lambda: games.PooledCosine(random(6, 3), random(3)),
    "function": lambda: table_game(random(2**5)),
}


@pytest.mark.parametrize(("index", "p"), INDICES)
@pytest.mark.parametrize("name", SMALL_GAMES)
def test_games_by_every_way_that_is_exact(name, index, p):
    game = SMALL_GAMES[name]()
    every = (torch.arange(2**game.n)[:, None] >> torch.arange(game.n) & 1).bool()
    expected = enumerated(game(every), game.n, index, p)
    found = loupe_ext.interactions(game, index=index, p=p, method="stratified", budget=2**game.n)
    torch.testing.assert_close(as_matrix(found), expected, rtol=0, atol=1e-12)
    assert found.method == "exact, all coalitions"
    assert found.pair_errors.abs().max() == found.value_errors.abs().max() == 0
    known = game.exact(index, p)
    if known is not None:
        torch.testing.assert_close(known, expected, rtol=0, atol=1e-12)
        assert loupe_ext.interactions(game, index=index, p=p).method == "exact, closed form"


@pytest.mark.parametrize(
    "game", [games.MaxMean(random(5, 4)), games.MaxSim(random(5, 4)), games.LateInteraction(random(9, 4))]
)
def test_shapley_values_add_up_to_the_score(game):
    total = game(torch.ones(1, game.n, dtype=torch.bool)).item()
    assert loupe_ext.interactions(game).values.sum().item() == pytest.approx(total, abs=1e-12)


DESIGNS = [
    ("stratified", "shapley", 0.5, True),
    ("stratified", "shapley", 0.5, False),
    ("stratified", "banzhaf", 0.5, True),
    ("stratified", "banzhaf", 0.3, True),
    ("bernoulli", "banzhaf", 0.5, True),
    ("bernoulli", "banzhaf", 0.3, True),
    ("permutation", "shapley", 0.5, True),
    ("permutation", "shapley", 0.5, False),
]


@pytest.mark.parametrize(
    ("design", "index", "p", "antithetic", "fit"),
    [(*design, fit) for design in DESIGNS for fit in (False, True) if not fit or design[0] == "stratified"],
)
def test_estimates_are_unbiased_and_their_errors_calibrated(design, index, p, antithetic, fit):
    """Over many seeds: z-scores of the mean, and how often the 95 % interval covers the truth."""
    n, seeds, budget = (14, 200, 16_000) if design == "permutation" else (11, 200, 1200)
    game = games.LateInteraction(random(n, 3))
    truth = game.exact(index, p)
    values = games.Function(lambda masks: game(masks) + 7.0, n)
    found = []
    for seed in range(seeds):
        plan = loupe_ext.plan(n, budget, design=design, index=index, p=p, antithetic=antithetic, seed=seed)
        assert len(plan) <= budget
        found.append(loupe_ext.aggregate(plan, values(plan.masks()), fit=fit))
    for got, errors, true in (
        (torch.stack([f.values for f in found]), torch.stack([f.value_errors for f in found]), truth.diagonal()),
        (torch.stack([f.pairs for f in found]), torch.stack([f.pair_errors for f in found]), truth),
    ):
        keep = ~torch.eye(n, dtype=torch.bool) if true.dim() == 2 else torch.ones(n, dtype=torch.bool)
        got, errors, true = got[:, keep], errors[:, keep], true[keep]
        z = (got.mean(0) - true) / (got.std(0) / seeds**0.5)
        assert z.abs().max() < 4.5
        assert z.square().mean() < 2
        covered = ((got - true).abs() <= 1.96 * errors).double().mean()
        assert 0.90 < covered < 0.98


def test_plan_is_the_same_everywhere_and_comes_together_bit_for_bit(tmp_path):
    game = table_game(random(2**14))
    plan = loupe_ext.plan(14, 3000, seed=5)
    plan.save(tmp_path / "plan.json")
    again = Plan.load(tmp_path / "plan.json")
    assert again == plan
    assert torch.equal(again.coalitions, plan.coalitions)
    whole = loupe_ext.aggregate(plan, game(plan.masks()))
    parts = torch.cat([game(again.masks(part)) for part in again.split(7)])
    joined = loupe_ext.aggregate(again, parts)
    assert torch.equal(joined.pairs, whole.pairs)
    assert torch.equal(joined.pair_errors, whole.pair_errors)
    assert not torch.equal(loupe_ext.plan(14, 3000, seed=6).coalitions, plan.coalitions)


@pytest.mark.parametrize("budget", [80, 500, 4000, 30_000])
@pytest.mark.parametrize(("index", "p"), INDICES)
def test_stratified_plans(budget, index, p):
    n = 15
    plan = loupe_ext.plan(n, budget, index=index, p=p)
    assert 0.9 * budget <= len(plan) <= budget
    sizes = plan.masks().sum(1)
    stop = 0
    for group in plan.groups:
        assert group.start == stop
        stop = group.stop
        assert (sizes[group.start : group.stop] == group.size).all()
        if group.exhaustive:
            assert group.stop - group.start == math.comb(n, group.size)
            assert len(plan.coalitions[group.start : group.stop].unique()) == math.comb(n, group.size)
        if group.mirror is not None:
            other = plan.groups[group.mirror]
            here, there = plan.masks(slice(group.start, group.stop)), plan.masks(slice(other.start, other.stop))
            assert torch.equal(here, ~there)
    assert stop == len(plan)
    assert len(plan.coalitions.unique(dim=0)) > 0.6 * len(plan)


@pytest.mark.parametrize(("n", "size"), [(5, 0), (5, 1), (5, 3), (6, 3), (6, 6), (70, 2), (70, 69)])
def test_subsets(n, size):
    masks = subsets(n, size)
    assert len(masks) == len(masks.unique(dim=0)) == math.comb(n, size)
    assert (masks.sum(1) == size).all()


def test_chosen_pairs():
    game = games.LateInteraction(random(12, 3))
    pairs = [(0, 1), (7, 3)]
    plan = loupe_ext.plan(12, 2000, design="permutation", pairs=pairs)
    found = loupe_ext.aggregate(plan, game(plan.masks()))
    truth = game.exact()
    for i, j in pairs:
        assert abs(found.pairs[i, j] - truth[i, j]) < 5 * found.pair_errors[i, j]
        assert found.pairs[i, j] == found.pairs[j, i]
    assert found.pairs.isnan().sum() == 12 * 11 - 4
    assert found.values.isnan().all()


def test_many_games_share_a_plan():
    plan = loupe_ext.plan(13, 1000)
    values = [games.LateInteraction(random(13, 3, seed=s))(plan.masks()) for s in range(3)]
    together = loupe_ext.aggregate(plan, torch.stack(values))
    assert together.pairs.shape == (3, 13, 13)
    for k, one in enumerate(values):
        alone = loupe_ext.aggregate(plan, one)
        torch.testing.assert_close(together.pairs[k], alone.pairs, rtol=0, atol=1e-12)
        torch.testing.assert_close(together.pair_errors[k], alone.pair_errors, rtol=0, atol=1e-10)


class Softmax(games.Game):
    """Late interaction with a softmax inside the coalition, which has no closed form."""

    def __init__(self, scores):
        super().__init__(len(scores))
        self.scores = scores

    def value_function(self, coalitions):
        weights = torch.where(coalitions[..., None], self.scores / 0.3, -torch.inf).softmax(1).nan_to_num()
        return (weights * self.scores).sum(1).mean(1)


def test_a_control_and_a_fit_make_errors_smaller():
    n, scores = 14, random(14, 6)
    game, control = Softmax(scores), games.LateInteraction(scores)
    truth = loupe_ext.interactions(game, budget=2**n).pairs
    plan = loupe_ext.plan(n, 2000)
    values = game(plan.masks())

    def error(**options):
        return (loupe_ext.aggregate(plan, values, **options).pairs - truth).square().mean().sqrt().item()

    plain = error(fit=False)
    assert error(fit=True) < 0.6 * plain
    assert error(fit=False, control=control) < 0.75 * plain
    assert error(fit=True, control=control) < 0.6 * error(fit=True)


def direct(plan, y):
    """[2, n, n]: the estimates without a fit and their variances, pattern by pattern and pair by pair."""
    pairs, values = pattern_weights(plan)
    out = torch.zeros(2, plan.n, plan.n, dtype=torch.float64)
    for at, group in enumerate(plan.groups):
        here, level = slice(group.start, group.stop), y[group.start : group.stop].mean()
        masks, t = plan.masks(here), group.size
        for i, j, a, b in itertools.product(range(plan.n), range(plan.n), (0, 1), (0, 1)):
            if i == j and a != b:
                continue
            weight = (values[t][1 - a] * (2 * a - 1) if i == j else pairs[t][2 - a - b] * (1 - 2 * (a != b))).item()
            rows = (masks[:, i] == a) & (masks[:, j] == b)
            found, count = y[here][rows], int(rows.sum())
            out[0, i, j] += group.share * weight * (found.mean() if count else level)
            if group.exhaustive:
                continue
            variance = found.var() if count > 1 else y[here].var()
            out[1, i, j] += (group.share * weight) ** 2 * variance / max(1, count)
            if group.mirror is not None and group.mirror > at and count > 1:
                other = plan.groups[group.mirror]
                u = plan.n - t
                theirs = (values[u][a] * (1 - 2 * a) if i == j else pairs[u][a + b] * (1 - 2 * (a != b))).item()
                both = torch.stack([found, y[other.start : other.stop][rows]])
                out[1, i, j] += 2 * group.share * other.share * weight * theirs * both.cov()[0, 1] / count
    return out


@pytest.mark.parametrize(
    ("n", "budget", "options"),
    [
        (7, 60, {}),
        (8, 180, {"antithetic": False}),
        (8, 200, {"index": "banzhaf"}),
        (8, 150, {"index": "banzhaf", "p": 0.3}),
    ],
)
def test_sums_over_all_pairs_are_those_of_every_pair(n, budget, options):
    plan = loupe_ext.plan(n, budget, **options)
    y = random(len(plan)) + 3 * plan.masks().sum(1)
    found, (mean, variance) = loupe_ext.aggregate(plan, y, fit=False), direct(plan, y)
    errors = found.pair_errors + torch.diag(found.value_errors)
    torch.testing.assert_close(as_matrix(found), mean, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(errors, variance.sqrt(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("fit", [False, True])
def test_pairs_are_symmetric_to_the_bit(fit):
    plan = loupe_ext.plan(13, 1000)
    found = loupe_ext.aggregate(plan, random(len(plan)), fit=fit)
    assert torch.equal(found.pairs, found.pairs.mT)
    assert torch.equal(found.pair_errors, found.pair_errors.mT)


def test_nan_stays_in_its_own_game():
    plan = loupe_ext.plan(12, 600)
    values = torch.stack([random(len(plan)), random(len(plan), seed=1)])
    clean = loupe_ext.aggregate(plan, values)
    values[0, 17] = torch.nan
    found = loupe_ext.aggregate(plan, values)
    assert found.values[0].isnan().all()
    assert found.pairs[0][~torch.eye(12, dtype=torch.bool)].isnan().all()
    assert torch.equal(found.pairs[1], clean.pairs[1])


def test_nan_leaves_the_diagonal_of_a_closed_form():
    scores = random(4, 3)
    scores[1, 2] = torch.nan
    for game in (games.MaxMean(scores), games.MaxSim(scores), games.LateInteraction(scores)):
        assert (loupe_ext.interactions(game).pairs.diagonal() == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_patches_that_cancel_have_value_0(dtype):
    x, text = random(12, 8) - 0.5, random(8, seed=1) - 0.5
    x = (x - x.mean(0)).to(dtype)
    masks = torch.ones(2, 12, dtype=torch.bool)
    masks[1, 0] = False
    value = games.PooledCosine(x, text.to(dtype))(masks)
    assert value[0].abs() < 1e-3
    assert value[1].item() == pytest.approx(-torch.cosine_similarity(x[0].double(), text, dim=0).item(), abs=1e-5)


def test_a_cosine_sees_no_scale_of_its_own_coalition():
    x, text = random(5, 3) - 0.5, random(3, seed=1)
    x[0] *= 1e9  # beside which the others are small: their coalitions are not
    want = torch.cosine_similarity(x, text, dim=1)
    for scale in (1.0, 1e-200, 1e200):
        got = games.PooledCosine(x * scale, text / scale)(torch.eye(5, dtype=torch.bool))
        torch.testing.assert_close(got, want, rtol=1e-9, atol=0)


def test_patches_of_no_length_have_value_0():
    values = games.PooledCosine(torch.zeros(3, 2), random(2))(torch.eye(3, dtype=torch.bool))
    assert (values == 0).all()


def test_large_common_values_cost_no_digits():
    game = games.LateInteraction(random(8, 2))
    plan = loupe_ext.plan(8, 256)
    found = loupe_ext.aggregate(plan, game(plan.masks()) + 1e6)
    torch.testing.assert_close(as_matrix(found), game.exact(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("design", ["stratified", "permutation"])
def test_large_interactions_do_not_drown_their_standard_errors(design):
    """All pairs interact by 2^26 more, which float64 adds to these values without rounding."""
    values = (random(2**10) * 2**20).round() / 2**20
    plan = loupe_ext.plan(10, 400, design=design)
    masks = plan.masks()
    rows, size = (masks.long() << torch.arange(10)).sum(1), masks.sum(1)
    small = loupe_ext.aggregate(plan, values[rows], fit=False)
    large = loupe_ext.aggregate(plan, values[rows] + 2.0**25 * size * (size - 1), fit=False)
    torch.testing.assert_close(large.pair_errors, small.pair_errors, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_standard_errors_are_known_wherever_a_size_has_a_few_coalitions():
    plan = loupe_ext.plan(30, 420)
    found = loupe_ext.aggregate(plan, random(len(plan)))
    assert not found.pair_errors.isnan().any()
    assert not found.value_errors.isnan().any()


@pytest.mark.parametrize("budget", [2000, 2300])
def test_the_surrogate_does_no_harm_where_coalitions_are_few(budget):
    game, plan = games.MaxMean(random(12, 12)), loupe_ext.plan(24, budget)
    values, truth = game(plan.masks()), game.exact().fill_diagonal_(0)
    with_fit, without = (
        (loupe_ext.aggregate(plan, values, fit=fit).pairs - truth).square().mean() for fit in (True, False)
    )
    assert with_fit.sqrt() < 1.1 * without.sqrt()


@pytest.mark.parametrize("level", [0.0, 1 / 3, 0.7])
def test_a_control_that_is_constant_but_for_rounding_changes_nothing(level):
    game, plan = games.LateInteraction(random(13, 5)), loupe_ext.plan(13, 600)
    control = games.LateInteraction(torch.full((13, 5), level, dtype=torch.float64))
    values = game(plan.masks())
    found = loupe_ext.aggregate(plan, values, control=control)
    want = loupe_ext.aggregate(plan, values)
    torch.testing.assert_close(found.pairs, want.pairs, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pairs", [None, [(0, 1)]])
@pytest.mark.filterwarnings("error")
def test_a_single_pair_of_walks_has_no_standard_error(pairs):
    least = 2 + 2 * 14 if pairs is None else 2 * 4 * 7
    plan = loupe_ext.plan(8, least, design="permutation", pairs=pairs)
    assert len(plan) == least
    found = loupe_ext.aggregate(plan, random(len(plan)))
    assert found.value_errors.isnan().all()
    assert found.pair_errors[0, 1].isnan()
    with pytest.raises(ValueError, match=f"budget: expected at least {least}"):
        loupe_ext.plan(8, least - 1, design="permutation", pairs=pairs)


@pytest.mark.parametrize("n", [1, 2, 3, 64, 65, 130])
def test_few_and_many_players(n):
    budget = min(2**n, 3000)
    plan = loupe_ext.plan(n, budget)
    weights = random(n)
    found = loupe_ext.aggregate(plan, plan.masks().double() @ weights)  # an additive game
    torch.testing.assert_close(found.values, weights, rtol=0, atol=1e-9)
    assert found.pairs.abs().max() < 1e-9


def test_results_are_kept_to_the_last_digit(tmp_path):
    found = loupe_ext.interactions(games.LateInteraction(random(9, 3), [f"patch {i}" for i in range(9)]))
    found.save(tmp_path / "found.json")
    again = loupe_ext.Interactions.load(tmp_path / "found.json")
    assert torch.equal(again.pairs, found.pairs)
    assert torch.equal(again.values, found.values)
    assert again.players == found.players
    assert repr(again) == repr(found) == "Interactions(9 players, shapley, exact, closed form, 0 evaluations)"
    top = found.top(3)
    assert [abs(t[2]) for t in top] == sorted(found.pairs.triu(1).abs().flatten().tolist(), reverse=True)[:3]
    assert all(found.pairs[found.players.index(a), found.players.index(b)] == value for a, b, value in top)


@pytest.mark.parametrize("method", ["closed form", "stratified"])
def test_values_alone(method, tmp_path):
    game = games.LateInteraction(random(9, 3))
    found = loupe_ext.interactions(game, order=1, method=method, budget=400)
    assert found.order == 1
    assert found.pairs is found.pair_errors is None
    assert torch.equal(found.values, loupe_ext.interactions(game, method=method, budget=400).values)
    found.save(tmp_path / "found.json")
    assert loupe_ext.Interactions.load(tmp_path / "found.json").pairs is None
    with pytest.raises(ValueError, match="order 2, got order 1"):
        found.top()


@pytest.mark.parametrize("index", ["shapley", "banzhaf"])
def test_shapiq_agrees(index):
    shapiq = pytest.importorskip("shapiq")
    game = games.LateInteraction(random(6, 3))
    computer = shapiq.ExactComputer(game=lambda masks: game(torch.from_numpy(masks)).numpy(), n_players=6)
    theirs = computer("SII" if index == "shapley" else "BII", order=2)
    ours = loupe_ext.interactions(game, index=index).to_shapiq()
    for players in itertools.chain(itertools.combinations(range(6), 1), itertools.combinations(range(6), 2)):
        assert ours[players] == pytest.approx(theirs[players], abs=1e-12)


@pytest.mark.parametrize("design", ["stratified", "permutation", "bernoulli"])
def test_the_empty_coalition_is_kept(design, tmp_path):
    game = games.LateInteraction(random(9, 3))
    index = "banzhaf" if design == "bernoulli" else "shapley"
    plan = loupe_ext.plan(9, 400, design=design, index=index)
    values = torch.stack([game(plan.masks()) + 5, game(plan.masks()) - 1])
    found = loupe_ext.aggregate(plan, values, control=game)
    held = not plan.masks().any(1).all()
    assert held or design == "bernoulli"
    want = torch.tensor([5.0, -1.0] if held else [torch.nan] * 2, dtype=torch.float64)
    found.save(tmp_path / "found.json")
    for kept in (found, found.of_order(1), loupe_ext.Interactions.load(tmp_path / "found.json")):
        torch.testing.assert_close(kept.baseline, want, rtol=0, atol=0, equal_nan=True)
    one = loupe_ext.aggregate(plan, values[0])
    assert one.baseline.shape == ()
    pytest.importorskip("shapiq")
    assert one.to_shapiq().baseline_value == pytest.approx(want[0].item(), nan_ok=True)


def test_a_closed_form_and_an_old_file_have_a_baseline():
    class Raised(games.MaxSim):
        def value_function(self, coalitions):
            return super().value_function(coalitions) + 5

    found = loupe_ext.interactions(Raised(X))
    assert found.baseline == 5
    stored = found.to_dict()
    del stored["baseline"]
    assert loupe_ext.Interactions.from_dict(stored).baseline == 0


def test_plot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    axes = loupe_ext.interactions(games.LateInteraction(random(5, 3))).plot()
    assert len(axes.get_xticklabels()) == 5
    axes = loupe_ext.interactions(games.LateInteraction(random(61, 3))).plot()
    assert [label.get_text() for label in axes.get_yticklabels()][:3] == ["0", "3", "6"]


X = random(4, 3)
PLAN = loupe_ext.plan(8, 60)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: loupe_ext.plan(0, 10), ValueError, "n: expected 1"),
        (lambda: loupe_ext.plan(2.0, 10), TypeError, "n: expected an int"),
        (lambda: loupe_ext.plan(20, 10), ValueError, "budget: expected at least 84"),
        (lambda: loupe_ext.plan(8, 60, index="owen"), ValueError, "index"),
        (lambda: loupe_ext.plan(8, 60, index="banzhaf", p=1.0), ValueError, "p: "),
        (lambda: loupe_ext.plan(8, 60, design="sobol"), ValueError, "design: expected one of"),
        (lambda: loupe_ext.plan(8, 60, design="bernoulli"), ValueError, "design: expected 'stratified'"),
        (lambda: loupe_ext.plan(8, 60, pairs=[(0, 1)]), ValueError, "pairs: expected None"),
        (lambda: loupe_ext.plan(8, 60, design="permutation", pairs=[(0, 8)]), ValueError, "pairs"),
        (lambda: loupe_ext.plan(8, 60, design="permutation", pairs=[(0, 0)]), ValueError, "pairs"),
        (lambda: loupe_ext.plan(8, 60, design="permutation", pairs=[(0, 1), (1, 0)]), ValueError, "pairs"),
        (lambda: loupe_ext.plan(8, 60, design="permutation", pairs=[(0, 1, 2)]), TypeError, "pairs: expected a seq"),
        (lambda: loupe_ext.plan(8, 60, design="permutation", pairs=5), TypeError, "pairs: expected a sequence"),
        (lambda: loupe_ext.plan(3, 7), ValueError, "budget: expected at least 8"),
        (lambda: loupe_ext.plan(8, 60, seed=-1), ValueError, "seed"),
        (lambda: PLAN.split(0), ValueError, "parts"),
        (lambda: loupe_ext.aggregate(PLAN, torch.zeros(3)), ValueError, "values: expected shape"),
        (
            lambda: loupe_ext.aggregate(PLAN, torch.zeros(len(PLAN), dtype=torch.int64)),
            TypeError,
            "values: expected a floating",
        ),
        (lambda: loupe_ext.aggregate("plan", torch.zeros(3)), TypeError, "plan: expected a Plan"),
        (lambda: loupe_ext.aggregate(PLAN, torch.zeros(len(PLAN)), players=["a"]), ValueError, "players: expected 8"),
        (
            lambda: loupe_ext.aggregate(PLAN, torch.zeros(len(PLAN)), control=games.MaxSim(X)),
            ValueError,
            "control: expected a game of 8 players, got one of 7",
        ),
        (
            lambda: loupe_ext.aggregate(
                PLAN, torch.zeros(len(PLAN)), control=games.PooledCosine(random(8, 2), random(2))
            ),
            ValueError,
            "control: .* closed form",
        ),
        (lambda: loupe_ext.aggregate(PLAN, torch.zeros(len(PLAN)).to_sparse()), TypeError, "values: expected a dense"),
        (
            lambda: loupe_ext.aggregate(PLAN, torch.zeros(len(PLAN)), control=lambda m: m),
            TypeError,
            "control: expected a Game",
        ),
        (lambda: games.LateInteraction(X).exact("shaply"), ValueError, "index: expected"),
        (lambda: games.LateInteraction(X).exact("banzhaf", 2.0), ValueError, "p: expected"),
        (lambda: games.Function(len, 0), ValueError, "n: expected 1"),
        (lambda: games.Function(len, 2.5), TypeError, "n: expected an int"),
        (lambda: games.Function(len, 3, batch_size=0), ValueError, "batch_size: expected 1"),
        (lambda: games.Function(3, 3), TypeError, "function: expected a callable"),
        (lambda: loupe_ext.interactions(games.MaxSim(X)).top(-1), ValueError, "k: expected 0"),
        (lambda: games.MaxMean(X, X[:2]), ValueError, "col_scores: expected the shape"),
        (lambda: games.MaxMean(X[0]), ValueError, "scores: expected a matrix"),
        (lambda: games.MaxSim(X.long()), TypeError, "scores"),
        (lambda: games.LateInteraction(X, players=["a"]), ValueError, "players: expected 4"),
        (lambda: games.PooledCosine(X, X[0, :2]), ValueError, r"text: expected shape \[3\]"),
        (
            lambda: games.MaxSim(X)(torch.ones(2, 3, dtype=torch.bool)),
            ValueError,
            r"coalitions: expected shape \[S, 7\]",
        ),
        (lambda: games.MaxSim(X)(torch.ones(2, 7)), TypeError, "coalitions: expected a bool"),
        (lambda: games.Function(lambda m: m, 3)(torch.ones(2, 3, dtype=torch.bool)), TypeError, "function"),
        (lambda: games.Function(lambda m: m.double(), 3)(torch.ones(2, 3, dtype=torch.bool)), ValueError, "function"),
        (lambda: loupe_ext.interactions(lambda m: m), TypeError, "game: expected a Game"),
        (lambda: loupe_ext.interactions(games.MaxSim(X), method="magic"), ValueError, "method"),
        (lambda: loupe_ext.interactions(games.MaxSim(X), order=3), ValueError, "order: expected 1 to 2"),
        (
            lambda: loupe_ext.interactions(games.PooledCosine(X, X[0]), method="closed form"),
            ValueError,
            "PooledCosine does not have",
        ),
    ],
)
def test_bad_input_is_named(call, error, said):
    with pytest.raises(error, match=said):
        call()


@pytest.mark.parametrize("held", [b'{"n": 3}', b"", b'{"n": 8, "bud', b"[]", b"\xff\x00"])
def test_files_that_hold_something_else(held, tmp_path):
    (tmp_path / "x.json").write_bytes(held)
    for load in (Plan.load, loupe_ext.Interactions.load):
        with pytest.raises(ValueError, match="path: expected"):
            load(tmp_path / "x.json")


@pytest.mark.parametrize(
    "changed",
    [
        {"values": [1.0]},
        {"values": None},
        {"pairs": [[1.0]]},
        {"pairs": [[1.0, 2.0], [3.0]]},
        {"pair_errors": None},
        {"players": ["a"]},
        {"index": "owen"},
        {"baseline": [1.0]},
        {"baseline": "1"},
    ],
)
def test_results_that_do_not_fit_together(changed, tmp_path):
    stored = loupe_ext.interactions(games.MaxSim(X)).to_dict()
    (tmp_path / "x.json").write_text(json.dumps({**stored, **changed}))
    with pytest.raises(ValueError, match="path: expected"):
        loupe_ext.Interactions.load(tmp_path / "x.json")


def test_a_bar_shows_how_far_it_is_and_changes_nothing(monkeypatch, capsys):
    pytest.importorskip("rich")
    monkeypatch.setenv("FORCE_COLOR", "1")
    game = games.Function(lambda masks: masks.double().sum(1).square(), 7)
    quiet = loupe_ext.interactions(game, budget=100)
    assert capsys.readouterr().err == ""
    shown = loupe_ext.interactions(game, budget=100, progress=True)
    assert "aggregate" in capsys.readouterr().err
    assert torch.equal(shown.pairs, quiet.pairs)
