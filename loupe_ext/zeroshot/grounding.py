"""Zero-shot visual grounding: from the similarities of patches and a phrase to a box, and how good boxes are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from loupe_ext.model.dual import ImageFeatures, TextFeatures
from loupe_ext.model.image import PATCH
from loupe_ext.model.regions import box_iou


def heat_maps(image: ImageFeatures, text: TextFeatures) -> Tensor:
    """Cosine of every patch with every phrase of the image's own caption, [B, P, h, w]."""
    return torch.einsum("bhwd,bpd->bphw", image.patches, text.phrases)


def flood(mask: Tensor, seeds: Tensor) -> Tensor:
    """The 4-connected parts of masks [n, h, w] that hold the seeds [n, h, w]."""
    part = seeds & mask
    while True:
        grown = part.clone()
        grown[:, 1:] |= part[:, :-1]
        grown[:, :-1] |= part[:, 1:]
        grown[:, :, 1:] |= part[:, :, :-1]
        grown[:, :, :-1] |= part[:, :, 1:]
        grown &= mask
        if torch.equal(grown, part):
            return part
        part = grown


def extents(masks: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 [n, 4], float32, around the true pixels of masks [n, h, w], none empty."""
    edges = []
    for along in (masks.any(1).byte(), masks.any(2).byte()):
        edges.append((along.argmax(1), along.shape[1] - along.flip(1).argmax(1)))
    (x0, x1), (y0, y1) = edges
    return torch.stack([x0, y0, x1, y1], 1).float()


def heat_boxes(heat: Tensor, threshold: float) -> Tensor:
    """The box of each heat map [n, h, w] of patches, [n, 4] in pixels: the usual rule for class activation maps.

    The map is brought to the image's resolution (bilinear); of the pixels hotter than mean + threshold (peak - mean),
    those connected to the peak; the box around them. It reads nothing but the map, so any model can be judged by it.
    """
    if heat.dim() != 3:
        raise ValueError(f"heat: expected shape [n, h, w], got {tuple(heat.shape)}")
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold: expected a number in 0..1 (below 1), got {threshold}")
    boxes = [heat.new_zeros(0, 4)]
    for maps in heat.split(256):
        fine = F.interpolate(maps[:, None].float(), scale_factor=PATCH, mode="bilinear")[:, 0]
        mean, peak = fine.mean((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
        hot = fine >= mean + threshold * (peak - mean)
        first = F.one_hot(fine.flatten(1).argmax(1), fine[0].numel()).view_as(fine).bool()
        boxes.append(extents(flood(hot | first, first)))
    return torch.cat(boxes)


def peaks(heat: Tensor) -> Tensor:
    """x, y in pixels of the centre of the hottest patch of each map [n, h, w]: [n, 2]."""
    at = heat.flatten(1).argmax(1)
    return torch.stack([at % heat.shape[2] + 0.5, at // heat.shape[2] + 0.5], 1) * PATCH


def pointing_accuracy(points: Tensor, boxes: Tensor) -> float:
    """Share of points [n, 2] that lie in their boxes [n, 4]."""
    return ((points >= boxes[:, :2]) & (points < boxes[:, 2:])).all(1).double().mean().item()


def grounding_accuracy(predicted: Tensor, true: Tensor) -> dict[str, float]:
    """Share of boxes [n, 4] whose IoU with the true box is at least 0.5 and 0.3, and the mean IoU."""
    iou = box_iou(predicted, true)
    return {
        "acc50": (iou >= 0.5).double().mean().item(),
        "acc30": (iou >= 0.3).double().mean().item(),
        "miou": iou.double().mean().item(),
    }


def proposal_recall(proposals: Tensor, true: Tensor, overlap: float = 0.5) -> float:
    """Share of true boxes [n, 4] that one of their proposals [n, M, 4] meets with an IoU of at least `overlap`."""
    return (box_iou(proposals, true[:, None]).amax(1) >= overlap).double().mean().item()


def choose_proposals(features: Tensor, confidence: Tensor, phrases: Tensor, sharpness: float = 5.0) -> Tensor:
    """The proposal that each phrase picks, [B, P]: the best of sharpness * cosine + log sigmoid(confidence).

    Features [B, M, d] and confidence logits [B, M] of the proposals, phrases [B, P, d]; all features of length one.
    """
    return (sharpness * phrases @ features.mT + F.logsigmoid(confidence)[:, None]).argmax(-1)
