"""The objective: its terms, their weights and gate, terms of one's own, and LoupeLoss beside it."""

import dataclasses
import math

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from loupe_ext import losses
from loupe_ext.losses import LoupeLoss
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.regions import window_features
from loupe_ext.objective import CMC, FSA, TSA, Boxes, LateInteraction, Objective, ObjectiveConfig, RegionPhrase, terms

B, DIM = 4, 8
LENGTHS = torch.tensor([2, 1, 3, 2])  # of phrases; each has a token


def rows(*shape: int, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(seed)), dim=-1)


def image(**changes: object) -> ImageFeatures:
    low = 8 * torch.rand(B, 16, 2, generator=torch.Generator().manual_seed(1))
    features = ImageFeatures(
        rows(B),
        rows(B, 4, 4, seed=1),
        weights=torch.rand(B, 4, 4, generator=torch.Generator().manual_seed(2)),
        boxes=torch.cat([low, low + 6], -1),
        confidence=torch.randn(B, 16, generator=torch.Generator().manual_seed(3)),
        patch=4.0,
    )
    return dataclasses.replace(features, **changes)


def text(**changes: object) -> TextFeatures:
    phrases = rows(B, 3, seed=4)
    return dataclasses.replace(TextFeatures(rows(B, seed=5), phrases, LENGTHS, phrases, LENGTHS), **changes)


def learning(*features: object) -> list[object]:
    """The same features, whose tensors get gradients."""
    learned = []
    for each in features:
        values = {name: x for name, x in vars(each).items() if isinstance(x, torch.Tensor) and x.is_floating_point()}
        learned.append(dataclasses.replace(each, **{n: x.clone().requires_grad_() for n, x in values.items()}))
    return learned


