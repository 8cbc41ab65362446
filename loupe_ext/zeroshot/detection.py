"""Zero-shot object detection: class names in prompts against the proposed regions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from loupe_ext._checks import (
    check_features,
    check_floating,
    check_int,
    check_kind,
    check_names,
    check_number,
    check_same,
    check_scale,
    check_tensor,
)
from loupe_ext._dtypes import promoted
from loupe_ext.data.grounded import check_objects
from loupe_ext.data.pairs import Vocabulary, encode_texts
from loupe_ext.extras import needs
from loupe_ext.model.features import VisionLanguageModel, device_of

OVERLAPS = {"ap30": 0.3, "ap50": 0.5}


@torch.no_grad()
def encode_prompts(model: Any, prompts: Sequence[str], vocabulary: Vocabulary) -> Tensor:
    """The features of classes, [C, d] of length one: each prompt is read as a caption that is one noun phrase.

    Raises:
        TypeError, ValueError: there is no prompt, or one is no text, or has no word or one that the vocabulary lacks.
    """
    check_kind("model", model, VisionLanguageModel, "one with encode_image and encode_text")
    if not check_names("prompts", prompts):
        raise ValueError("prompts: expected a prompt or more, got none")
    tokens, spans, lengths = encode_texts("prompts", prompts, vocabulary, lambda text: [])
    device = device_of(model)
    return model.encode_text(tokens.to(device), spans.to(device), lengths.to(device)).phrases[:, 0]


def score_detections(features: Tensor, confidence: Tensor, prompts: Tensor, scale: Tensor | float) -> Tensor:
    """The log probability of each class in each proposal, [n, C, M]: of an object at all, times that of the class.

    log sigmoid(confidence) + log softmax over the classes of scale * cosine. The softmax keeps the detections of
    classes that resemble a proposal's own from outbidding true objects elsewhere.

    Args:
        features: [n, M, d] of the proposals, prompts: [C, d] of the classes; floating, all of length one.
        confidence: [n, M] logits of the proposals.
        scale: the inverse temperature with which regions and phrases were contrasted, a number or a tensor of one.

    Returns:
        float32, or float64 if an argument is. A class whose cosine with a proposal is not finite is not found in it
        (-inf), and takes nothing from the other classes; NaN where that is so of all classes or of the confidence.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    check_features("features", features, "nMd")
    check_features("confidence", confidence, "nM")
    check_features("prompts", prompts, "Cd")
    check_same("confidence", confidence, "features", features, {"n": (0, 0), "M": (1, 1)})
    check_same("prompts", prompts, "features", features, {"d": (1, 2)})
    scale = check_scale(scale, features.device)
    if isinstance(scale, Tensor):
        scale = check_number("scale", scale.item(), 0, above=True)
    features, confidence, prompts = promoted(features, confidence, prompts)
    logits = scale * prompts @ features.mT
    logits = logits.masked_fill(~logits.isfinite(), -torch.inf)
    return logits.log_softmax(-2) + logsigmoid(confidence)[:, None]


def average_precision(
    boxes: Tensor, scores: Tensor, objects: Tensor, classes: Tensor, limit: int = 100
) -> dict[str, float]:
    """Mean over the classes of the average precision, as COCO has it, at an IoU of 0.30 and of 0.50.

    Every proposal is a detection of every class, as sure as its score. By falling score, over all images, a detection
    is right if it meets an object of its class that none before it took; precision, made not to rise with recall, is
    averaged over the recalls 0, 0.01, ..., 1. Classes without an object are left out (COCO's protocol, as computed by
    faster-coco-eval).

    Args:
        boxes: [n, M, 4] floating, x0, y0, x1, y1 of the M proposals of n images.
        scores: [n, C, M] floating, of each proposal as an object of each class. A detection with a score or a box
            that is not finite is none.
        objects, classes: [n, K, 4] and [n, K] int64, the true objects, as in `Grounded`.
        limit: the detections that count of an image, the best of all classes; COCO's 100.

    Returns:
        "ap30" and "ap50" in 0..1.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value, or there is no object at all.
        ImportError: faster-coco-eval is missing.
    """
    n, M = check_features("boxes", boxes, "nM4").shape[:2]
    check_features("scores", scores, "nCM")
    check_same("scores", scores, "boxes", boxes, {"n": (0, 0), "M": (2, 1)})
    limit = check_int("limit", limit, 1, 2**31 - 1)
    for name, value in (("objects", objects), ("classes", classes)):
        check_tensor(name, value)
        check_same(name, value, "boxes", boxes, {})
    check_floating("objects", objects)
    check_objects(objects, classes, n, scores.shape[1])
    image, k = (classes >= 0).nonzero(as_tuple=True)
    if not len(image):
        raise ValueError("classes: expected an object or more, got none")
    rows = zip(image.tolist(), classes[image, k].tolist(), _corner_and_size(objects[image, k]), strict=True)
    truth = [
        {"id": i, "image_id": at, "category_id": kind, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for i, (at, kind, box) in enumerate(rows, start=1)
    ]
    scores = torch.where(boxes.isfinite().all(-1)[:, None] & scores.isfinite(), scores, -torch.inf)
    best, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    image, rank = (best[:, :limit] > -torch.inf).nonzero(as_tuple=True)
    kind, m = order[image, rank] // M, order[image, rank] % M
    cells = (image.tolist(), kind.tolist(), _corner_and_size(boxes[image, m]), best[image, rank].tolist())
    names = ("image_id", "category_id", "bbox", "score")
    found = [dict(zip(names, cell, strict=True)) for cell in zip(*cells, strict=True)]
    if not found:  # which faster-coco-eval can't read before 1.8
        return dict.fromkeys(OVERLAPS, 0.0)
    precision = _coco_precision(truth, found, n, scores.shape[1], limit)
    return {name: of[of > -1].mean().item() for name, of in zip(OVERLAPS, precision, strict=True)}


def _corner_and_size(boxes: Tensor) -> list[list[float]]:
    """x, y, width and height, as COCO writes boxes."""
    boxes = boxes.double()
    return torch.cat([boxes[:, :2], (boxes[:, 2:] - boxes[:, :2]).clamp(min=0)], -1).tolist()


def _coco_precision(
    truth: list[dict[str, object]], found: list[dict[str, object]], images: int, classes: int, limit: int
) -> Tensor:
    """[overlaps, recalls, classes], -1 of classes without an object."""
    with needs("faster-coco-eval"):
        from faster_coco_eval import COCO, COCOeval_faster
    ids = {name: [{"id": i} for i in range(count)] for name, count in (("images", images), ("categories", classes))}
    coco = COCO({**ids, "annotations": truth})
    judged = COCOeval_faster(coco, coco.loadRes(found), "bbox")
    judged.params.iouThrs = list(OVERLAPS.values())
    judged.params.areaRng, judged.params.areaRngLbl = [[0, math.inf]], ["all"]
    judged.params.maxDets = [limit]
    judged.evaluate()
    judged.accumulate()
    return torch.as_tensor(judged.eval["precision"])[:, :, :, 0, 0]
