"""Detection: average precision against a plain one, and class prompts against proposals."""

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from loupe_ext import data
from loupe_ext.data import Pairs, Vocabulary
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.image import ImageEncoder
from loupe_ext.model.pretrained import BertEncoder
from loupe_ext.model.regions import box_iou
from loupe_ext.model.text import TextEncoder
from loupe_ext.train import Config, build
from loupe_ext.zeroshot import evaluate as evaluation
from loupe_ext.zeroshot.detection import average_precision, encode_prompts, score_detections
from loupe_ext.zeroshot.grounding import choose_proposals

pytest.importorskip("faster_coco_eval")

NOTHING = (torch.nan,) * 4


def plain_average_precision(boxes, scores, objects, classes, limit, overlap):
    """Sentence by sentence: the mean over classes of the mean over 101 recalls of the best precision from there on."""
    per_class = []
    kept = []  # of each image, its `limit` best detections
    for image_scores in scores:
        detections = [(s.item(), c, m) for c, row in enumerate(image_scores) for m, s in enumerate(row)]
        kept.append(sorted(detections, key=lambda d: -d[0])[:limit])
    for c in range(scores.shape[1]):
        total = (classes == c).sum().item()
        if not total:
            continue
        right = []  # (score, whether right)
        for i, detections in enumerate(kept):
            free = (classes[i] == c).nonzero()[:, 0].tolist()
            for score, kind, m in detections:
                if kind == c:
                    iou = {k: box_iou(boxes[i, m], objects[i, k]).item() for k in free}
                    best = max(free, key=iou.__getitem__, default=None)
                    hit = best is not None and iou[best] >= overlap
                    if hit:
                        free.remove(best)
                    right.append((score, hit))
        right.sort(key=lambda r: -r[0])
        hits = [sum(hit for _, hit in right[: j + 1]) for j in range(len(right))]
        curve = [(h / total, h / (j + 1)) for j, h in enumerate(hits)]  # recall, precision
        recalls = [r / 100 for r in range(101)]
        per_class.append(sum(max((p for r, p in curve if r >= at - 1e-12), default=0) for at in recalls) / 101)
    return sum(per_class) / len(per_class)


def random_problem(seed, n=6, M=7, C=4, K=5):
    """Proposals around objects of their own and of other classes, and elsewhere; objects may overlap."""
    rng = torch.Generator().manual_seed(seed)
    low = 40 * torch.rand(n, K, 2, generator=rng)
    objects = torch.cat([low, low + 6 + 20 * torch.rand(n, K, 2, generator=rng)], -1)
    classes = torch.randint(-1, C - 1, (n, K), generator=rng)  # none of the last class
    near = torch.randint(K, (n, M), generator=rng)
    boxes = objects.gather(1, near[..., None].expand(-1, -1, 4)) + 4 * torch.randn(n, M, 4, generator=rng)
    boxes[..., 2:] = torch.maximum(boxes[..., 2:], boxes[..., :2] + 1)
    scores = torch.randn(n, C, M, generator=rng)
    of = classes.gather(1, near)
    scores = scores + 2 * (torch.arange(C)[:, None] == of[:, None])
    return boxes, scores, objects.masked_fill(classes[..., None] < 0, torch.nan), classes