PIXELS = torch.randint(256, (B, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(6))
EVERY = {
    "cmc": 1.0,
    "late_interaction": 0.5,
    "region_phrase": 0.25,
    "proposal_phrase": 0.75,
    "sparse_grouping": 2.0,
    "fsa": 3.0,
    "tsa": 0.125,
    "boxes": 1.5,
}


@dataclasses.dataclass
class Mine:
    weight: float = 2.0
    gated: bool = False
    contrasts: bool = False

    def loss(self, seen):
        return seen.image.pooled.square().sum() * seen.local_logit_scale


class TestTerms:
    def test_each_is_its_loss_of_the_features_and_the_sum_is_weighted_and_gated(self):
        objective = Objective(**EVERY, window=2, window_stride=1, proposals=5)
        i, t = image(), text()
        found = objective(i, t, images=PIXELS)
        regions, patches, scale = window_features(i.patches, 2, 1), i.patches.flatten(1, 2), 10.0
        want = {
            "cmc": losses.cmc_loss(i.pooled, t.pooled, scale),
            "late_interaction": losses.late_interaction_loss(patches, t.tokens, scale, None, LENGTHS),
            "region_phrase": losses.region_phrase_loss(regions, t.phrases, scale, LENGTHS),
            "proposal_phrase": losses.region_phrase_loss(i.proposals(5)[0], t.phrases, scale, LENGTHS),
            "sparse_grouping": losses.sparse_grouping_loss(patches, t.tokens, scale, LENGTHS),
            "fsa": losses.fsa_loss(regions, t.phrases, scale, phrase_lengths=LENGTHS),
        }
        for name, value in want.items():
            torch.testing.assert_close(found[name], value, rtol=1e-5, atol=1e-6)
        assert found.keys() == {*EVERY, "gate", "loss"}
        contrasts = [found[name] for name in ("cmc", "late_interaction", "region_phrase")]
        gate = losses.contrast_gate(contrasts, B)
        assert torch.equal(found["gate"], gate)
        gated = {"proposal_phrase", "fsa", "tsa", "boxes"}
        total = sum(weight * found[name] * (gate if name in gated else 1) for name, weight in EVERY.items())
        torch.testing.assert_close(found["loss"], total)

    def test_the_gate_opens_with_what_is_told_apart(self):
        apart = rows(B)
        objective = Objective(cmc=1.0, boxes=1.0, logit_scale=60.0)
        gates = [objective(image(pooled=apart), text(pooled=x), images=PIXELS)["gate"] for x in (apart, -apart)]
        assert gates[0] > 0.9
        assert gates[1] == 0
        alone = Objective(boxes=1.0)(image(), text(), images=PIXELS)  # with nothing to see it by
        assert alone["gate"] == 1
        assert alone["loss"] == alone["boxes"]

    @pytest.mark.parametrize("regions", ["windows", "proposals", "patches"])
    @pytest.mark.parametrize("source", ["exact", "sampled", "unsil"])
    def test_fsa_alone_reaches_the_regions_whatever_its_source(self, source, regions):
        objective = Objective(fsa=FSA(source=source, coalitions=8), regions=regions, window=2, proposals=5, dim=DIM)
        i, t = learning(image(), text())
        objective(i, t)["fsa"].backward()
        assert i.patches.grad.abs().sum() > 0
        assert (i.boxes.grad is not None) == (regions == "proposals")

    def test_what_is_kept_has_its_gradient_whoever_asked_first(self):
        class Looking(Mine):
            @torch.no_grad()
            def loss(self, seen):
                return seen.regions.sum() + seen.proposals[2].sum()

        objective = Objective(tsa=1.0, proposals=5, extra={"looking": Looking()})
        i, t = learning(image(), text())
        objective.terms = dict(reversed(objective.terms.items()))
        objective(i, t)["tsa"].backward()
        assert i.confidence.grad.abs().sum() > 0
        with torch.no_grad():
            assert not objective.see(i, t).regions.requires_grad

    def test_sampled_coalitions_are_a_function_of_seed_and_step(self):
        of = lambda seed, step: Objective(fsa=FSA(source="sampled", coalitions=3), window=2, seed=seed)(  # noqa: E731
            image(), text(), step=step
        )["fsa"]
        assert torch.equal(of(1, 2), of(1, 2))
        assert of(1, 2) not in (of(1, 3), of(2, 2))

    def test_phrases_reach_the_patches_in_proposals_and_no_box(self):
        i, t = learning(image(), text())
        Objective(proposal_phrase=1.0, proposals=5)(i, t)["loss"].backward()
        assert i.patches.grad.abs().sum() > 0
        assert t.phrases.grad.abs().sum() > 0
        assert i.boxes.grad is None
        assert i.confidence.grad is None
        with pytest.raises(ValueError, match="image: expected features with boxes and confidence"):
            Objective(proposal_phrase=1.0)(image(boxes=None, confidence=None), text())

    def test_boxes_learn_from_few_images_and_the_heat_not_from_them(self):
        i, t = learning(image(), text())
        Objective(boxes=Boxes(weight=1.0, images=2, colour=0.0))(i, t)["boxes"].backward()
        few = slice(None, None, math.ceil(B / 2))  # evenly over the batch
        assert i.boxes.grad[few].abs().sum() > 0
        i.boxes.grad[few] = 0
        assert i.boxes.grad.abs().sum() == 0
        assert i.patches.grad is None
        assert t.phrases.grad is None

    def test_what_all_phrases_share_moves_no_pseudo_box(self):
        objective = Objective(boxes=Boxes(weight=1.0, colour=0.0))
        i, t = image(), text()
        want = objective(i, t)["boxes"]
        shared = dataclasses.replace(
            t, phrases=t.phrases + 3 * torch.randn(DIM, generator=torch.Generator().manual_seed(5))
        )
        torch.testing.assert_close(objective(i, shared)["boxes"], want)
        padded = dataclasses.replace(t, phrases=t.phrases.masked_fill(~t.phrase_mask[..., None], math.nan))
        assert torch.equal(objective(i, padded)["boxes"], want)
        other = dataclasses.replace(t, phrases=t.phrases.roll(1, 0))
        assert not torch.isclose(objective(i, other)["boxes"], want)

    def test_a_threshold_is_a_share_of_the_peak_and_none_so_many_deviations(self, monkeypatch):
        asked = []
        heat_boxes = terms.heat_boxes
        spy = lambda maps, level, patch, by: asked.append((level, by)) or heat_boxes(maps, level, patch, by)  # noqa: E731
        monkeypatch.setattr(terms, "heat_boxes", spy)
        for settings in ({}, {"deviations": 1.5}, {"threshold": 0.3}):
            Objective(boxes=Boxes(weight=1.0, colour=0.0, **settings))(image(), text())
        assert asked == [(1.75, "deviation"), (1.5, "deviation"), (0.3, "peak")]

    def test_a_phrase_alone_has_its_own_heat(self):
        seen = Objective(boxes=1.0).see(image(), text())
        assert seen.mean_phrase.abs().sum() > 0
        alone = dataclasses.replace(
            seen, text=dataclasses.replace(text(), phrase_lengths=torch.tensor([1] + [0] * (B - 1)))
        )
        assert not alone.mean_phrase.any()


class TestOwnTerms:
    def test_a_term_is_weighted_and_named(self):
        found = Objective(cmc=1.0, extra={"mine": Mine()})(image(), text())
        assert found["mine"].item() == pytest.approx(10 * B, rel=1e-5)
        torch.testing.assert_close(found["loss"], found["cmc"] + 2 * found["mine"])
        assert "gate" not in found

    def test_it_may_wait_for_the_gate_and_be_what_opens_it(self):
        gated = Objective(cmc=1.0, extra={"mine": Mine(gated=True)})(image(), text())
        torch.testing.assert_close(gated["loss"], gated["cmc"] + 2 * gated["gate"] * gated["mine"])
        assert gated["gate"] == losses.contrast_gate([gated["cmc"]], B)
        both = Objective(cmc=1.0, boxes=1.0, extra={"mine": Mine(contrasts=True)})(image(), text(), images=PIXELS)
        assert both["gate"] == losses.contrast_gate([both["cmc"], both["mine"]], B)

    def test_a_module_is_a_submodule(self):
        class Learned(nn.Module):
            weight, gated, contrasts = 1.0, False, False

            def __init__(self):
                super().__init__()
                self.layer = nn.Linear(DIM, 1)

            def loss(self, seen):
                return self.layer(seen.image.pooled).mean()

        objective = Objective(cmc=1.0, extra={"mine": Learned()})
        assert "extra.mine.layer.weight" in objective.state_dict()
        objective(image(), text())["loss"].backward()
        assert objective.extra["mine"].layer.weight.grad.abs().sum() > 0

    def test_weight_0_leaves_it_out(self):
        assert "mine" not in Objective(cmc=1.0, extra={"mine": Mine(weight=0.0)})(image(), text())

    @pytest.mark.parametrize(
        ("extra", "error", "message"),
        [
            ([Mine()], TypeError, "extra: expected a mapping"),
            ({"cmc": Mine()}, ValueError, "extra: expected names of their own, got 'cmc'"),
            ({"loss": Mine()}, ValueError, "extra: expected names of their own, got 'loss'"),
            ({"gate": Mine()}, ValueError, "extra: expected names of their own, got 'gate'"),
            ({"keys": Mine()}, ValueError, "extra: expected names of their own, got 'keys'"),
            ({"a.b": Mine()}, ValueError, "extra: expected names of their own, got 'a.b'"),
            ({3: Mine()}, ValueError, "extra: expected names of their own, got 3"),
            ({"mine": object()}, TypeError, "extra: expected terms with weight, gated, contrasts and loss"),
            ({"mine": Mine(weight=-1.0)}, ValueError, "extra: weight of mine: expected a finite number at least 0"),
            ({"mine": Mine(weight=None)}, TypeError, "extra: weight of mine: expected a float, got NoneType"),
        ],
    )
    def test_what_is_none_is_refused(self, extra, error, message):
        with pytest.raises(error, match=message):
            Objective(cmc=1.0, extra=extra)


class TestConfig:
    def test_terms_given_by_name_are_the_only_ones(self):
        objective = Objective(cmc=CMC(), region_phrase=0.5, fsa={"weight": 2.0, "temperature": 0.1})
        assert list(objective.terms) == ["cmc", "region_phrase", "fsa"]
        assert objective.config.region_phrase == RegionPhrase(weight=0.5)
        assert objective.config.fsa == FSA(weight=2.0, temperature=0.1)
        assert not objective.config.boxes.weight

    def test_a_configuration_and_changes_of_it(self):
        config = ObjectiveConfig(late_interaction=LateInteraction(weight=1.0))
        assert Objective(config).config is config
        assert Objective(config, boxes=0, window=2).config == config.but(boxes=0, window=2)

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({}, ValueError, "cmc, late_interaction, .* boxes: expected a weight above 0"),
            ({"cmc": 0}, ValueError, "expected a weight above 0"),
            ({"cmc": -1}, ValueError, "^cmc.weight: expected a finite number at least 0, got -1"),
            ({"cmc": FSA()}, TypeError, "^cmc: expected CMC or its fields, got FSA"),
            ({"cmc": True}, TypeError, "^cmc: expected CMC or its fields, got True"),
            ({"fsa": {"temprature": 1}}, ValueError, r"^fsa.* got temprature \(nearest: temperature\)"),
            ({"fsa": {"temperature": 0}}, ValueError, "^fsa.temperature: expected a finite number above 0"),
            ({"fsa": {"source": "unsil"}}, ValueError, "^dim: expected the features' size, for the learner of fsa"),
            ({"tsa": TSA(weight=1.0, source="unsil")}, ValueError, "^dim: expected .* learner of tsa"),
            ({"cmc": 1, "logit_scale": 70.0}, ValueError, r"^logit_scale: expected at most max_local_logit_scale \(60"),
            ({"cmc": 1, "logit_scale": 0}, ValueError, "^logit_scale: expected a finite number above 0"),
            ({"cmc": 1, "seed": -1}, ValueError, "^seed: expected 0 to"),
            ({"config": 3, "cmc": 1}, TypeError, "^config: expected an ObjectiveConfig, got int"),
        ],
    )
    def test_what_is_none_is_refused(self, arguments, error, message):
        with pytest.raises(error, match=message):
            Objective(**arguments)

    @pytest.mark.parametrize(
        ("terms", "learned"),
        [
            ({"cmc": 1.0, "region_phrase": 1.0}, {"logit_scale", "local_logit_scale"}),
            ({"cmc": 1.0}, {"logit_scale"}),
            ({"fsa": 1.0}, {"local_logit_scale"}),
            ({"boxes": 1.0}, set()),
            ({"cmc": 1.0, "fsa": 1.0, "learn_logit_scale": False}, set()),
        ],
    )
    def test_a_temperature_learns_where_a_term_uses_it(self, terms, learned):
        names = {name.split(".")[0] for name, x in Objective(**terms).named_parameters() if x.requires_grad}
        assert names == learned


