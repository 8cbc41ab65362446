import dataclasses
import functools

import pytest
import torch

from loupe_ext import data
from loupe_ext.losses import late_interaction_similarity
from loupe_ext.model import heat
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.regions import coverage
from loupe_ext.objective import Objective
from loupe_ext.train import Config, build, fit, from_pretrained
from loupe_ext.zeroshot import evaluate as evaluation
from loupe_ext.zeroshot.grounding import (
    choose_proposals,
    chosen_boxes,
    grounding_accuracy,
    pointing_accuracy,
    proposal_recall,
)
from loupe_ext.zeroshot.retrieval import recalls

RETRIEVAL = {"i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"}
GROUNDING = {"pointing", "acc50", "acc30", "miou"}
CONTROL = {"pointing_shuffled"}
PROPOSALS = {"recall", "proposal_acc50", "proposal_acc30", "proposal_miou"}
DETECTION = {"ap50", "ap30"}
NO_BOXES = {"boxes": 0.0}
LATE = {"cmc": 0.0, "late_interaction": 1.0, **NO_BOXES}


@functools.cache
def scenes() -> data.Grounded:
    return data.load("scenes", "test", 20)


SMALL = Config().but(width=16, dim=16, batch_size=8, train_size=8, proposals=6)


def built(**changes: object) -> tuple[DualEncoder, Objective]:
    model, objective = build(SMALL.but(changes), scenes().pairs.vocabulary)
    return model.eval(), objective


def judged(scenes: data.Grounded, threshold: float = 0.5, **changes: object) -> dict[str, float]:
    model, objective = built(**changes)
    return evaluation.evaluate(model, scenes, objective, threshold)


def true_boxes() -> torch.Tensor:
    return scenes().boxes[~scenes().boxes.isnan().any(-1)]


class TestRetrieval:
    def test_both_ways(self):
        similarity = torch.tensor([[5.0, 1, 2], [4, 3, 0], [9, 9, 9.5]])  # images by texts
        assert recalls(similarity, at=(1, 2)) == {
            "i2t_r1": 2 / 3,  # the second image prefers the first text
            "i2t_r2": 1,
            "t2i_r1": 1 / 3,  # the first two texts prefer the third image
            "t2i_r2": 1,
        }

    def test_each_way_by_its_own_similarity(self):
        right, wrong = torch.eye(4), 1 - torch.eye(4)
        assert recalls(right, wrong, (1,)) == {"i2t_r1": 1, "t2i_r1": 0}
        a_text_for_all = right + 9 * torch.arange(4)  # images choose badly; each text still finds its image
        assert recalls(right, a_text_for_all, (1,)) == {"i2t_r1": 1, "t2i_r1": 1}
        assert recalls(a_text_for_all, right, (1,)) == {"i2t_r1": 1 / 4, "t2i_r1": 1}

    def test_ties_count_against_the_match(self):
        constant = torch.zeros(6, 6)
        assert recalls(constant, at=(1, 5, 6)) == {
            **dict.fromkeys(("i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"), 0),
            **dict.fromkeys(("i2t_r6", "t2i_r6"), 1),
        }

    @pytest.mark.parametrize("where", ["everywhere", "match", "others"])
    def test_nan_counts_against_the_match(self, where):
        similarity = 2 * torch.eye(3)
        mask = {"everywhere": torch.ones(3, 3), "match": torch.eye(3), "others": 1 - torch.eye(3)}[where].bool()
        assert set(recalls(similarity.masked_fill(mask, torch.nan), at=(1,)).values()) == {0}

    def test_a_match_that_is_not_finite_is_a_miss_at_every_k(self):
        for value in (torch.nan, torch.inf, -torch.inf):
            assert set(recalls(torch.eye(3).fill_diagonal_(value), at=(1, 3, 9)).values()) == {0}

    @pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
    def test_several_captions_of_an_image(self, dtype):
        rng = torch.Generator().manual_seed(0)
        image = torch.randint(4, (12,), generator=rng)
        image[:4] = torch.tensor([2, 0, 3, 1])
        similarity = torch.rand(4, 12, generator=rng, dtype=torch.float64).mul(9).round().to(dtype)  # with ties
        other = similarity.flip(1)
        got = recalls(similarity, other, (1, 3), image)
        for k in (1, 3):
            i2t, t2i = [], []
            for i in range(4):
                best = max(similarity[i, j] for j in range(12) if image[j] == i)
                i2t.append(sum(similarity[i, j] >= best for j in range(12) if image[j] != i).item() < k)
            for j in range(12):
                better = sum(other[i, j] >= other[image[j], j] for i in range(4) if i != image[j])
                t2i.append(int(better) < k)
            assert 0 < sum(i2t) + sum(t2i) < 16
            assert (got[f"i2t_r{k}"], got[f"t2i_r{k}"]) == (sum(i2t) / 4, sum(t2i) / 12)

    @pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 0), (1, 2, 2)])
    def test_not_a_square(self, shape):
        expected = r"expected (a square \[n, n\]|shape \[n, m\], none of them 0)"
        with pytest.raises(ValueError, match=f"image_to_text: {expected}"):
            recalls(torch.zeros(shape))
        with pytest.raises(ValueError, match=f"text_to_image: {expected}"):
            recalls(torch.eye(3), torch.zeros(shape))

    @pytest.mark.parametrize(
        ("changes", "error", "message"),
        [
            ({"image_to_text": [[1.0]]}, TypeError, "image_to_text: expected a torch.Tensor, got list"),
            ({"image_to_text": torch.eye(3).long()}, TypeError, "image_to_text: expected dtype"),
            ({"text_to_image": torch.eye(4)}, ValueError, r"text_to_image: expected the n of image_to_text \(3\)"),
            ({"at": (0,)}, ValueError, "at: expected 1 to .*, got 0"),
            ({"at": 1}, TypeError, "at: expected a tuple of ints, got 1"),
            ({"image_of_caption": [0, 1, 2]}, TypeError, "image_of_caption: expected a torch.Tensor"),
            ({"image_of_caption": torch.arange(2)}, ValueError, r"image_of_caption: expected int64 of shape \[3\]"),
            ({"image_of_caption": torch.tensor([0, 0, 1])}, ValueError, "image_of_caption: expected each of 0 to 2"),
            ({"image_of_caption": torch.tensor([0, 1, 3])}, ValueError, "image_of_caption: expected each of 0 to 2"),
        ],
    )
    def test_bad_input(self, changes, error, message):
        with pytest.raises(error, match=message):
            recalls(**{"image_to_text": torch.eye(3), **changes})


