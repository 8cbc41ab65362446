import math

import pytest
import torch
from torch.nn.functional import normalize

from loupe_ext.losses import (
    alignment_interactions,
    box_loss,
    cmc_loss,
    fsa_labels,
    fsa_loss,
    info_nce,
    late_interaction_loss,
    region_phrase_loss,
    region_phrase_similarity,
    sparse_grouping_loss,
)
from python_ref import losses as naive
from tests.backends import assert_close
from tests.samples import random_pairs

LENGTHS = torch.tensor([2, 4, 1])  # of the last three of these: regions, phrases or words, in batches of 3
SCALE = 5.0


def features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1).to(dtype)


def values_and_gradients(loss, *inputs):
    inputs = [x.clone().requires_grad_() for x in inputs]
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs)]


def generalised_iou(a, b):
    """Of two boxes x0, y0, x1, y1."""

    def area(x0, y0, x1, y1):
        return max(x1 - x0, 0) * max(y1 - y0, 0)

    corners = list(zip(a, b, strict=True))
    both = area(*map(max, corners[:2]), *map(min, corners[2:]))
    around = area(*map(min, corners[:2]), *map(max, corners[2:]))
    either = area(*a) + area(*b) - both
    return (both / either if either else 0) - ((around - either) / around if around else 0)