class TestBadFeatures:
    @pytest.mark.parametrize(
        ("objective", "features", "options", "message"),
        [
            ({"boxes": 1.0}, {"boxes": None}, {"images": PIXELS}, "image: expected features with boxes and confidence"),
            ({"tsa": 1.0}, {"confidence": None}, {}, "image: expected features with boxes and confidence"),
            ({"fsa": 1.0, "regions": "proposals"}, {"boxes": None}, {}, "image: expected features with boxes"),
            ({"tsa": 1.0}, {"weights": None}, {}, "image: expected the patches' weights"),
            ({"boxes": 1.0}, {}, {}, "images: expected the pixels"),
            ({"tsa": 1.0, "proposals": 17}, {}, {}, "count: expected at most the 16 boxes there are, got 17"),
            ({"fsa": 1.0, "window": 5}, {}, {}, "side, stride: expected windows inside 4 x 4 patches"),
            ({"sparse_grouping": 1.0}, {"lengths": LENGTHS}, {}, "image: expected equally many patches, for sparse_"),
            ({"fsa": 1.0, "window": 1}, {"lengths": LENGTHS}, {}, "image: expected equally many patches, for windows"),
            ({"cmc": 1.0}, {"pooled": rows(3)}, {}, r"image.patches: expected the B of image.pooled \(3\)"),
            ({"cmc": 1.0}, {}, {"logit_scale": -1.0}, "logit_scale: expected a finite number above 0"),
        ],
    )
    def test_what_a_term_lacks_is_named(self, objective, features, options, message):
        with pytest.raises(ValueError, match=message):
            Objective(**{"proposals": 5, **objective})(image(**features), text(), **options)

    def test_features_of_another_kind(self):
        for given in ((torch.ones(2), text()), (image(), None), (text(), image())):
            with pytest.raises(TypeError, match="image, text: expected ImageFeatures and TextFeatures, got"):
                Objective(cmc=1.0)(*given)


