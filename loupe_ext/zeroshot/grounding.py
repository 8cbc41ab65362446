"""How good predicted boxes and points are, and which proposal a phrase picks.

What is not finite is a miss, everywhere: a point, a predicted box or a proposal counts, and hits nothing. A phrase with
no finite true box has nothing to be found: it is left out, and those that remain are the whole of which shares are.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from loupe_ext._checks import (
    check_choice,
    check_features,
    check_floating,
    check_ints,
    check_number,
    check_range,
    check_same,
    check_tensor,
)
from loupe_ext._dtypes import promoted
from loupe_ext.model.regions import box_iou

SEVERAL = ("any", "merged")


def pointing_accuracy(points: Tensor, boxes: Tensor, several: str = "any") -> float:
    """Share of points [n, 2], floating, that lie in their true boxes [n, 4] or [n, G, 4].

    `boxes` and `several` are what `true` and `several` are in `grounding_accuracy`, and so is what raises.
    """
    check_features("points", points, "n2")
    boxes, there = _true_boxes("boxes", boxes, several, "points", points)
    points = points[:, None].double()
    return _share(((points >= boxes[..., :2]) & (points < boxes[..., 2:])).all(-1).any(1)[there])


def grounding_accuracy(predicted: Tensor, true: Tensor, several: str = "any") -> dict[str, float]:
    """Share of predicted boxes whose IoU with the true box is at least 0.5 and 0.3, and the mean IoU.

    Args:
        predicted: [n, 4] floating, x0, y0, x1, y1 of each phrase. One that is not finite is a miss, of IoU 0.
        true: [n, 4] floating, or [n, G, 4] where a phrase has up to G boxes, padded with NaN. A box that is not finite
            is none; a phrase without a box is left out.
        several: of a phrase's boxes, "any" may be met, and the best IoU counts; or they are "merged" into the one
            around them all (the any-box and the merged-boxes protocol of Flickr30k Entities).

    Returns:
        "acc50", "acc30" and "miou" in 0..1, and where phrases were left out, "left_out": how many.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value, or no phrase has a box.
    """
    check_features("predicted", predicted, "n4")
    boxes, there = _true_boxes("true", true, several, "predicted", predicted)
    iou = _overlaps(predicted[:, None], boxes).amax(1)[there]
    metrics = {"acc50": _share(iou >= 0.5), "acc30": _share(iou >= 0.3), "miou": _share(iou)}
    return metrics if there.all() else {**metrics, "left_out": int((~there).sum())}


def proposal_recall(proposals: Tensor, true: Tensor, overlap: float = 0.5, several: str = "any") -> float:
    """Share of true boxes that one of their proposals [n, M, 4] meets with an IoU of at least `overlap`, in 0..1.

    The other arguments are those of `grounding_accuracy`: of several true boxes of a phrase, any may be met.
    """
    check_features("proposals", proposals, "nM4")
    check_number("overlap", overlap, 0, 1)
    boxes, there = _true_boxes("true", true, several, "proposals", proposals)
    return _share((_overlaps(proposals[:, :, None], boxes[:, None]).amax((1, 2)) >= overlap)[there])


def _true_boxes(name: str, true: Tensor, several: str, other_name: str, other: Tensor) -> tuple[Tensor, Tensor]:
    """The boxes to meet [n, G, 4] float64, NaN where there is none, and which phrases have one, [n]."""
    check_tensor(name, true)
    boxes = true[:, None] if true.dim() == 2 else true
    if boxes.dim() != 3 or boxes.shape[-1] != 4 or 0 in boxes.shape:
        raise ValueError(f"{name}: expected shape [n, 4] or [n, G, 4], none of them 0, got {tuple(true.shape)}")
    check_floating(name, true)
    check_same(name, true, other_name, other, {"n": (0, 0)})
    check_choice("several", several, SEVERAL)
    finite = boxes.isfinite().all(-1, keepdim=True)
    there = finite.any(1)[:, 0]
    if not there.any():
        raise ValueError(f"{name}: expected a finite box or more, got none")
    boxes = boxes.double()
    if several == "merged":
        low = boxes[..., :2].masked_fill(~finite, torch.inf).amin(1, keepdim=True)
        high = boxes[..., 2:].masked_fill(~finite, -torch.inf).amax(1, keepdim=True)
        return torch.cat([low, high], -1), there
    return boxes.masked_fill(~finite, torch.nan), there


def _overlaps(predicted: Tensor, true: Tensor) -> Tensor:
    """IoU in float64, in which no float32 area overflows; 0 where a box is not finite."""
    return box_iou(predicted.double(), true).nan_to_num(0)


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()


def choose_proposals(features: Tensor, confidence: Tensor, phrases: Tensor, sharpness: float = 10.0) -> Tensor:
    """The proposal that each phrase picks: the best by sharpness * cosine + log sigmoid(confidence).

    Args:
        features: [B, M, d] and confidence: [B, M] logits, of the proposals; phrases: [B, P, d]. Floating; all features
            of length one.

    Returns:
        [B, P] int64, the first of the best; -1 where no proposal's score is finite. One that isn't is not picked.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    check_features("features", features, "BMd")
    check_features("confidence", confidence, "BM")
    check_features("phrases", phrases, "BPd")
    check_same("confidence", confidence, "features", features, {"B": (0, 0), "M": (1, 1)})
    check_same("phrases", phrases, "features", features, {"B": (0, 0), "d": (2, 2)})
    sharpness = check_number("sharpness", sharpness)
    features, confidence, phrases = promoted(features, confidence, phrases)
    scores = sharpness * phrases @ features.mT + logsigmoid(confidence)[:, None]
    best, at = scores.masked_fill(~scores.isfinite(), -torch.inf).max(-1)
    return at.masked_fill(best == -torch.inf, -1)


def chosen_boxes(boxes: Tensor, chosen: Tensor) -> Tensor:
    """The boxes [B, P, 4] that phrases picked, [B, P], of proposals [B, M, 4]; NaN where one picked none, -1."""
    check_features("boxes", boxes, "BM4")
    check_same("chosen", check_ints("chosen", chosen, "BP"), "boxes", boxes, {"B": (0, 0)})
    check_range("chosen", chosen, -1, boxes.shape[1] - 1)
    picked = boxes.gather(1, chosen.clamp(min=0)[..., None].expand(-1, -1, 4))
    return picked.masked_fill((chosen < 0)[..., None], torch.nan)