class TestAveragePrecision:
    a, b = (0.0, 0, 10, 10), (20.0, 20, 30, 30)
    two_fifths, half = (0.0, 0, 10, 4), (0.0, 0, 10, 5)  # their IoU with a
    elsewhere = (50.0, 50, 60, 60)

    def precision(self, boxes, scores, objects, classes, **options):
        """Of one class; a list an image."""
        return average_precision(
            torch.tensor(boxes), torch.tensor(scores)[:, None], torch.tensor(objects), torch.tensor(classes), **options
        )

    def test_by_hand(self):
        """Two images, three objects. By score: right, wrong (a second time the same object), right; one is missed."""
        got = self.precision(
            [[self.a, self.a, self.elsewhere], [self.b, self.elsewhere, self.elsewhere]],
            [[0.9, 0.8, 0.1], [0.7, 0.2, 0.1]],
            [[self.a, self.b], [self.b, NOTHING]],
            [[0, 0], [0, -1]],
        )
        # Recall 1/3 at precision 1, 2/3 at 2/3, and never more: 34 recalls (0 to .33), 33 (.34 to .66) and 34.
        assert got["ap50"] == pytest.approx((34 * 1 + 33 * 2 / 3) / 101)
        assert got["ap30"] == got["ap50"]

    def test_the_overlap_that_is_enough(self):
        got = self.precision([[self.two_fifths]], [[0.0]], [[self.a]], [[0]])
        assert got == {"ap30": 1, "ap50": 0}
        half = self.precision([[self.half]], [[0.0]], [[self.a]], [[0]])
        assert half == {"ap30": 1, "ap50": 1}

    def test_is_the_mean_over_the_classes_that_have_objects(self):
        boxes, objects = torch.tensor([[self.a, self.b]]), torch.tensor([[self.a, self.b]])
        scores = torch.tensor(
            [[[2.0, 1], [2, 1], [9, 9]]]
        )  # the second class likes the wrong box more; none of a third
        got = average_precision(boxes, scores, objects, torch.tensor([[0, 1]]))
        assert got["ap50"] == pytest.approx((1 + 1 / 2) / 2)

    @pytest.mark.parametrize("limit", [100, 9, 1])
    @pytest.mark.parametrize("seed", range(4))
    def test_agrees_with_the_plain_one(self, seed, limit):
        problem = random_problem(seed)
        got = average_precision(*problem, limit)
        for name, overlap in (("ap30", 0.3), ("ap50", 0.5)):
            assert got[name] == pytest.approx(plain_average_precision(*problem, limit, overlap), abs=1e-9)
        assert got["ap50"] <= got["ap30"] <= 1

    @pytest.mark.parametrize("sizes", [{"n": 1}, {"M": 1}, {"C": 2}, {"n": 1, "M": 1, "C": 2, "K": 9}])
    def test_of_one(self, sizes):
        problem = random_problem(0, **sizes)
        want = plain_average_precision(*problem, 100, 0.3)
        assert average_precision(*problem)["ap30"] == pytest.approx(want, abs=1e-9)

    def test_among_equal_scores_the_first_image_and_proposal_come_first(self):
        boxes, scores, objects, classes = random_problem(1)
        problem = boxes, scores.round(), objects, classes
        assert average_precision(*problem, 9)["ap30"] == pytest.approx(plain_average_precision(*problem, 9, 0.3))

    def test_the_truth_scores_one_and_padding_is_not_read(self):
        _, _, objects, classes = random_problem(0, K=7)
        scores = torch.where(torch.arange(4)[:, None] == classes[:, None], 1.0, 0.0)
        assert average_precision(objects, scores, objects, classes) == {"ap30": 1, "ap50": 1}
        wild = torch.where(classes[..., None] < 0, 1e9, objects)
        assert average_precision(objects, scores, wild, classes) == {"ap30": 1, "ap50": 1}

    def test_what_is_not_finite_detects_nothing(self):
        boxes, scores, objects, classes = random_problem(0)
        want = average_precision(boxes[:, :-1], scores[:, :, :-1], objects, classes)
        for rubbish in (torch.nan, torch.inf, -torch.inf):
            no_box, no_score = boxes.clone(), scores.clone()
            no_box[:, -1, 2], no_score[:, :, -1] = rubbish, rubbish
            assert average_precision(no_box, scores, objects, classes) == want
            assert average_precision(boxes, no_score, objects, classes) == want
        assert set(average_precision(boxes * torch.nan, scores, objects, classes).values()) == {0}

    def test_boxes_inside_out_are_empty(self):
        got = self.precision([[[10.0, 10, 0, 0], self.a]], [[2.0, 1.0]], [[self.a]], [[0]])
        assert got["ap50"] == pytest.approx(1 / 2)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_dtypes(self, dtype):
        boxes, scores, objects, classes = random_problem(2)
        boxes, scores = boxes.round().to(dtype), scores.to(dtype)
        want = plain_average_precision(boxes.float(), scores.float(), objects, classes, 100, 0.3)
        assert average_precision(boxes, scores, objects, classes)["ap30"] == pytest.approx(want, abs=1e-9)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"boxes": torch.zeros(2, 4)}, r"boxes: expected shape \[n, M, 4\], .*got \(2, 4\)"),
            ({"scores": torch.zeros(2, 3, 9)}, r"scores: expected the M of boxes \(5\) .*got \(2, 3, 9\)"),
            ({"scores": torch.zeros(3, 5)}, r"scores: expected shape \[n, C, M\], .*got \(3, 5\)"),
            ({"objects": torch.zeros(2, 4)}, r"objects: expected shape \(2, 4, 4\), got \(2, 4\)"),
            ({"classes": torch.zeros(2, 4)}, "classes: expected int64"),
            ({"classes": torch.full((2, 4), 3)}, "classes: expected -1 to 2, got 3 to 3"),
            ({"classes": torch.full((2, 4), -1)}, "classes: expected an object or more, got none"),
            ({"objects": torch.full((2, 4, 4), torch.nan)}, "objects: expected finite boxes"),
            ({"limit": 0}, "limit: expected 1 to 2147483647, got 0"),
        ],
    )
    def test_bad_input(self, changes, message):
        good = {"boxes": torch.zeros(2, 5, 4), "scores": torch.zeros(2, 3, 5)}
        good |= {"objects": torch.zeros(2, 4, 4), "classes": torch.zeros(2, 4, dtype=torch.int64)}
        with pytest.raises(ValueError, match=message):
            average_precision(**{**good, **changes})

    def test_says_nothing(self, capfd):
        average_precision(*random_problem(0))
        assert capfd.readouterr() == ("", "")


