"""How good predicted boxes and points are, and which proposal a phrase picks."""

from torch import Tensor
from torch.nn.functional import logsigmoid

from loupe_ext.model.regions import box_iou


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
    """The proposal that each phrase picks, [B, P]: the best by sharpness * cosine + log sigmoid(confidence).

    Features [B, M, d] and confidence logits [B, M] of the proposals, phrases [B, P, d]; all features of length one.
    """
    return (sharpness * phrases @ features.mT + logsigmoid(confidence)[:, None]).argmax(-1)
