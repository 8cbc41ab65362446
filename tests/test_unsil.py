import dataclasses
import functools
import math

import pytest
import torch
from torch import Tensor

from loupe_ext import pairwise_interactions, sample_coalitions, unpack_coalitions
from loupe_ext.games import MaxMean
from loupe_ext.losses import alignment_interactions, sampled_interactions
from loupe_ext.unsil import Estimate, InteractionLearner, Unsil, calibration, heteroscedastic_loss
from tests.backends import assert_close
from tests.samples import random_pairs

REGIONS, PHRASES = torch.tensor([5, 2, 1]), torch.tensor([4, 1, 3])  # of batches of three 5 x 4 games


def mask_of(M: int, N: int, regions: Tensor, phrases: Tensor) -> Tensor:
    return (torch.arange(M) < regions[:, None])[:, :, None] & (torch.arange(N) < phrases[:, None])[:, None]


class TestSampling:
    @pytest.mark.parametrize("chunk", [2**18, 40, 1])  # of entries: a batch at once, two coalitions, one
    def test_is_the_mean_of_four_values_of_the_game_over_coalitions_without_the_pair(self, chunk, monkeypatch):
        monkeypatch.setattr("loupe_ext.losses.sampled._ENTRIES", chunk)
        rows, columns = random_pairs(3, 5, 4), random_pairs(3, 5, 4, 1)
        got = sampled_interactions(rows, columns, 9, 7, REGIONS, PHRASES)
        drawn = unpack_coalitions(sample_coalitions(9, 9, 3, seed=7, antithetic=False), 9)
        for b, (m, n) in enumerate(zip(REGIONS.tolist(), PHRASES.tolist(), strict=True)):
            game = MaxMean(rows[b, :m, :n], columns[b, :m, :n])
            coalitions = torch.cat([drawn[b, :, :m], drawn[b, :, 5 : 5 + n]], 1)
            for i in range(m):
                for j in range(n):
                    values = {}
                    for x in (False, True):
                        for y in (False, True):
                            with_pair = coalitions.clone()
                            with_pair[:, i], with_pair[:, m + j] = x, y
                            values[x, y] = game(with_pair).mean()
                    want = values[True, True] - values[True, False] - values[False, True] + values[False, False]
                    assert got[b, i, j].item() == pytest.approx(want.item(), abs=1e-13)
        assert got[~mask_of(5, 4, REGIONS, PHRASES)].abs().sum() == 0

    def test_unbiased(self):
        rows, columns, runs = random_pairs(3, 5, 4), random_pairs(3, 5, 4, 1), 300
        exact = pairwise_interactions(rows, columns, region_lengths=REGIONS, phrase_lengths=PHRASES)
        estimates = [sampled_interactions(rows, columns, 40, seed, REGIONS, PHRASES) for seed in range(runs)]
        estimates = torch.stack(estimates)[:, mask_of(5, 4, REGIONS, PHRASES)]
        deviation = estimates.std(0)
        assert deviation.min() > 0
        z = (estimates.mean(0) - exact[mask_of(5, 4, REGIONS, PHRASES)]) / (deviation / runs**0.5)
        assert z.abs().max() < 4
        assert 0.5 < z.square().mean() < 2

    def test_error_falls_as_the_root_of_the_number_of_coalitions(self):
        scores = random_pairs(20, 12, 5)
        exact = pairwise_interactions(scores)
        few, many = ((sampled_interactions(scores, scores, k) - exact).square().mean().sqrt() for k in (16, 1600))
        assert 7 < few / many < 14

    def test_the_draws_are_those_of_the_seed(self):
        scores = random_pairs(3, 5, 4)
        one, again, other = (sampled_interactions(scores, scores, 8, seed) for seed in (1, 1, 2))
        assert torch.equal(one, again)
        assert not torch.equal(one, other)

    def test_without_players_outside_the_pair_there_is_nothing_to_sample(self):
        rows, columns = random_pairs(4, 1, 1), random_pairs(4, 1, 1, 1)
        assert_close(sampled_interactions(rows, columns, 3), (rows + columns) / 2, 1e-12)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_dtypes(self, dtype):
        scores = random_pairs(3, 5, 4).to(dtype)
        got = sampled_interactions(scores, scores, 20)
        assert got.dtype == dtype
        want = sampled_interactions(scores.double(), scores.double(), 20)
        assert_close(got.double(), want, 1e-5 if dtype == torch.float32 else 2e-2)

    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
    def test_padding_is_never_read_and_nan_stays_in_its_problem(self, rubbish):
        scores = random_pairs(3, 5, 4)
        want = sampled_interactions(scores, scores, 9, 0, REGIONS, PHRASES)
        spoilt = scores.masked_fill(~mask_of(5, 4, REGIONS, PHRASES), rubbish)
        assert torch.equal(sampled_interactions(spoilt, spoilt, 9, 0, REGIONS, PHRASES), want)
        spoilt[1, 0, 0] = math.nan
        got = sampled_interactions(spoilt, spoilt, 9, 0, REGIONS, PHRASES)
        assert got[1].isnan().any()
        assert torch.equal(got[[0, 2]], want[[0, 2]])

    def test_carries_no_gradient(self):
        logits = random_pairs(2, 3, 2).requires_grad_()
        assert not alignment_interactions(logits, num_samples=4).requires_grad

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x: sampled_interactions(x[0], x[0]), ValueError, r"rows: expected shape \[B, M, N\]"),
            (lambda x: sampled_interactions(x, x[:2]), ValueError, "columns: expected the shape of rows"),
            (lambda x: sampled_interactions(x, x.bool()), TypeError, "columns: expected dtype"),
            (lambda x: sampled_interactions(x, x, 0), ValueError, "num_samples: expected 1 to .* got 0"),
            (lambda x: sampled_interactions(x, x, 2.0), TypeError, "num_samples: expected an int, got float"),
            (lambda x: sampled_interactions(x, x, 2, -1), ValueError, "seed: expected 0 to .* got -1"),
            (lambda x: sampled_interactions(x, x, 2, 0, None, REGIONS), ValueError, r"phrase_lengths: .* in 1..4"),
            (
                lambda x: sampled_interactions(*[x.new_zeros(1, 1024, 1)] * 2),
                ValueError,
                "rows: expected at most 1024 regions and phrases together, got 1025",
            ),
        ],
    )
    def test_bad_input(self, call, error, message):
        with pytest.raises(error, match=message):
            call(random_pairs(3, 5, 4))