class TestAgainstLoops:
    def test_info_nce(self):
        logits = random_pairs(1, 5, 5)[0]
        assert_close(info_nce(logits), naive.contrast(logits, logits), 1e-12)

    def test_cmc_takes_cosines_of_embeddings_of_any_length(self):
        images, texts = random_pairs(2, 4, 3)
        cosines = torch.stack([torch.stack([i @ t / i.norm() / t.norm() for t in texts]) for i in images])
        assert_close(cmc_loss(images, texts, SCALE), naive.contrast(SCALE * cosines, SCALE * cosines), 1e-12)

    def test_region_phrase(self):
        regions, phrases = features(3, 6, 5), features(3, 4, 5, seed=1)
        want = naive.region_phrase_similarity(regions, phrases, LENGTHS)
        assert_close(region_phrase_similarity(regions, phrases, LENGTHS), want, 1e-12)
        got = region_phrase_loss(regions, phrases, SCALE, LENGTHS)
        assert_close(got, naive.contrast(SCALE * want, SCALE * want), 1e-12)

    def test_region_phrase_of_regions_with_lengths(self):
        regions, phrases = -features(3, 4, 5).abs(), features(3, 4, 5, seed=1).abs()  # a padding of 0 would be the best
        per_image = [
            naive.region_phrase_similarity(regions[b : b + 1, :m].expand(3, -1, -1), phrases, LENGTHS)[0]
            for b, m in enumerate(LENGTHS)
        ]
        got = region_phrase_similarity(regions, phrases, LENGTHS, region_lengths=LENGTHS)
        assert_close(got, torch.stack(per_image), 1e-12)
        loss = region_phrase_loss(regions, phrases, SCALE, LENGTHS, region_lengths=LENGTHS)
        assert_close(loss, info_nce(SCALE * got), 1e-12)

    def test_fsa_labels(self):
        alignment, regions = 3 * random_pairs(3, 5, 4), torch.tensor([5, 2, 3])
        labels, weights = fsa_labels(alignment, regions, LENGTHS, 0.3)
        for b, (m, n) in enumerate(zip(regions, LENGTHS, strict=True)):
            want = naive.fsa_labels(alignment[b, :m, :n], 0.3)
            assert_close(labels[b, :m, :n], want[0], 1e-12)
            assert_close(weights[b, :m], want[1], 1e-12)
            assert labels[b].sum().item() == pytest.approx(m)  # each row a distribution, and nothing at the padding
            assert weights[b, m:].abs().sum() == 0

    def test_a_region_that_goes_with_no_phrase_has_no_weight(self):
        sure, indifferent = [9.0, 0.0, 0.0], [0.0, 0.0, 0.0]
        _, weights = fsa_labels(torch.tensor([[sure, sure[::-1], indifferent, indifferent]]))
        assert weights[0, :2].min() > 0.9
        assert weights[0, 2:].max() < 0.4

    def test_fsa_labels_from_the_callers_interactions_in_any_unit(self):
        alignment = 3 * random_pairs(3, 5, 4)
        exact = alignment_interactions(alignment, None, LENGTHS)
        want, got = fsa_labels(alignment, None, LENGTHS), fsa_labels(alignment, None, LENGTHS, interactions=8 * exact)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        other = fsa_labels(alignment, None, LENGTHS, interactions=random_pairs(3, 5, 4, 9))
        assert not torch.equal(other[0], want[0])
        assert torch.equal(other[0], fsa_labels(-alignment, None, LENGTHS, interactions=random_pairs(3, 5, 4, 9))[0])

    @pytest.mark.parametrize("value", [-1.0, -1e-300, 0.0])
    def test_without_a_positive_interaction_nothing_is_labelled(self, value):
        regions, phrases = features(2, 5, 4).requires_grad_(), features(2, 3, 4, seed=1)
        interactions = -random_pairs(2, 5, 3).abs() - 1
        interactions[1, 0, 0] = value
        labels, weights = fsa_labels(regions @ phrases.mT, interactions=interactions)
        assert labels.isfinite().all()
        assert weights.abs().sum() == 0
        loss = fsa_loss(regions, phrases, SCALE, interactions=interactions)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, regions)[0].abs().sum() == 0

    @pytest.mark.parametrize("negatives", [False, True])
    def test_fsa_loss_and_its_gradients_with_constant_labels(self, negatives):
        inputs, counts = (features(3, 5, 4), features(3, 4, 4, seed=1)), torch.tensor([5, 2, 3])
        got = values_and_gradients(lambda r, p: fsa_loss(r, p, SCALE, counts, LENGTHS, 0.3, negatives), *inputs)
        want = values_and_gradients(lambda r, p: naive.fsa_loss(r, p, SCALE, counts, LENGTHS, 0.3, negatives), *inputs)
        for x, y in zip(got, want, strict=True):
            assert_close(x, y, 1e-12)

    def test_box_loss(self):
        targets = torch.tensor([[[2.0, 2, 14, 14], [5, 5, 9, 9]], [[0, 0, 8, 4], [0, 0, 16, 16]]])
        lengths, at = torch.tensor([2, 1]), torch.tensor([[x, y] for y in range(1, 16, 3) for x in range(1, 16, 3)])
        boxes, confidence = 8 + 4 * random_pairs(2, 25, 4).float(), random_pairs(1, 2, 25, 1)[0].float()
        regression, objectness = [], []
        for b in range(2):
            for k, (x, y) in enumerate(at.tolist()):
                insides, outside = [], True
                for x0, y0, x1, y1 in targets[b, : lengths[b]].tolist():
                    away = max(abs(x - (x0 + x1) / 2) / (x1 - x0), abs(y - (y0 + y1) / 2) / (y1 - y0))
                    insides += [((x1 - x0) * (y1 - y0), (x0, y0, x1, y1))] if away < 0.25 else []
                    outside &= away >= 0.5
                if insides:
                    regression.append(1 - generalised_iou(boxes[b, k].tolist(), min(insides)[1]))
                if insides or outside:
                    logit = confidence[b, k].item()
                    objectness.append(math.log(1 + math.exp(-logit if insides else logit)))
        assert 0 < len(regression) < len(objectness) < 50  # all three kinds of patch are there
        want = 0.7 * sum(regression) / len(regression) + sum(objectness) / len(objectness)
        got = box_loss(boxes, confidence, targets, at.float(), lengths, weight=0.7)
        assert got.item() == pytest.approx(want, rel=1e-5)

    def test_box_loss_knows_no_unit(self):
        targets, at = torch.tensor([[[2.0, 2, 14, 14]]]), torch.tensor([[8.0, 8], [3.0, 8], [20.0, 20]])
        boxes, confidence = 8 + 4 * random_pairs(1, 3, 4).float(), torch.zeros(1, 3)
        want = box_loss(boxes, confidence, targets, at)
        for unit in (1 / 224, 1e3):
            got = box_loss(unit * boxes, confidence, unit * targets, unit * at)
            assert got.item() == pytest.approx(want.item(), rel=1e-5)

    def test_a_box_that_meets_no_pseudo_box_is_drawn_towards_it(self):
        boxes = torch.tensor([[[20.0, 0, 24, 4]]], requires_grad=True)
        box_loss(boxes, torch.zeros(1, 1), torch.tensor([[[0.0, 0, 4, 4]]]), torch.tensor([[2.0, 2]])).backward()
        assert boxes.grad[0, 0, 0] > 0  # its left edge, which descent moves to the left

    def test_box_loss_where_every_patch_is_between_inside_and_outside(self):
        target = torch.tensor([[[0.0, 0, 10, 10]]])
        assert box_loss(torch.zeros(1, 1, 4), torch.zeros(1, 1), target, torch.tensor([[1.0, 1.0]])) == 0


