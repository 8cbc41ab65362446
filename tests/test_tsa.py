"""Token-level semantic alignment: labels of regions' confidences, the loss, and what it teaches the region head."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from loupe_ext import boxes_to_regions, region_interactions
from loupe_ext.data import load
from loupe_ext.losses import tsa_labels, tsa_loss
from loupe_ext.objective import TSA, Objective, ObjectiveConfig
from loupe_ext.train import Config, build
from loupe_ext.train.step import Step

SIZES = torch.tensor([[4, 9, 2, 6], [5, 5, 3, 1]])
LENGTHS = torch.tensor([4, 3])


def interactions(dtype=torch.float64):
    return torch.randn(2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def naive_labels(values, sizes, literal):
    scores = [v if literal else -v / n for v, n in zip(values.tolist(), sizes.tolist(), strict=True)]
    return [(s - min(scores)) / (max(scores) - min(scores)) for s in scores]


@pytest.mark.parametrize("literal", [False, True])
def test_labels_and_loss_against_loops(literal):
    values = interactions()
    values[1, 3] = torch.nan  # at the padding
    labels = tsa_labels(values, SIZES, LENGTHS, literal)
    confidence = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    confidence[1, 3] = torch.nan
    means = []
    for b, n in enumerate(LENGTHS.tolist()):
        want = naive_labels(values[b, :n], SIZES[b, :n], literal)
        assert labels[b, :n].tolist() == pytest.approx(want, abs=1e-12)
        chance = confidence[b, :n].sigmoid().tolist()
        each = [-y * math.log(p) - (1 - y) * math.log(1 - p) for y, p in zip(want, chance, strict=True)]
        means.append(sum(each) / n)
    assert labels[1, 3] == 0
    got = tsa_loss(confidence, values, SIZES, LENGTHS, literal)
    assert got.item() == pytest.approx(sum(means) / 2, abs=1e-12)


def test_gradient_of_the_confidences_alone():
    values = interactions().requires_grad_()
    confidence = torch.zeros(2, 4, dtype=torch.float64, requires_grad=True)
    tsa_loss(confidence, values, SIZES, LENGTHS).backward()
    assert values.grad is None
    assert confidence.grad[1, 3] == 0
    assert torch.autograd.gradcheck(lambda c: tsa_loss(c, values.detach(), SIZES, LENGTHS), confidence)


def test_regions_that_are_all_alike_or_empty_get_no_label():
    alike = torch.full((1, 3), -0.5)
    assert tsa_labels(alike, torch.tensor([[4, 4, 4]])).tolist() == [[0, 0, 0]]
    assert tsa_labels(torch.tensor([[-1.0, 0.0, -3.0]]), torch.tensor([[1, 0, 1]])).tolist() == [[0, 0, 1]]
    assert tsa_labels(torch.tensor([[-1.0, 2.0]]), torch.zeros(1, 2, dtype=torch.int64)).tolist() == [[0, 0]]


def test_nan_stays_in_its_image():
    values = interactions()
    clean = tsa_labels(values, SIZES)
    values[0, 1] = torch.nan
    labels = tsa_labels(values, SIZES)
    assert labels[0].isnan().any()
    assert torch.equal(labels[1], clean[1])


@pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
def test_the_working_sign_prefers_the_object_and_the_literal_one_does_not(game):
    generator = torch.Generator().manual_seed(0)
    patches = normalize(torch.randn(1, 64, 16, generator=generator), dim=-1)
    text = normalize(torch.randn(1, 16, generator=generator), dim=-1)
    boxes = torch.tensor([[[1.0, 1, 4, 4], [3, 3, 6, 6], [5, 5, 8, 8]]])  # on the object, half on it, off it
    regions = boxes_to_regions(boxes, 8, 8)
    patches[regions[:, 0]] = normalize(text + 0.3 * patches[regions[:, 0]], dim=-1)
    words = text if game == "pooled-cosine" else text[:, None]
    values, _ = region_interactions(patches, words, regions, game=game)
    sizes = regions.sum(-1)
    assert tsa_labels(values, sizes).argmax() == 0
    assert tsa_labels(values, sizes, literal=True).argmin() == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"interactions": torch.zeros(2, 4, 1)}, ValueError, r"interactions: expected shape \[B, M\]"),
        ({"interactions": torch.zeros(2, 3)}, ValueError, r"interactions: expected the M of confidence \(4\)"),
        ({"interactions": torch.zeros(2, 4).bool()}, TypeError, "interactions: expected dtype"),
        ({"confidence": torch.zeros(2, 4).long()}, TypeError, "confidence: expected dtype"),
        ({"sizes": SIZES.float()}, TypeError, "sizes: expected an int64 tensor, got torch.float32"),
        ({"sizes": [4, 4]}, TypeError, "sizes: expected an int64 tensor, got list"),
        ({"sizes": SIZES[:1]}, ValueError, r"sizes: expected shape \(2, 4\), got \(1, 4\)"),
        ({"region_lengths": torch.tensor([4, 5])}, ValueError, r"region_lengths: expected lengths in 1..4"),
    ],
)
def test_bad_arguments(change, error, message):
    arguments = {"confidence": torch.zeros(2, 4), "interactions": interactions(torch.float32), "sizes": SIZES}
    with pytest.raises(error, match=message):
        tsa_loss(**{**arguments, **change})


@pytest.mark.parametrize(
    "changes",
    [
        {"tsa.game": "pooled-cosine"},
        {"tsa.game": "late-interaction"},
        {"tsa.game": "pooled-cosine", "tsa.literal": True},
    ],
)
def test_in_training_it_reaches_the_region_head(changes):
    pairs = load("scenes", "train", 8).pairs
    step = Step(*build(Config().but(changes, tsa=1.0), pairs.vocabulary))
    batch = pairs.batch(slice(8))
    losses = step(batch, 0)
    again = step(batch, 0)
    other = step(batch, 1)
    losses["tsa"].backward()
    gradient = step.model.region_head.project.weight.grad
    assert gradient[4].abs().max() > 0  # of the confidences
    assert gradient[:4].abs().max() == 0  # the boxes themselves learn elsewhere
    assert torch.equal(losses["tsa"], again["tsa"])  # the draws are the step's own
    assert torch.equal(losses["tsa"], other["tsa"]) == (changes["tsa.game"] == "late-interaction")


@pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
def test_a_trusted_learner_predicts_most_images(game):
    pairs = load("scenes", "train", 8).pairs
    model, predicting = build(Config().but({"tsa.source": "unsil", "tsa.game": game}, tsa=1.0), pairs.vocabulary)
    computing = Objective(tsa=TSA(weight=1.0, game=game))

    def interactions(objective, images):
        batch = pairs.batch(images)
        image = model.encode_image(batch.images)
        seen = objective.see(image, model.encode_text(batch.tokens, batch.spans, batch.phrase_lengths))
        return objective.config.tsa.interactions(seen)[1]

    first = interactions(predicting, slice(8))
    assert torch.equal(first.interactions, interactions(computing, slice(8)).interactions)
    assert first.metrics["computed"] == 1
    learner = predicting.learners["tsa"]
    learner.error.fill_(0.0)
    learner.threshold = 2.0  # an untrained learner predicts 0, give or take 1
    learner.mean_square.fill_(1.0)
    predicting.eval()
    later = interactions(predicting, slice(8))
    assert later.metrics["computed"] == 1 / 8
    assert not later.interactions[:7].any()
    alone = interactions(computing, slice(7, 8)).interactions  # whose turn it is to be checked, after one step
    torch.testing.assert_close(later.interactions[7:], alone, rtol=0, atol=1e-5)


def test_boxes_of_proposals_learn_from_the_region_losses():
    pairs = load("scenes", "train", 8).pairs
    step = Step(*build(Config().but(regions="proposals", boxes=0.0), pairs.vocabulary))
    step(pairs.batch(slice(8)), 0)["region_phrase"].backward()
    assert step.model.region_head.project.weight.grad[:4].abs().max() > 0


def test_settings_name_a_wrong_choice():
    with pytest.raises(ValueError, match=r"^game: expected one of .*, got 'cosine'"):
        TSA(game="cosine")
    with pytest.raises(ValueError, match=r"^tsa.game: expected one of .*, got 'cosine'"):
        ObjectiveConfig(tsa={"game": "cosine"})
    with pytest.raises(ValueError, match="regions: expected one of"):
        ObjectiveConfig(regions="boxes")