@dataclasses.dataclass
class Games:
    regions: Tensor
    phrases: Tensor
    alignment: Tensor
    lengths: Tensor  # of phrases
    interactions: Tensor

    @property
    def inputs(self):
        return self.regions, self.phrases, self.alignment, None, self.lengths

    @property
    def pairs(self) -> Tensor:
        return mask_of(*self.alignment.shape[1:], torch.full_like(self.lengths, self.alignment.shape[1]), self.lengths)


def games(seed: int, B: int = 24, M: int = 12, N: int = 3, scale: float = 6.0, sign: float = 1.0) -> Games:
    """Phrases each of which has a region of its own; their interactions times `sign`."""
    generator = torch.Generator().manual_seed(seed)
    normal = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    phrases = normal(B, N, 8)
    regions = torch.cat([phrases, normal(B, M - N, 8)], 1) + 0.3 * normal(B, M, 8)
    regions, phrases = torch.nn.functional.normalize(regions, dim=-1), torch.nn.functional.normalize(phrases, dim=-1)
    lengths = torch.randint(1, N + 1, (B,), generator=generator)
    alignment = scale * regions @ phrases.mT
    return Games(regions, phrases, alignment, lengths, sign * alignment_interactions(alignment, None, lengths))


@functools.cache
@torch.enable_grad()
def taught() -> tuple[InteractionLearner, float]:
    """A learner of such games, after some seconds of training, and their interactions' root mean square."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        learner = InteractionLearner(8)
    unit = games(0).interactions[games(0).pairs].square().mean().sqrt().item()
    optimizer = torch.optim.AdamW(learner.parameters(), 1e-2)
    for step in range(300):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 300)
        batch = games(step)
        mean, log_sigma = learner(*batch.inputs)
        loss = heteroscedastic_loss(mean, log_sigma, batch.interactions / unit)[batch.pairs].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return learner.eval(), unit


class TestLearner:
    @torch.no_grad()
    def test_learns_interactions_and_how_far_off_it_is_on_games_it_has_not_seen(self):
        learner, unit = taught()
        held_out = games(10_000, B=200)
        mean, log_sigma = (x[held_out.pairs] for x in learner(*held_out.inputs))
        targets = held_out.interactions[held_out.pairs] / unit
        assert (mean - targets).square().mean() < (targets.mean() - targets).square().mean() / 100
        shares = calibration(mean, log_sigma, targets)
        assert shares["calibration_error"] < 0.08
        assert 0.55 < shares["within_1"] < 0.85
        assert shares["within_2"] > 0.9
        assert shares["within_3"] > 0.97
        sure = log_sigma < log_sigma.median()
        assert (mean - targets)[sure].square().mean() < (mean - targets)[~sure].square().mean() / 2

    def test_starts_from_no_interaction_and_one_unit_of_doubt(self):
        mean, log_sigma = InteractionLearner(8)(*games(0).inputs)
        assert mean.abs().max() == log_sigma.abs().max() == 0

    @torch.no_grad()
    def test_the_order_of_regions_and_phrases_does_not_matter(self):
        learner, x = taught()[0].double(), games(5)
        regions, phrases, alignment = x.regions.double(), x.phrases.double(), x.alignment.double()
        rows, columns = torch.randperm(12), torch.randperm(3)
        want = learner(regions, phrases, alignment)
        got = learner(regions[:, rows], phrases[:, columns], alignment[:, rows][:, :, columns])
        taught()[0].float()
        for a, b in zip(got, want, strict=True):
            assert_close(a, b[:, rows][:, :, columns], 1e-12)

    @torch.no_grad()
    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
    def test_a_padded_game_is_predicted_as_it_is_alone_whatever_stands_at_the_padding(self, rubbish):
        learner, x, counts = taught()[0], games(5, B=3), torch.tensor([12, 7, 1])
        regions = x.regions.masked_fill((torch.arange(12) >= counts[:, None])[..., None], rubbish)
        phrases = x.phrases.masked_fill((torch.arange(3) >= x.lengths[:, None])[..., None], rubbish)
        there = mask_of(12, 3, counts, x.lengths)
        got = learner(regions, phrases, x.alignment.masked_fill(~there, rubbish), counts, x.lengths)
        for b, (m, n) in enumerate(zip(counts.tolist(), x.lengths.tolist(), strict=True)):
            alone = learner(x.regions[b, None, :m], x.phrases[b, None, :n], x.alignment[b, None, :m, :n])
            for a, w in zip(got, alone, strict=True):
                assert_close(a[b, :m, :n], w[0], 1e-4)
        assert all(a[~there].abs().sum() == 0 for a in got)

    def test_a_text_as_one_phrase(self):
        x = games(5)
        mean, log_sigma = taught()[0](x.regions, x.phrases[:, :1], x.alignment[:, :, :1])
        assert mean.shape == log_sigma.shape == (24, 12, 1)
        assert mean.isfinite().all()

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda f, r, p, a: f(r[0], p, a), ValueError, r"regions: expected shape \[B, M, d\]"),
            (lambda f, r, p, a: f(r, p[:2], a), ValueError, r"phrases: expected the B of regions"),
            (lambda f, r, p, a: f(r, p.bool(), a), TypeError, "phrases: expected dtype"),
            (lambda f, r, p, a: f(r, p, a[:, :2]), ValueError, "alignment: expected the M of regions"),
            (lambda f, r, p, a: f(r, p, a[:, :, :2]), ValueError, "alignment: expected the N of phrases"),
            (lambda f, r, p, a: f(r, p, a, None, torch.zeros(24).long()), ValueError, "phrase_lengths: .* in 1..3"),
            (lambda f, r, p, a: heteroscedastic_loss(a, a, p), ValueError, "target: expected the shape of mean"),
            (lambda f, r, p, a: heteroscedastic_loss(a, a, a, 2), ValueError, "beta: expected .* at most 1, got 2"),
        ],
    )
    def test_bad_input(self, call, error, message):
        x = games(0)
        with pytest.raises(error, match=message):
            call(InteractionLearner(8), x.regions, x.phrases, x.alignment)


class TestLoss:
    mean, log_sigma, target = random_pairs(3, 5, 4)

    def test_is_the_normal_laws_and_weighted_by_a_constant(self):
        normal = torch.distributions.Normal(self.mean, self.log_sigma.exp())
        want = -normal.log_prob(self.target) - math.log(2 * math.pi) / 2
        assert_close(heteroscedastic_loss(self.mean, self.log_sigma, self.target, 0), want, 1e-12)
        mean, log_sigma = self.mean.clone().requires_grad_(), self.log_sigma.clone().requires_grad_()
        plain, weighted = (
            torch.autograd.grad(heteroscedastic_loss(mean, log_sigma, self.target, beta).sum(), (mean, log_sigma))
            for beta in (0, 0.5)
        )
        for x, y in zip(plain, weighted, strict=True):
            assert_close(x * self.log_sigma.exp(), y, 1e-12)
        to_mean = torch.autograd.grad(heteroscedastic_loss(mean, log_sigma, self.target, 1).sum(), mean)[0]
        assert_close(to_mean, self.mean - self.target, 1e-12)  # squared error

    def test_by_finite_differences(self):
        inputs = (x.clone().requires_grad_() for x in (self.mean, self.log_sigma, self.target))
        assert torch.autograd.gradcheck(lambda *x: heteroscedastic_loss(*x, 0), tuple(inputs))


class TestCalibration:
    error = torch.randn(40_000, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
    def test_of_normal_errors(self, sigma):
        got = calibration(torch.full_like(self.error, 7), torch.full_like(self.error, math.log(sigma)), 7 + self.error)
        for k in (1, 2, 3):
            assert got[f"within_{k}"].item() == pytest.approx(math.erf(k * sigma / 2**0.5), abs=0.01)
        normal = torch.distributions.Normal(0.0, 1.0)
        at = [p / 10 for p in range(1, 10)]
        halves = [sigma * normal.icdf(torch.tensor((1 + p) / 2)).item() for p in at]
        want = sum(abs(math.erf(h / 2**0.5) - p) for h, p in zip(halves, at, strict=True)) / 9
        assert got["calibration_error"].item() == pytest.approx(want, abs=0.01)

    def test_of_nothing_is_unknown(self):
        assert all(x.isnan() for x in calibration(*[torch.zeros(0)] * 3).values())


class Asked:
    """A source that remembers what it was asked for."""

    def __init__(self, x: Games) -> None:
        self.interactions, self.chosen = x.interactions, []

    def __call__(self, chosen: Tensor) -> Tensor:
        self.chosen = chosen.tolist()
        return self.interactions[chosen]


def ask(unsil: Unsil, x: Games) -> tuple[Estimate, list[int]]:
    source = Asked(x)
    return unsil(x.regions, x.phrases, x.alignment, source, None, x.lengths), source.chosen


STEPS = 105  # of an experienced learner: games 7, 15 and 23 of a batch have their turn


def experienced(threshold: float = 0.4) -> Unsil:
    """One whose learner is taught and, since the first batch, trusted."""
    unsil = Unsil(8, threshold, check=8)
    unsil.learner.load_state_dict(taught()[0].state_dict())
    with torch.no_grad():
        unsil.mean_square.fill_(taught()[1] ** 2)
        unsil.steps += STEPS
        unsil.error.fill_(0.0)
    return unsil


def train_on(unsil: Unsil, batches: list[Games]) -> list[Estimate]:
    optimizer = torch.optim.AdamW(unsil.parameters(), 1e-2)
    found = []
    for x in batches:
        found.append(ask(unsil, x)[0])
        optimizer.zero_grad()
        found[-1].loss.backward()
        optimizer.step()
    return found


class TestHybrid:
    def test_goes_from_computing_to_predicting_and_back_when_the_games_change(self):
        torch.manual_seed(0)
        unsil = Unsil(8, threshold=0.4)
        first = train_on(unsil, [games(i) for i in range(150)])
        assert all(x.metrics["computed"] == 1 for x in first[:10])
        assert sum(x.metrics["computed"] for x in first[-10:]) < 5
        assert unsil.trusted
        changed = train_on(unsil, [games(i, sign=-3.0) for i in range(30)])
        assert sum(x.metrics["computed"] for x in changed[5:15]) == 10
        again = train_on(unsil, [games(i, sign=-3.0) for i in range(30, 180)])
        assert sum(x.metrics["computed"] for x in again[-10:]) < 5

    def test_until_it_is_trusted_all_interactions_are_the_computed_ones(self):
        x = games(0)
        estimate, chosen = ask(Unsil(8), x)
        assert chosen == list(range(24))
        assert torch.equal(estimate.interactions, x.interactions)
        assert estimate.metrics["error"].item() == pytest.approx(1)  # nothing was known

    def test_sure_games_are_predicted_in_the_unit_of_the_computed_ones_and_the_others_computed(self):
        unsil, x = experienced(), games(20_000)
        mean, log_sigma = taught()[0](*x.inputs)
        doubt = [log_sigma[b][x.pairs[b]].exp().square().mean().sqrt() for b in range(24)]
        unsil.threshold = sum(sorted(x.item() for x in doubt)[11:13]) / 2  # no game's own, which might round either way
        unsure = {b for b, sigma in enumerate(doubt) if sigma >= unsil.threshold}
        in_turn = {b for b in range(24) if (b + STEPS) % 8 == 0}
        estimate, chosen = ask(unsil, x)
        assert 0 < len(unsure) < 24
        assert set(chosen) == unsure | in_turn
        assert estimate.metrics["computed"].item() == pytest.approx(len(chosen) / 24)
        predicted = [b for b in range(24) if b not in chosen]
        assert torch.equal(estimate.interactions[chosen], x.interactions[chosen])
        assert_close(estimate.interactions[predicted], mean[predicted].detach() * taught()[1], 1e-5)
        error = (estimate.interactions - x.interactions)[predicted].square().mean().sqrt()
        assert error < 0.4 * x.interactions.square().mean().sqrt()

    def test_every_game_has_its_turn_to_be_checked(self):
        unsil, x = experienced(threshold=1e3), games(20_000, B=5)
        turns = [ask(unsil, x) for _ in range(8)]
        assert sorted(b for _, chosen in turns for b in chosen) == [0, 1, 2, 3, 4]
        for estimate, chosen in turns:
            assert bool(estimate.metrics["error"].isnan()) == (not chosen)
            assert bool(estimate.loss == 0) == (not chosen)

    def test_metrics_are_those_of_the_games_in_turn(self):
        unsil, x = experienced(threshold=1e-9), games(20_000)
        in_turn = [b for b in range(24) if (b + STEPS) % 8 == 0]
        mean, log_sigma = taught()[0](*x.inputs)
        estimate, chosen = ask(unsil.eval(), x)
        assert len(chosen) == 24
        want = calibration(*(y[in_turn][x.pairs[in_turn]] for y in (mean, log_sigma, x.interactions / taught()[1])))
        for name, value in want.items():
            assert estimate.metrics[name].item() == pytest.approx(value.item(), abs=1e-5)

    def test_nothing_changes_without_train_mode(self):
        unsil = experienced().eval()
        before = {name: value.clone() for name, value in unsil.state_dict().items()}
        ask(unsil, games(3, sign=-9.0))
        assert all(torch.equal(value, before[name]) for name, value in unsil.state_dict().items())

    def test_its_state_is_all_in_its_state_dict(self):
        torch.manual_seed(0)
        one, other = Unsil(8, threshold=0.9), Unsil(8, threshold=0.9)
        train_on(one, [games(i) for i in range(40)])
        assert one.trusted
        other.load_state_dict(one.state_dict())
        batches = [games(i) for i in range(40, 50)]
        for x, y in zip(train_on(one, batches), train_on(other, batches), strict=True):
            assert torch.equal(x.interactions, y.interactions)
            assert torch.equal(x.loss, y.loss)

    def test_only_its_own_parameters_learn(self):
        x = games(0)
        inputs = [y.clone().requires_grad_() for y in (x.regions, x.phrases, x.alignment)]
        unsil = experienced(threshold=1e-9)
        estimate = unsil(*inputs, lambda chosen: 2 * inputs[2][chosen])
        assert not estimate.interactions.requires_grad
        assert not any(value.requires_grad for value in estimate.metrics.values())
        estimate.loss.backward()
        assert all(y.grad is None for y in inputs)
        assert all(y.grad.abs().sum() > 0 for y in unsil.parameters())

    @pytest.mark.parametrize("where", ["regions", "phrases", "alignment", "interactions"])
    @pytest.mark.parametrize("trusted", [False, True])
    def test_nan_stays_in_its_game_and_is_not_learned(self, where, trusted):
        def losses_and_gradients(x: Games):
            unsil = experienced(threshold=1e3 if trusted else 1e-9)
            estimate, _ = ask(unsil, x)
            estimate.loss.backward()
            return estimate, [unsil.error, unsil.mean_square, *(y.grad for y in unsil.parameters())]

        good, bad = games(3), games(3)
        bad.lengths[23] = good.lengths[23] = 3
        getattr(bad, where)[23, 0, 0] = math.nan
        others = Games(*(getattr(good, field.name)[:23] for field in dataclasses.fields(Games)))
        (want, want_state), (got, got_state) = losses_and_gradients(others), losses_and_gradients(bad)
        assert torch.equal(got.interactions[:23], want.interactions)
        for x, y in zip([got.loss.detach(), *got_state], [want.loss.detach(), *want_state], strict=True):
            assert_close(x, y, 1e-4)

    def test_what_a_source_must_give(self):
        x = games(0)
        with pytest.raises(ValueError, match=r"compute: expected the shape of .* \(24, 12, 3\), got \(24, 12\)"):
            Unsil(8)(x.regions, x.phrases, x.alignment, lambda chosen: x.interactions[chosen, :, 0])

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"threshold": 0.0}, ValueError, "threshold: expected .* above 0, got 0.0"),
            ({"threshold": math.nan}, ValueError, "threshold: expected .* above 0, got nan"),
            ({"check": 0}, ValueError, "check: expected 1 to .* got 0"),
            ({"check": 1.5}, TypeError, "check: expected an int, got float"),
        ],
    )
    def test_bad_options(self, options, error, message):
        with pytest.raises(error, match=message):
            Unsil(8, **options)