class TestGrounding:
    box = torch.tensor([[2.0, 4, 10, 12]])

    @pytest.mark.parametrize(
        ("point", "hit"),
        [((5, 5), 1), ((2, 4), 1), ((10, 5), 0), ((5, 12), 0), ((1, 5), 0), ((5, 3), 0), ((9.9, 11.9), 1)],
    )
    def test_pointing(self, point, hit):
        assert pointing_accuracy(torch.tensor([point]).float(), self.box) == hit

    def test_pointing_is_a_share(self):
        points = torch.tensor([[5.0, 5], [5, 5], [0, 0], [float("nan")] * 2])
        assert pointing_accuracy(points, self.box.expand(4, 4)) == 0.5

    def test_accuracy_from_the_very_threshold_on(self):
        predicted = torch.tensor([[2.0, 4, 10, 12], [2, 4, 10, 8], [2, 4, 4, 12], [20, 20, 30, 30]])
        got = grounding_accuracy(predicted, self.box.expand(4, 4))  # IoU 1, 1/2, 1/4 and 0
        assert got == {"acc50": 0.5, "acc30": 0.5, "miou": pytest.approx(1.75 / 4)}
        assert grounding_accuracy(torch.tensor([[2.0, 4, 10, 7]]), self.box)["acc30"] == 1  # 3/8

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("side", [300.0, 30000.0, 2.0**-11])  # areas that float16 cannot hold
    def test_large_and_small_boxes_of_every_dtype(self, dtype, side):
        box = torch.tensor([[0, 0, side, side]], dtype=dtype)
        half = torch.tensor([[0, 0, side, side / 2]], dtype=dtype)
        assert grounding_accuracy(box, box) == {"acc50": 1, "acc30": 1, "miou": 1}
        assert grounding_accuracy(half, box)["miou"] == proposal_recall(half[:, None], box) / 2 == 0.5

    def test_recall_needs_one_proposal(self):
        far, half = torch.tensor([40.0, 40, 50, 50]), torch.tensor([2.0, 4, 10, 8])
        proposals = torch.stack([torch.stack([far, half]), torch.stack([far, far])])
        assert proposal_recall(proposals, self.box.expand(2, 4)) == 0.5
        assert proposal_recall(proposals, self.box.expand(2, 4), overlap=0.6) == 0

    def test_a_phrase_picks_the_proposal_that_looks_like_it_and_is_sure(self):
        features = torch.tensor([[[1.0, 0], [0, 1], [0.8, 0.6]]])
        phrases = torch.tensor([[[1.0, 0], [0, 1], [-1, 0]]])
        sure = torch.zeros(1, 3)
        assert choose_proposals(features, sure, phrases).tolist() == [[0, 1, 1]]
        sure[0, 0] = -9  # 5 * (1 - 0.8) does not make up for that
        assert choose_proposals(features, sure, phrases).tolist() == [[2, 1, 1]]
        assert choose_proposals(features, sure, phrases, sharpness=100.0).tolist() == [[0, 1, 1]]

    nan = torch.full((1, 4), torch.nan)

    def test_what_is_not_finite_is_a_miss(self):
        true = self.box.expand(3, 4)
        for value in (torch.nan, torch.inf, -torch.inf):
            predicted = true.clone()
            predicted[1, 2] = value
            assert grounding_accuracy(predicted, true) == {
                key: pytest.approx(2 / 3) for key in ("acc50", "acc30", "miou")
            }
            assert proposal_recall(predicted[:, None], true) == pytest.approx(2 / 3)
            assert proposal_recall(torch.stack([predicted, true], 1), true) == 1  # one spoils no other
            points = torch.full((3, 2), 5.0)
            points[1, 1] = value
            assert pointing_accuracy(points, true) == pytest.approx(2 / 3)

    def test_a_phrase_without_a_true_box_is_left_out_and_counted(self):
        predicted, true = self.box.expand(3, 4), torch.cat([self.box, self.nan, 2 * self.box])
        alone = grounding_accuracy(predicted[[0, 2]], true[[0, 2]])
        assert grounding_accuracy(predicted, true) == {**alone, "left_out": 1}
        assert proposal_recall(predicted[:, None], true) == pointing_accuracy(predicted[:, :2], true) == 0.5
        with pytest.raises(ValueError, match="true: expected a finite box or more, got none"):
            grounding_accuracy(self.box, self.nan)

    def test_several_true_boxes_of_a_phrase(self):
        left, right = torch.tensor([0.0, 0, 4, 4]), torch.tensor([8.0, 0, 12, 4])
        true = torch.stack([torch.stack([left, right, self.nan[0]]), torch.stack([right, *self.nan, *self.nan])])
        predicted = torch.stack([right, torch.tensor([0.0, 0, 12, 4])])
        assert grounding_accuracy(predicted, true)["miou"] == pytest.approx((1 + 1 / 3) / 2)
        assert grounding_accuracy(predicted, true, "merged")["miou"] == pytest.approx((1 / 3 + 1 / 3) / 2)
        points = torch.tensor([[6.0, 2], [9, 2]])  # between the two of the first; in the second's
        assert pointing_accuracy(points, true) == 0.5
        assert pointing_accuracy(points, true, "merged") == 1
        assert proposal_recall(predicted[:, None], true) == 0.5
        assert proposal_recall(predicted[:, None], true, 0.3, "merged") == 1

    def test_a_proposal_whose_score_is_not_finite_is_not_picked(self):
        features, phrases = torch.eye(3)[None].clone(), torch.eye(3)[None].clone()
        features[0, 1, 0], phrases[0, 2] = torch.nan, torch.nan
        chosen = choose_proposals(features, torch.zeros(1, 3), phrases)
        assert chosen.tolist() == [[0, 0, -1]]
        boxes = chosen_boxes(torch.arange(12.0).view(1, 3, 4), chosen)
        assert boxes[0, :2].tolist() == [[0, 1, 2, 3]] * 2
        assert boxes[0, 2].isnan().all()

    @pytest.mark.parametrize(
        ("function", "arguments", "error", "message"),
        [
            (
                grounding_accuracy,
                (torch.zeros(3, 4), torch.zeros(1, 4)),
                ValueError,
                r"true: expected the n of predicted",
            ),
            (
                grounding_accuracy,
                (torch.zeros(1, 4), torch.zeros(3, 4)),
                ValueError,
                r"true: expected the n of predicted",
            ),
            (
                grounding_accuracy,
                (torch.zeros(4), torch.zeros(3, 4)),
                ValueError,
                r"predicted: expected shape \[n, 4\]",
            ),
            (grounding_accuracy, (torch.zeros(3, 4), torch.zeros(4)), ValueError, r"true: expected shape \[n, 4\] or"),
            (grounding_accuracy, (torch.zeros(3, 4), None), TypeError, r"true: expected a torch.Tensor"),
            (grounding_accuracy, (*[torch.zeros(3, 4)] * 2, "all"), ValueError, "several: expected 'any' or 'merged'"),
            (pointing_accuracy, (torch.zeros(1, 2), torch.zeros(3, 4)), ValueError, "boxes: expected the n of points"),
            (pointing_accuracy, (torch.zeros(3, 2).long(), torch.zeros(3, 4)), TypeError, "points: expected dtype"),
            (
                proposal_recall,
                (torch.zeros(1, 2, 4), torch.zeros(3, 4)),
                ValueError,
                "true: expected the n of proposals",
            ),
            (proposal_recall, (torch.zeros(3, 2, 4), torch.zeros(3, 4), "x"), TypeError, "overlap: expected a float"),
        ],
    )
    def test_bad_input(self, function, arguments, error, message):
        with pytest.raises(error, match=message):
            function(*arguments)

    def test_the_truth_scores_one(self):
        true = true_boxes()
        assert pointing_accuracy((true[:, :2] + true[:, 2:]) / 2, true) == 1
        assert grounding_accuracy(true, true) == {"acc50": 1, "acc30": 1, "miou": 1}
        assert proposal_recall(true.roll(1, 0)[:, None].expand(-1, 3, -1), true) < 0.5
        assert proposal_recall(torch.stack([true.roll(1, 0), true], 1), true) == 1


