"""Losses and the learner in half types, in mixed types and under autocast, beside float64."""

import math

import pytest
import torch

from loupe_ext.losses import (
    alignment_interactions,
    box_loss,
    cmc_loss,
    fsa_labels,
    fsa_loss,
    info_nce,
    late_interaction_loss,
    late_interaction_similarity,
    region_phrase_loss,
    region_phrase_similarity,
    sampled_interactions,
    sparse_grouping_loss,
    tsa_labels,
    tsa_loss,
)
from loupe_ext.unsil import InteractionLearner, Unsil, calibration, heteroscedastic_loss
from tests.backends import assert_close
from tests.test_losses import features, values_and_gradients

HALF = [torch.float16, torch.bfloat16]
LENGTHS, SCALE, SIZES = torch.tensor([2, 1]), 5.0, torch.tensor([[4, 9, 2, 6, 3], [5, 5, 3, 1, 2]])
CENTRES = torch.tensor([[1.0, 1], [2, 2], [3, 3], [4, 2], [9, 9]])


def inputs(*dtypes: torch.dtype) -> list[torch.Tensor]:
    """Regions, phrases and their alignment, each in its dtype."""
    regions, phrases = features(2, 5, 4), features(2, 3, 4, seed=1)
    return [x.to(dtype) for x, dtype in zip((regions, phrases, SCALE * regions @ phrases.mT), dtypes, strict=True)]


CALLS = {
    "info_nce": lambda r, p, a: info_nce(a[:, 0, :2]),
    "cmc": lambda r, p, a: cmc_loss(r[:, 0], p[:, 0], SCALE),
    "region_phrase": lambda r, p, a: region_phrase_loss(r, p, SCALE, LENGTHS),
    "region_phrase_similarity": lambda r, p, a: region_phrase_similarity(r, p, LENGTHS),
    "late_interaction": lambda r, p, a: late_interaction_loss(r, p, SCALE, None, LENGTHS),
    "late_interaction_similarity": lambda r, p, a: late_interaction_similarity(r, p, None, LENGTHS)[0],
    "sparse_grouping": lambda r, p, a: sparse_grouping_loss(r, p, SCALE, LENGTHS),
    "fsa": lambda r, p, a: fsa_loss(r, p, SCALE),
    "fsa-interactions": lambda r, p, a: fsa_loss(r, p, SCALE, interactions=a),
    "fsa_labels": lambda r, p, a: fsa_labels(a)[0],
    "fsa_labels-interactions": lambda r, p, a: fsa_labels(r[..., :3], interactions=a)[0],
    "alignment_interactions": lambda r, p, a: alignment_interactions(a),
    "sampled_interactions": lambda r, p, a: sampled_interactions(r[:, :, :3], a, 4),
    "tsa_labels": lambda r, p, a: tsa_labels(a[..., 0], SIZES),
    "tsa": lambda r, p, a: tsa_loss(r[..., 0], a[..., 1], SIZES),
    "box": lambda r, p, a: box_loss(r + 4, r[..., 0], 4 * p.abs() + torch.tensor([0, 0, 4, 4]).to(p), CENTRES.to(a)),
    "heteroscedastic": lambda r, p, a: heteroscedastic_loss(r[..., :3], a, a + 1),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
class TestEveryLoss:
    @pytest.mark.parametrize("dtype", [*HALF, torch.float32])
    def test_gives_its_inputs_dtype_close_to_float64(self, call, dtype):
        given = inputs(dtype, dtype, dtype)
        got, want = call(*given), call(*(x.double() for x in given))
        assert got.dtype == dtype
        assert_close(got.double(), want, {torch.float16: 1e-3, torch.bfloat16: 8e-3}.get(dtype, 1e-5))

    def test_autocast_changes_nothing(self, call):
        given = inputs(*[torch.float32] * 3)
        want = call(*given)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(*given), want)

    @pytest.mark.parametrize(
        "dtypes",
        [
            (torch.float32, torch.bfloat16, torch.float32),
            (torch.bfloat16, torch.float32, torch.float64),
            (torch.float16, torch.bfloat16, torch.float16),
        ],
    )
    def test_dtypes_promote(self, call, dtypes):
        given = inputs(*dtypes)
        got = call(*given)
        assert_close(got.double(), call(*(x.double() for x in given)), 8e-3)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(call(*given), got)


