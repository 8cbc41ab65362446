"""All zero-shot metrics of a trained model on scenes with known boxes."""

from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loupe_ext._checks import check_flag, check_kind
from loupe_ext._dtypes import promoted
from loupe_ext.data.grounded import Grounded
from loupe_ext.losses import late_interaction_similarity
from loupe_ext.model import heat
from loupe_ext.model.dual import check_tokens
from loupe_ext.model.features import ImageFeatures, TextFeatures, VisionLanguageModel, device_of
from loupe_ext.objective import Objective, ObjectiveConfig
from loupe_ext.zeroshot import detection, grounding
from loupe_ext.zeroshot.retrieval import recalls

THRESHOLDS = tuple(i / 20 for i in range(2, 17))


class HeatRule(NamedTuple):
    """How heat is read: the threshold of `heat_boxes`, and whether heat is that of phrases less the mean of all.

    Losses compare phrases, and leave open what all of them share. What a phrase has beyond that covers the whole of a
    thing after long training, when the phrase itself is like no more than its telling parts.
    """

    threshold: float = 0.3
    centred: bool = False


@dataclass(frozen=True)
class Encoded:
    """Scenes seen by a model, and each named object's true box: N phrases over all n images."""

    images: list[ImageFeatures]
    texts: list[TextFeatures]
    boxes: Tensor  # [N, 4], true

    @property
    def patch(self) -> float:
        return self.images[0].patch

    def heat(self, centred: bool = False, others: bool = False) -> Tensor:
        """[N, h, w]; `others`: of a phrase of the next scene's caption (of the last scene, the first one's) for each.

        `centred` as in `HeatRule`; of one phrase alone, it is the phrase's own.
        """
        masks = [text.phrase_mask for text in self.texts]
        phrases = [text.phrases for text in self.texts]
        named = torch.cat([x[mask] for x, mask in zip(phrases, masks, strict=True)])
        mean = named.mean(0) if centred and len(named) > 1 else torch.zeros_like(phrases[0][0, 0])
        if others:
            phrases = list(self._other_phrases().split([len(x) for x in phrases]))
        return torch.cat(
            [
                heat.heat_maps(image.patches, of - mean if centred else of)[mask]
                for image, of, mask in zip(self.images, phrases, masks, strict=True)
            ]
        )

    def _other_phrases(self) -> Tensor:
        phrases = torch.cat([text.phrases for text in self.texts]).roll(-1, 0)
        lengths = torch.cat([text.phrase_lengths for text in self.texts])
        at = torch.arange(phrases.shape[1], device=phrases.device) % lengths.roll(-1)[:, None]
        return phrases.gather(1, at[..., None].expand_as(phrases))


@torch.no_grad()
def encode(model: Any, scenes: Grounded, batch_size: int = 200, name: str = "scenes") -> Encoded:
    """Raises TypeError, ValueError: there are no scenes, or their words are not those that the model knows."""
    check_scenes(model, scenes, name)
    device = device_of(model)
    images, texts = [], []
    for start in range(0, len(scenes), batch_size):
        part = scenes.pairs.batch(slice(start, start + batch_size)).to(device)
        image = model.encode_image(part.images, **part.image_options)
        text = model.encode_text(part.tokens, part.spans, part.phrase_lengths, **part.text_options)
        images.append(image)
        texts.append(text)
    named = torch.arange(scenes.boxes.shape[1]) < scenes.pairs.phrase_lengths[:, None]
    return Encoded(images, texts, scenes.boxes[named])


def check_scenes(model: Any, scenes: Grounded, name: str) -> None:
    """Raise unless there are scenes, of the very words, in the same order, that the model was trained on."""
    check_kind("model", model, VisionLanguageModel, "one with encode_image and encode_text")
    check_kind(name, scenes, Grounded, "Grounded")
    if not len(scenes):
        raise ValueError(f"{name}: expected one or more, got none")
    given, known = scenes.pairs.vocabulary, getattr(model, "vocabulary", None)
    count = getattr(model, "vocabulary_size", None)
    if count is not None:
        check_tokens(scenes.pairs.tokens, count)
    if known is not None and given.words != known.words:
        pairs = zip_longest(known.words, given.words)
        i, (want, got) = next((i, pair) for i, pair in enumerate(pairs, start=1) if pair[0] != pair[1])
        raise ValueError(f"{name}: expected the vocabulary that the model knows, id {i} to be {want!r}, got {got!r}")
    if count is not None and len(given) > count:
        raise ValueError(f"{name}: expected a vocabulary of {count} ids at most, got {len(given)}")


@torch.no_grad()
def choose_heat(model: Any, validation: Grounded) -> HeatRule:
    """The rule by which heat grounds the most phrases at IoU 0.5. On validation scenes, never on test.

    Raises TypeError, ValueError: there are no scenes, or their words are not those that the model knows.
    """
    seen = encode(model, validation, name="validation")
    accuracy = {}
    for centred in (False, True):
        maps = seen.heat(centred)
        for threshold in THRESHOLDS:
            boxes = heat.heat_boxes(maps, threshold, seen.patch)
            accuracy[HeatRule(threshold, centred)] = grounding.grounding_accuracy(boxes, seen.boxes)["acc50"]
    return max(accuracy, key=accuracy.__getitem__)