class TestEvaluate:
    @pytest.mark.parametrize(
        ("changes", "keys"),
        [
            ({}, RETRIEVAL | GROUNDING | CONTROL | PROPOSALS | DETECTION),
            ({**NO_BOXES, "regions": "proposals"}, RETRIEVAL | GROUNDING | CONTROL | PROPOSALS | DETECTION),
            (NO_BOXES, RETRIEVAL | GROUNDING | CONTROL),
            (LATE, RETRIEVAL | GROUNDING | CONTROL),
        ],
        ids=["boxes", "boxes-by-gradient", "no-boxes", "late-interaction"],
    )
    def test_measures_what_its_docstring_says(self, changes, keys):
        if keys & DETECTION:
            pytest.importorskip("faster_coco_eval")
        metrics = judged(scenes(), **changes)
        assert set(metrics) == keys
        assert all(name in evaluation.evaluate.__doc__ for name in keys)
        assert all(0 <= value <= 1 for value in metrics.values())
        assert metrics["i2t_r1"] <= metrics["i2t_r5"]
        assert metrics["acc50"] <= metrics["acc30"]

    def test_any_model_that_gives_features_is_judged(self):
        """Without a region head, a vocabulary or an objective; the metrics are those of the model it stands for."""
        inner = built()[0]

        class Plain(torch.nn.Module):
            def encode_image(self, images):
                return dataclasses.replace(inner.encode_image(images), boxes=None, confidence=None, weights=None)

            def encode_text(self, tokens, spans, phrase_lengths):
                return inner.encode_text(tokens, spans, phrase_lengths)

        metrics = evaluation.evaluate(Plain(), scenes(), threshold=0.5)
        assert metrics == judged(scenes(), **NO_BOXES)
        with pytest.raises(TypeError, match="model: expected one with encode_image and encode_text, got Linear"):
            evaluation.evaluate(torch.nn.Linear(2, 2), scenes())

    @pytest.mark.parametrize("changes", [{}, LATE], ids=["cmc", "late-interaction"])
    def test_does_not_depend_on_its_batches(self, changes, monkeypatch):
        model, objective = built(**changes)
        whole, parts = evaluation.encode(model, scenes()), evaluation.encode(model, scenes(), batch_size=7)
        pooled = objective.config.cmc.weight > 0
        assert len(parts.images) == 3
        assert torch.equal(parts.boxes, whole.boxes)
        for options in ((False, False), (True, False), (True, True)):
            torch.testing.assert_close(parts.heat(*options), whole.heat(*options))
        for x, y in zip(evaluation.similarities(parts, pooled), evaluation.similarities(whole, pooled), strict=True):
            torch.testing.assert_close(x, y)

    def test_similarities_are_of_images_by_texts(self):
        seen = evaluation.encode(built()[0], scenes(), batch_size=7)
        patches = torch.cat([x.patches.flatten(1, 2) for x in seen.images])
        words, lengths = (torch.cat([getattr(x, name) for x in seen.texts]) for name in ("tokens", "lengths"))
        want = late_interaction_similarity(patches, words, None, lengths)
        for x, y in zip(evaluation.similarities(seen, pooled=False), want, strict=True):
            torch.testing.assert_close(x, y)
        pooled = evaluation.similarities(seen)
        assert pooled[0][9, 2].item() == pytest.approx((seen.images[1].pooled[2] @ seen.texts[0].pooled[2]).item())

    def test_patches_that_an_image_lacks_are_not_compared(self):
        seen = evaluation.encode(built()[0], scenes(), batch_size=7)
        image, text = seen.images[0], seen.texts[0]
        short = image.patches.flatten(1, 2)[:, None, :9]
        padded = torch.cat([short, torch.full_like(short, torch.nan)], 2)
        lengths = torch.full((len(short),), 9)
        found = dataclasses.replace(seen, images=[dataclasses.replace(image, patches=padded, lengths=lengths)])
        want = late_interaction_similarity(short[:, 0], text.tokens, None, text.lengths)
        for x, y in zip(evaluation.similarities(found, pooled=False), want, strict=True):
            torch.testing.assert_close(x[:, : y.shape[1]], y)

    def test_the_control_points_with_phrases_of_the_next_caption(self):
        seen = evaluation.encode(built()[0], scenes(), batch_size=7)
        n, want = len(scenes()), []
        phrases = torch.cat([x.phrases for x in seen.texts])
        lengths = scenes().pairs.phrase_lengths.tolist()
        patches = torch.cat([x.patches for x in seen.images])
        for i in range(n):
            other = (i + 1) % n
            want += [patches[i] @ phrases[other, k % lengths[other]] for k in range(lengths[i])]
        torch.testing.assert_close(seen.heat(others=True), torch.stack(want))
        assert "pointing_shuffled" not in evaluation.evaluate(built()[0], data.load("scenes", "test", 1))

    def test_centred_heat_is_that_of_phrases_less_their_mean(self):
        seen = evaluation.encode(built()[0], scenes(), batch_size=7)
        mean = torch.cat([x.phrases[x.phrase_mask] for x in seen.texts]).mean(0)
        shared = torch.cat(
            [
                (image.patches @ mean)[:, None].expand(-1, text.phrases.shape[1], -1, -1)[text.phrase_mask]
                for image, text in zip(seen.images, seen.texts, strict=True)
            ]
        )
        for others in (False, True):
            torch.testing.assert_close(seen.heat(True, others), seen.heat(others=others) - shared)
        alone = dataclasses.replace(
            seen,
            images=seen.images[:1],
            texts=[dataclasses.replace(seen.texts[0], phrase_lengths=torch.eye(7).long()[0])],
        )
        assert torch.equal(alone.heat(True), alone.heat())
        model, objective = built()
        both = [evaluation.evaluate(model, scenes(), objective, 0.5, centred) for centred in (False, True)]
        assert both[0]["miou"] != both[1]["miou"]

    def test_scenes_without_classes_are_not_detected_in(self):
        bare = dataclasses.replace(
            scenes(), objects=torch.zeros(20, 0, 4), classes=torch.zeros(20, 0, dtype=torch.int64), prompts=()
        )
        whole = judged(scenes())
        assert judged(bare) == {name: value for name, value in whole.items() if name not in DETECTION}

    def test_heat_on_the_true_boxes_grounds_every_phrase(self, monkeypatch):
        """The conventions of maps, points and boxes agree, and each map belongs to its box."""

        def maps(patches, phrases):
            start = len(done) % 3 * 7
            of_others = len(done) >= 3
            done.append(scenes().boxes[start : start + 7].nan_to_num(0))
            return coverage(done[-1].flip(0) if of_others else done[-1], 16, 16).unflatten(-1, (16, 16))

        done = []
        encode = functools.partial(evaluation.encode, batch_size=7)
        monkeypatch.setattr(evaluation, "encode", encode)
        monkeypatch.setattr(heat, "heat_maps", maps)
        metrics = judged(scenes(), **NO_BOXES)
        assert metrics["pointing"] == metrics["acc50"] == 1 > metrics["pointing_shuffled"]
        assert metrics["miou"] > 0.75

    def test_the_true_boxes_as_proposals_are_all_recalled_and_each_phrase_gets_the_one_it_picked(self, monkeypatch):
        pytest.importorskip("faster_coco_eval")
        order = torch.rand(20, 3, generator=torch.Generator().manual_seed(0)).argsort(1)  # another in each image

        def proposals(image, count, overlap):
            boxes = scenes().boxes.nan_to_num(0).gather(1, order[..., None].expand(-1, -1, 4))
            return torch.zeros(20, 3, 16), boxes, torch.zeros(20, 3)

        monkeypatch.setattr("loupe_ext.model.features.ImageFeatures.proposals", proposals)
        monkeypatch.setattr(evaluation.grounding, "choose_proposals", lambda *_: order.argsort(1))
        metrics = judged(scenes())
        assert all(metrics[name] == 1 for name in PROPOSALS)

    def test_words_that_are_not_the_models_are_refused(self):
        model, pairs = built()[0], scenes().pairs
        words = list(pairs.vocabulary.words)
        model.vocabulary = data.Vocabulary([*words[:4], words[5], words[4], *words[6:]])
        for name, judge in (
            ("scenes", lambda: evaluation.evaluate(model, scenes())),
            ("validation", lambda: evaluation.choose_heat(model, scenes())),
        ):
            with pytest.raises(ValueError, match=f"{name}: .* id 5 to be {words[5]!r}, got {words[4]!r}"):
                judge()
        with pytest.raises(ValueError, match=f"tokens: expected 0 to {len(words)}, got"):
            dataclasses.replace(pairs, tokens=pairs.tokens + len(pairs.vocabulary))
        batch = pairs.batch(slice(2))
        with pytest.raises(ValueError, match=f"tokens: expected ids 0 to {len(words)} of the vocabulary, got"):
            model.encode_text(batch.tokens + len(pairs.vocabulary), batch.spans, batch.phrase_lengths)

    def test_a_trained_model_knows_its_words(self, tmp_path):
        pytest.importorskip("safetensors")
        pairs = data.load("scenes", "train", 8).pairs
        trained = fit(pairs, SMALL.but(NO_BOXES, steps=1), path=tmp_path / "run").model
        assert trained.vocabulary is pairs.vocabulary
        assert from_pretrained(tmp_path / "run").vocabulary.words == pairs.vocabulary.words

    def test_heat_that_is_not_finite_is_a_miss_of_its_own(self, monkeypatch):
        def maps(patches, phrases):
            found = coverage(scenes().boxes.nan_to_num(0), 16, 16).unflatten(-1, (16, 16))
            found[0, 0, 3, 3] = torch.nan
            return found

        monkeypatch.setattr(heat, "heat_maps", maps)
        metrics = judged(scenes(), **NO_BOXES)
        n = len(true_boxes())
        assert metrics["pointing"] == metrics["acc50"] == pytest.approx((n - 1) / n)

    def test_a_phrase_without_a_true_box_is_left_out(self):
        boxes = scenes().boxes.clone()
        boxes[0, 0] = torch.nan
        metrics = judged(dataclasses.replace(scenes(), boxes=boxes), **NO_BOXES)
        whole = judged(scenes(), **NO_BOXES)
        assert metrics.pop("left_out") == 1
        assert set(metrics) == set(whole)
        n = len(true_boxes())
        for name in GROUNDING - {"miou"}:  # one fewer, which was a hit or a miss
            assert round(metrics[name] * (n - 1), 6) in {round(whole[name] * n, 6), round(whole[name] * n - 1, 6)}

    def test_the_rule_of_heat_is_the_one_that_grounds_most(self, monkeypatch):
        boxes = lambda maps, threshold, patch: true_boxes() * (1 if threshold in (0.45, 0.6) else 9)  # noqa: E731
        monkeypatch.setattr(heat, "heat_boxes", boxes)
        assert evaluation.choose_heat(built()[0], scenes()) == (0.45, False)  # the first of the best
        plain = evaluation.encode(built()[0], scenes()).heat()
        better = lambda maps, threshold, patch: true_boxes() * (9 if torch.equal(maps, plain) else 1)  # noqa: E731
        monkeypatch.setattr(heat, "heat_boxes", better)
        assert evaluation.choose_heat(built()[0], scenes()) == (evaluation.THRESHOLDS[0], True)