class TestLoupeLoss:
    @pytest.mark.parametrize("ragged", [False, True])
    def test_is_the_objective_of_the_same_features(self, ragged):
        region_lengths = torch.tensor([16, 9, 1, 12]) if ragged else None
        phrase_lengths = LENGTHS if ragged else None
        inputs = [3 * x for x in (rows(B), rows(B, seed=5), rows(B, 16, seed=1), rows(B, 3, seed=4))]  # of any length
        criterion = LoupeLoss(1.0, 0.5, 2.0, 0.25, fsa_temperature=0.3, negatives=False, logit_scale=20.0)
        objective = Objective(
            cmc=1.0,
            region_phrase=0.5,
            fsa=FSA(2.0, 0.3, negatives=False),
            late_interaction=LateInteraction(0.25, "phrases"),
            regions="patches",
            logit_scale=20.0,
        )
        results = []
        for module in (criterion, objective):
            images, texts, regions, phrases = leaves = [x.clone().requires_grad_() for x in inputs]
            if module is criterion:
                found = module(*leaves, region_lengths=region_lengths, phrase_lengths=phrase_lengths)
            else:
                images, texts, regions, phrases = (normalize(x, dim=-1) for x in leaves)
                lengths = torch.full((B,), 3) if phrase_lengths is None else phrase_lengths
                found = module(
                    ImageFeatures(images, regions[:, None], region_lengths),
                    TextFeatures(texts, phrases, lengths, phrases, lengths),
                )
            found["loss"].backward()
            results.append((found, [x.grad for x in (*leaves, *module.parameters())]))
        (got, gradients), (want, others) = results
        assert got.keys() == want.keys() == {"loss", "cmc", "region_phrase", "late_interaction", "fsa", "gate"}
        for name in got:
            torch.testing.assert_close(got[name], want[name])
        for x, y in zip(gradients, others, strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-7)

    def test_takes_the_models_own_temperature(self):
        inputs = rows(B), rows(B, seed=5), rows(B, 16, seed=1), rows(B, 3, seed=4)
        own = torch.tensor(30.0, requires_grad=True)
        criterion = LoupeLoss(region_phrase=0.0, fsa=0.0)
        found = criterion(*inputs, logit_scale=own)
        torch.testing.assert_close(found["cmc"], losses.cmc_loss(*inputs[:2], 30.0))
        found["loss"].backward()
        assert own.grad != 0
        assert all(x.grad is None for x in criterion.parameters())

    def test_half_features_are_computed_in_float32(self):
        inputs = [x.bfloat16() for x in (rows(B), rows(B, seed=5), rows(B, 16, seed=1), rows(B, 3, seed=4))]
        half, full = LoupeLoss()(*inputs), LoupeLoss()(*(x.float() for x in inputs))
        assert all(x.dtype == torch.float32 for x in half.values())
        assert all(torch.equal(half[name], full[name]) for name in full)