@torch.no_grad()
def evaluate(
    model: Any, scenes: Grounded, objective: Objective | None = None, threshold: float = 0.3, centred: bool = False
) -> dict[str, float]:
    """Retrieval by the similarity the model was trained on; grounding by `heat_boxes`, and by its proposals if any.

    Its proposals also detect the classes' objects, those that no caption names among them. What is not finite is a
    miss, wherever it comes up: similarities, heat, proposals, scores. A phrase without a finite true box is left out of
    the metrics of boxes and points.

    The control of pointing: each phrase's true box is pointed at by a phrase of the next scene's caption. Boxes of many
    sizes near the middle are hit by chance too, and by a model that finds objects and understands no word.

    Args:
        model: a `VisionLanguageModel`; if it knows the words that it was trained on (`vocabulary`), they are compared.
        scenes: one or more, of the same words.
        objective: what the model was trained with. It says whether whole embeddings were contrasted (else retrieval is
            by late interaction), whether boxes were learned, and the temperature of regions and phrases. None: whole
            embeddings, and the model's proposals if it has a region head, by the defaults of `ObjectiveConfig`.
        threshold: of `heat_boxes`, 0 to below 1. centred: whether heat is that of phrases less their mean. Both are a
            `HeatRule`; `choose_heat` finds one.

    Returns:
        "i2t_r1", "i2t_r5", "t2i_r1", "t2i_r5"; "pointing" and, of two scenes or more, its control "pointing_shuffled";
        "acc50", "acc30" and "miou" of `heat_boxes`; and, of a model whose boxes learned, from pseudo boxes or as
        regions of the other losses, "recall" of its proposals and "proposal_acc50", "proposal_acc30", "proposal_miou",
        and, where the scenes have classes, "ap50" and "ap30" of detection, by `average_precision`.
        "left_out" is there too, if phrases were: how many.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value, or the scenes have other words than the model.
    """
    check_kind("objective", objective, (Objective, type(None)), "an Objective")
    centred = check_flag("centred", centred)
    seen = encode(model, scenes)
    config = ObjectiveConfig() if objective is None else objective.config
    metrics = recalls(*similarities(seen, config.cmc.weight > 0))
    maps = seen.heat(centred)
    metrics["pointing"] = grounding.pointing_accuracy(heat.peaks(maps, seen.patch), seen.boxes)
    if len(scenes) > 1:
        control = heat.peaks(seen.heat(centred, others=True), seen.patch)
        metrics["pointing_shuffled"] = grounding.pointing_accuracy(control, seen.boxes)
    metrics |= grounding.grounding_accuracy(heat.heat_boxes(maps, threshold, seen.patch), seen.boxes)
    if config.learns_boxes and seen.images[0].boxes is not None:
        scale = config.logit_scale if objective is None else objective.local_logit_scale()
        known = scenes.prompts
        prompts = detection.encode_prompts(model, known, scenes.pairs.vocabulary) if known else None
        proposals, chosen, found, scores = [], [], [], []
        for image, text in zip(seen.images, seen.texts, strict=True):
            features, boxes, confidence = image.proposals(config.proposals, config.overlap)
            mask = text.phrase_mask
            found.append(boxes)
            if prompts is not None:
                scores.append(detection.score_detections(features, confidence, prompts, scale))
            picked = grounding.choose_proposals(features, confidence, text.phrases)
            proposals.append(boxes[:, None].expand(*mask.shape, -1, -1)[mask])
            chosen.append(grounding.chosen_boxes(boxes, picked)[mask])
        metrics["recall"] = grounding.proposal_recall(torch.cat(proposals), seen.boxes)
        by_proposals = grounding.grounding_accuracy(torch.cat(chosen), seen.boxes)
        metrics |= {f"proposal_{name}": value for name, value in by_proposals.items() if name != "left_out"}
        if scores:
            metrics |= detection.average_precision(torch.cat(found), torch.cat(scores), scenes.objects, scenes.classes)
    return metrics


def similarities(seen: Encoded, pooled: bool = True) -> tuple[Tensor, Tensor]:
    """Image-to-text and text-to-image similarities of all images with all texts, [n, n] twice."""
    if pooled:
        images, texts = promoted(torch.cat([i.pooled for i in seen.images]), torch.cat([t.pooled for t in seen.texts]))
        found = images @ texts.T
        return found, found
    rows = [
        [
            late_interaction_similarity(i.patches.flatten(1, 2), t.tokens, i.lengths, t.lengths, dtype=torch.float32)
            for t in seen.texts
        ]
        for i in seen.images
    ]
    by_patch, by_word = (torch.cat([torch.cat([part[way] for part in row], 1) for row in rows]) for way in (0, 1))
    return by_patch, by_word