class TestPrompts:
    scenes = data.load("scenes", "test", 12)

    def model(self):
        return build(Config().but(width=16, dim=16, batch_size=8, train_size=8), self.scenes.pairs.vocabulary)[0].eval()

    def test_a_prompt_is_what_the_phrase_is_in_a_caption(self):
        model, pairs = self.model(), self.scenes.pairs
        text = model.encode_text(pairs.tokens, pairs.spans, pairs.phrase_lengths)
        phrases = [phrase for i in range(len(pairs)) for phrase in pairs.phrases(i)]
        assert len({len(phrase.split()) for phrase in phrases}) > 1  # padded
        got = encode_prompts(model, tuple(phrases), pairs.vocabulary)
        torch.testing.assert_close(got, text.phrases[text.phrase_mask].detach())

    @pytest.mark.parametrize("kind", ["words", "word pieces", "BERT"])
    def test_a_prompt_is_what_the_same_text_is_as_a_caption(self, kind):
        texts = ["A Red Dog", "a big cat", "A Caf\u00e9"]
        vocabulary = Vocabulary.of(texts)
        if kind != "words":
            pytest.importorskip("transformers", reason="the extra `paper` is not installed")
            vocabulary = Vocabulary(["[UNK]", "[CLS]", "[SEP]", "a", "red", "dog", "big", "c", "##at", "cafe"])
        with torch.random.fork_rng():
            torch.manual_seed(0)
            text = BertEncoder(len(vocabulary), 64, 1) if kind == "BERT" else TextEncoder(len(vocabulary), 16)
            encoder = DualEncoder(ImageEncoder(16), text, 16).eval().requires_grad_(False)
        pairs = Pairs.from_captions(torch.zeros(3, 3, 8, 8, dtype=torch.uint8), texts, vocabulary)
        want = encoder.encode_text(pairs.tokens, pairs.spans, pairs.phrase_lengths).phrases[:, 0]
        got = encode_prompts(encoder, texts, vocabulary)
        torch.testing.assert_close(got, want)
        assert (got @ got.T).fill_diagonal_(0).max() < 0.999  # three phrases, none unknown
        torch.testing.assert_close(
            encode_prompts(encoder, ["a RED dog", "A big cat", "a Cafe\u0301"], vocabulary), want
        )

    @pytest.mark.parametrize(
        ("prompts", "error", "message"),
        [
            ((), ValueError, "prompts: expected a prompt or more, got none"),
            (("a red star", ""), ValueError, r"prompts\[1\]: expected a word or more, got ''"),
            ("a red star", TypeError, "prompts: expected a sequence of str"),
        ],
    )
    def test_prompts_that_are_none(self, prompts, error, message):
        with pytest.raises(error, match=message):
            encode_prompts(self.model(), prompts, self.scenes.pairs.vocabulary)

    def test_an_unknown_word(self):
        with pytest.raises(ValueError, match=r"prompts\[0\]: expected words of the vocabulary, got 'dog'"):
            encode_prompts(self.model(), ("a dog",), self.scenes.pairs.vocabulary)

    def test_scores_are_of_cosine_and_confidence(self):
        rng = torch.Generator().manual_seed(0)
        features, prompts = (normalize(torch.randn(*n, 8, generator=rng), dim=-1) for n in ((2, 5), (3,)))
        confidence = torch.randn(2, 5, generator=rng)
        got = score_detections(features, confidence, prompts, 20.0)
        assert got.shape == (2, 3, 5)
        for i, m in torch.cartesian_prod(torch.arange(2), torch.arange(5)).tolist():
            odds = [(20 * features[i, m] @ prompt).exp() for prompt in prompts]
            for c in range(3):
                want = (odds[c] / sum(odds) * confidence[i, m].sigmoid()).log()
                assert got[i, c, m].item() == pytest.approx(want.item(), abs=1e-4)
        picked = choose_proposals(features, confidence, prompts.expand(2, -1, -1))
        for i, c in torch.cartesian_prod(torch.arange(2), torch.arange(3)).tolist():
            scores = [5 * features[i, m] @ prompts[c] + confidence[i, m].sigmoid().log() for m in range(5)]
            assert picked[i, c] == torch.stack(scores).argmax()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_scores_of_half_types_are_those_of_float32(self, dtype):
        rng = torch.Generator().manual_seed(0)
        features, prompts = (normalize(torch.randn(*n, 8, generator=rng), dim=-1).to(dtype) for n in ((2, 5), (3,)))
        confidence = torch.randn(2, 5, generator=rng).to(dtype)
        want = score_detections(features.float(), confidence.float(), prompts.float(), 60.0)
        assert torch.equal(score_detections(features, confidence, prompts, torch.tensor(60.0)), want)
        picked = choose_proposals(features.float(), confidence.float(), prompts.float().expand(2, -1, -1))
        assert torch.equal(choose_proposals(features, confidence, prompts.expand(2, -1, -1)), picked)

    def test_a_class_whose_prompt_is_not_finite_takes_nothing_from_the_others(self):
        rng = torch.Generator().manual_seed(0)
        features, prompts = (normalize(torch.randn(*n, 8, generator=rng), dim=-1) for n in ((2, 5), (3,)))
        want = score_detections(features, torch.zeros(2, 5), prompts[:2], 20.0)
        prompts[2] = torch.nan
        got = score_detections(features, torch.zeros(2, 5), prompts, 20.0)
        torch.testing.assert_close(got[:, :2], want)
        assert (got[:, 2] == -torch.inf).all()

    def seeing_the_truth(self, monkeypatch, truth):
        """A model whose proposals are the true objects, each with the feature of its class, in batches of 5."""
        model = self.model()
        prompts = encode_prompts(model, truth.prompts, truth.pairs.vocabulary)
        parts = [(truth.objects[i : i + 5], truth.classes[i : i + 5]) for i in range(0, 12, 5)]

        def proposals(image, count, overlap):
            boxes, classes = parts.pop(0)
            confidence = torch.where(classes < 0, -9.0, 9.0)
            return normalize(prompts[classes.clamp(min=0)], dim=-1), boxes.nan_to_num(0), confidence

        encode = evaluation.encode
        monkeypatch.setattr(evaluation, "encode", lambda model, scenes: encode(model, scenes, batch_size=5))
        monkeypatch.setattr("loupe_ext.model.features.ImageFeatures.proposals", proposals)
        return model

    def test_the_truth_is_detected(self, monkeypatch):
        model = self.seeing_the_truth(monkeypatch, self.scenes)
        metrics = evaluation.evaluate(model, self.scenes)
        assert metrics["ap30"] == metrics["ap50"] == 1

    def test_what_no_caption_names_counts(self, monkeypatch):
        """Take the objects that captions do not name from what the model sees: those are missed."""
        named = (self.scenes.objects[:, :, None] == self.scenes.boxes[:, None]).all(-1).any(2)
        assert 0 < named.sum() < (self.scenes.classes >= 0).sum()
        seen = dataclasses.replace(self.scenes, classes=self.scenes.classes.masked_fill(~named, -1))
        model = self.seeing_the_truth(monkeypatch, seen)
        assert evaluation.evaluate(model, self.scenes)["ap50"] < 0.95