class TestGradients:
    @pytest.mark.parametrize(
        ("loss", "shapes"),
        [
            (lambda i, t, s: cmc_loss(3 * i, 2 * t, s), [(4, 3), (4, 3)]),
            (lambda r, p, s: region_phrase_loss(r, p, s, LENGTHS), [(3, 5, 4), (3, 4, 4)]),
            (lambda r, p, s: late_interaction_loss(r, p, s, None, LENGTHS), [(3, 5, 4), (3, 4, 4)]),
        ],
        ids=["cmc", "region_phrase", "late_interaction"],
    )
    def test_by_finite_differences(self, loss, shapes):
        inputs = [features(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]
        assert torch.autograd.gradcheck(loss, (*inputs, torch.tensor(SCALE).double().requires_grad_()))

    @pytest.mark.parametrize("negatives", [False, True])
    def test_fsa_by_finite_differences_with_the_labels_held(self, negatives, monkeypatch):
        regions, phrases = features(3, 5, 4).requires_grad_(), features(3, 4, 4, seed=1).requires_grad_()
        held = fsa_labels(SCALE * regions @ phrases.mT, None, LENGTHS)
        assert not any(x.requires_grad for x in held)
        monkeypatch.setattr("loupe_ext.losses.fsa.fsa_labels", lambda *_: held)
        loss = lambda r, p, s: fsa_loss(r, p, s, phrase_lengths=LENGTHS, negatives=negatives)  # noqa: E731
        assert torch.autograd.gradcheck(loss, (regions, phrases, torch.tensor(SCALE).double().requires_grad_()))


RAGGED = {
    "region_phrase": lambda r, p: region_phrase_loss(r, p, SCALE, LENGTHS),
    "region_phrase-regions": lambda p, r: region_phrase_loss(r, p, SCALE, region_lengths=LENGTHS),
    "late_interaction": lambda r, p: late_interaction_loss(r, p, SCALE, None, LENGTHS),
    "fsa": lambda r, p: fsa_loss(r, p, SCALE, phrase_lengths=LENGTHS),
    "fsa-without-negatives": lambda r, p: fsa_loss(r, p, SCALE, phrase_lengths=LENGTHS, negatives=False),
    "fsa-regions": lambda r, p: fsa_loss(p, r, SCALE, region_lengths=LENGTHS),
}


class TestRagged:
    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
    @pytest.mark.parametrize("loss", RAGGED.values(), ids=RAGGED)
    def test_what_stands_at_the_padding_does_not_matter(self, loss, rubbish):
        full, ragged = features(3, 5, 4), features(3, 4, 4, seed=1)
        padding = (torch.arange(4) >= LENGTHS[:, None])[..., None]
        want = values_and_gradients(loss, full, ragged)
        got = values_and_gradients(loss, full, ragged.masked_fill(padding, rubbish))
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        assert got[2].masked_select(padding).abs().sum() == 0

    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, -1e30])
    def test_absent_pseudo_boxes_do_not_matter(self, rubbish):
        boxes, confidence, at = 9 * features(2, 9, 4), random_pairs(1, 2, 9)[0], 9 * features(9, 2).abs()
        targets, lengths = torch.tensor([[[2.0, 2, 6, 6]] * 2, [[1, 1, 8, 8]] * 2]).double(), torch.tensor([2, 1])
        loss = lambda b, c, t: box_loss(b, c, t, at, lengths)  # noqa: E731
        want = values_and_gradients(lambda b, c: loss(b, c, targets), boxes, confidence)
        targets[1, 1] = rubbish
        got = values_and_gradients(lambda b, c: loss(b, c, targets), boxes, confidence)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))

    def test_one_pair_alone_has_nothing_to_contrast(self):
        one, other = features(1, 5, 4), features(1, 3, 4, seed=1)
        assert cmc_loss(one[0, :1], other[0, :1], SCALE) == 0
        assert region_phrase_loss(one, other, SCALE) == 0
        assert late_interaction_loss(one, other, SCALE) == 0
        own = [fsa_loss(one, other, SCALE, negatives=x).item() for x in (False, True)]
        assert own[0] == pytest.approx(own[1], rel=1e-12)