@pytest.mark.parametrize("dtype", HALF)
def test_a_zero_token_has_finite_gradients(dtype):
    patches, tokens = inputs(dtype, dtype, dtype)[:2]
    tokens[0, 0], patches[1] = 0, 0
    got = values_and_gradients(lambda p, t: sparse_grouping_loss(p, t, SCALE), patches, tokens)
    assert all(x.isfinite().all() for x in got)


@pytest.mark.parametrize("dtype", HALF)
def test_a_zero_embedding_has_cosine_0(dtype):
    images, texts = torch.eye(4, 8), torch.eye(4, 8)
    images[1] = 0
    got = values_and_gradients(lambda x, y: cmc_loss(x, y, 10.0), images.to(dtype), texts.to(dtype))
    assert got[0].item() == pytest.approx(cmc_loss(images, texts, 10.0).item(), rel=0.005)  # 0.3467
    assert all(x.isfinite().all() for x in got)


def test_areas_beyond_float16():
    targets = torch.tensor([[[0.0, 0, 400, 400], [0, 0, 300, 300]]])
    given = 100 * features(1, 4, 4).float(), torch.zeros(1, 4), targets, torch.full((4, 2), 150.0)
    assert box_loss(*(x.half() for x in given)).item() == pytest.approx(box_loss(*given).item(), rel=1e-3)


def test_a_pseudo_box_of_no_width():
    given = torch.zeros(1, 2, 4), torch.zeros(1, 2), torch.tensor([[[2.0, 0, 2, 4]]]), torch.tensor([[2.0, 2], [7, 2]])
    assert box_loss(*(x.half() for x in given)).item() == pytest.approx(box_loss(*given).item(), rel=1e-3)


@pytest.mark.parametrize("unit", [3e-6, 6e4])
def test_labels_of_interactions_in_any_unit(unit):
    interactions = (unit * features(2, 5, 3)).half()
    interactions[:, 0, 0], interactions[:, 1, 1] = unit, -unit
    wide = interactions.double()
    labels = fsa_labels(0 * interactions, interactions=interactions), fsa_labels(0 * wide, interactions=wide)
    for got, want in zip(*labels, strict=True):
        assert_close(got.double(), want, 1e-3)
    for literal in (False, True):
        got, want = (tsa_labels(x.flatten(1)[:, :5], SIZES, literal=literal) for x in (interactions, wide))
        assert_close(got.double(), want, 1e-3)


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("similarity", [late_interaction_similarity, region_phrase_similarity])
def test_similarities_keep_their_digits_in_the_dtype_asked_for(similarity, dtype):
    regions, phrases = inputs(dtype, dtype, dtype)[:2]
    got, want = similarity(regions, phrases, dtype=torch.float32), similarity(regions.double(), phrases.double())
    for x, y in zip(*((z if isinstance(z, tuple) else (z,)) for z in (got, want)), strict=True):
        assert x.dtype == torch.float32
        assert_close(x.double(), y, 1e-6)


@pytest.mark.parametrize("dtype", HALF)
def test_sigmas_beyond_float16(dtype):
    x = torch.tensor([-7.0, 0.0, 7.0])
    got = heteroscedastic_loss(0 * x.to(dtype), x.to(dtype), 0.01 + 0 * x.to(dtype))
    want = heteroscedastic_loss(0 * x, x, (0.01 + 0 * x).to(dtype).float())
    assert_close(got.float(), want, 8e-3)
    found = calibration(0 * x.to(dtype), x.to(dtype), x.to(dtype))
    assert found == calibration(0 * x, x, x)


@pytest.mark.parametrize("dtype", HALF)
def test_a_half_learner_knows_the_unit_of_small_interactions(dtype):
    regions, phrases, alignment = inputs(dtype, dtype, dtype)
    unsil = Unsil(4).to(dtype)
    assert InteractionLearner(4).to(dtype)(regions, phrases, alignment)[0].dtype == dtype
    estimate = unsil(regions, phrases, alignment, lambda chosen: torch.full((len(chosen), 5, 3), 1e-5))
    estimate.loss.backward()
    assert estimate.interactions.unique().tolist() == [torch.tensor(1e-5).item()]
    assert math.sqrt(unsil.mean_square) == pytest.approx(1e-5)
    unsil.error.fill_(0.0)
    unsil.threshold = 2.0
    with torch.no_grad():
        unsil.learner.head.bias[0] = 1.0
        later = unsil.eval()(regions, phrases, alignment, lambda chosen: torch.zeros(len(chosen), 5, 3))
    assert later.metrics["computed"] == 0
    assert_close(later.interactions, torch.full((2, 5, 3), 1e-5), 8e-3)