class TestBadInput:
    x, y = features(3, 5, 4), features(3, 2, 4, seed=1)

    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x, y: info_nce(x[0]), ValueError, r"similarity: expected a square, got \(5, 4\)"),
            (lambda x, y: cmc_loss(x, x[0], 1.0), ValueError, r"images: expected shape \[B, d\], .* got \(3, 5, 4\)"),
            (lambda x, y: cmc_loss(x[0].long(), x[0], 1.0), TypeError, "images: expected dtype .* got torch.int64"),
            (lambda x, y: cmc_loss([1.0], x[0], 1.0), TypeError, "images: expected a torch.Tensor, got list"),
            (lambda x, y: cmc_loss(x[0], x[1, :4], 1.0), ValueError, r"texts: expected the B of images \(5\)"),
            (lambda x, y: cmc_loss(x[0, :0], x[0, :0], 1.0), ValueError, r"images: .* none of them 0, got \(0, 4\)"),
            (lambda x, y: region_phrase_loss(x[:2], y, 1.0), ValueError, r"phrases: expected the B of regions \(2\)"),
            (lambda x, y: region_phrase_loss(x, y[..., :3], 1.0), ValueError, r"phrases: expected the d of regions"),
            (lambda x, y: region_phrase_loss(x, y[0], 1.0), ValueError, r"phrases: expected shape \[B, P, d\]"),
            (lambda x, y: late_interaction_loss(x[:2], y, 1.0), ValueError, r"tokens: expected the B of regions \(2\)"),
            (lambda x, y: fsa_labels(x[0]), ValueError, r"alignment: expected shape \[B, M, N\]"),
            (lambda x, y: fsa_labels(x, temperature=0.0), ValueError, "temperature: expected .* above 0, got 0"),
            (lambda x, y: fsa_labels(x, interactions=y), ValueError, "interactions: expected the shape of alignment"),
            (lambda x, y: fsa_loss(x, x, 1.0, interactions=x.float()), ValueError, "interactions: expected the shape"),
            (lambda x, y: fsa_loss(x, y, 1.0, temperature=math.nan), ValueError, "temperature: expected .* got nan"),
            (lambda x, y: fsa_loss(x, y[:2], 1.0), ValueError, r"phrases: expected the B of regions \(3\)"),
            (lambda x, y: box_loss(x, x[..., 0], y, x[0]), ValueError, r"centres: expected shape \[n, 2\]"),
            (lambda x, y: box_loss(x, x[:, :2, 0], y, x[0, :, :2]), ValueError, "confidence: expected the n of boxes"),
            (lambda x, y: box_loss(x[..., :3], x[..., 0], y, x[0, :, :2]), ValueError, r"boxes: .* \[B, n, 4\]"),
            (lambda x, y: box_loss(x, x[..., 0], y[:2], x[0, :, :2]), ValueError, "targets: expected the B of boxes"),
        ],
    )
    def test_names_the_argument(self, call, error, message):
        with pytest.raises(error, match=message):
            call(self.x, self.y)

    @pytest.mark.parametrize(
        "scale",
        [None, "x", True, 0.0, -1.0, math.nan, math.inf, [1.0], torch.ones(4), torch.ones(1, 1), torch.tensor(2)],
    )
    @pytest.mark.parametrize(
        "loss",
        [
            lambda x, y, s: cmc_loss(x[0], x[1], s),
            region_phrase_loss,
            late_interaction_loss,
            fsa_loss,
            sparse_grouping_loss,
        ],
    )
    def test_scale(self, loss, scale):
        with pytest.raises((TypeError, ValueError), match=r"^scale: expected"):
            loss(self.x, self.y, scale)
        assert torch.equal(loss(self.x, self.y, torch.tensor([2.0])), loss(self.x, self.y, 2))

    def test_tensors_of_another_device(self):
        with pytest.raises(ValueError, match=r"texts: expected the device of images \(cpu\), got meta"):
            cmc_loss(self.x[0], self.x[1].to("meta"), 1.0)
        with pytest.raises(ValueError, match="interactions: expected the device of alignment"):
            fsa_labels(self.x, interactions=self.x.to("meta"))

    @pytest.mark.parametrize(
        ("lengths", "error", "message"),
        [
            ([2, 1, 1], TypeError, "expected a torch.Tensor, got list"),
            (torch.tensor([2.0, 1.0, 1.0]), TypeError, "expected dtype int32 or int64"),
            (torch.tensor([2, 1]), ValueError, r"expected shape \(3,\)"),
            (torch.tensor([2, 0, 1]), ValueError, r"expected lengths in 1..2, got 0..2"),
            (torch.tensor([2, 3, 1]), ValueError, r"expected lengths in 1..2, got 1..3"),
        ],
    )
    @pytest.mark.parametrize(
        ("name", "loss"),
        [
            ("phrase_lengths", lambda x, y, n: region_phrase_loss(x, y, 1.0, n)),
            ("region_lengths", lambda x, y, n: region_phrase_loss(y, x, 1.0, region_lengths=n)),
            ("token_lengths", lambda x, y, n: late_interaction_loss(x, y, 1.0, None, n)),
            ("region_lengths", lambda x, y, n: late_interaction_loss(y, x, 1.0, n)),
            ("phrase_lengths", lambda x, y, n: fsa_loss(x, y, 1.0, None, n)),
            ("region_lengths", lambda x, y, n: fsa_loss(y, x, 1.0, n)),
            ("target_lengths", lambda x, y, n: box_loss(x, x[..., 0], y, x[0, :, :2], n)),
        ],
    )
    def test_lengths(self, name, loss, lengths, error, message):
        with pytest.raises(error, match=f"{name}: {message}"):
            loss(self.x, self.y, lengths)
