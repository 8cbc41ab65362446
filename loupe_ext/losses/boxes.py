"""Learning boxes from pseudo boxes."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from loupe_ext._checks import check_features, check_number, check_same, length_mask
from loupe_ext._distributed import Group, check_group, place
from loupe_ext._dtypes import widened


def box_loss(
    boxes: Tensor,
    confidence: Tensor,
    targets: Tensor,
    centres: Tensor,
    target_lengths: Tensor | None = None,
    weight: float = 2.0,
    *,
    group: Group = None,
) -> Tensor:
    """Teach each patch's box and confidence from an image's pseudo boxes. An addition: the paper leaves it open.

    A patch whose centre lies in the inner half of a pseudo box (half its width and height) regresses to that box and
    learns confidence 1; a patch outside every pseudo box learns confidence 0; those between are ignored. Of several
    inner halves the smallest box counts. The regression's loss is 1 - GIoU (Rezatofighi et al., "Generalized
    Intersection over Union", CVPR 2019), the same in any unit.

    Args:
        boxes: [B, n, 4], x0, y0, x1, y1, what each patch proposes; confidence: [B, n] logits. Floating dtypes, which
            promote, here and below.
        targets: [B, P, 4] pseudo boxes; target_lengths: [B] int32 or int64; None: all P.
        centres: [n, 2], x and y of the patches.
        weight: of the regression.
        group: of processes that hold some of the images each, as many or not: the mean of their losses, and of
            gradients, is that of all images in one process. None: this process holds all.

    Returns:
        A scalar in the promoted dtype of `boxes` and `confidence`, to which gradients flow. Half types are computed in
        float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    check_features("boxes", boxes, "Bn4")
    check_features("confidence", confidence, "Bn")
    check_features("targets", targets, "BP4")
    check_features("centres", centres, "n2")
    check_same("confidence", confidence, "boxes", boxes, {"B": (0, 0), "n": (1, 1)})
    check_same("targets", targets, "boxes", boxes, {"B": (0, 0)})
    check_same("centres", centres, "boxes", boxes, {"n": (0, 1)})
    weight = check_number("weight", weight, 0)
    check_group(group)
    present = length_mask("target_lengths", target_lengths, targets, 1)[:, None]
    dtype = torch.promote_types(boxes.dtype, confidence.dtype)
    _, (boxes, confidence, targets, centres) = widened(boxes, confidence, targets, centres)
    low, high = targets[:, None, :, :2], targets[:, None, :, 2:]
    away = ((centres[:, None] - (low + high) / 2) / (high - low).clamp(min=1e-6)).abs().amax(-1)  # [B, n, P]
    inner = (away < 0.25) & present
    outside = ~((away < 0.5) & present).any(-1)
    size = (high - low).prod(-1).masked_fill(~inner, torch.inf)
    mine = targets.gather(1, size.argmin(-1)[..., None].expand(-1, -1, 4))
    inner = inner.any(-1)
    regression = 1 - _giou(boxes, mine)
    chosen = inner | outside
    objectness = binary_cross_entropy_with_logits(confidence, inner.to(confidence.dtype), reduction="none")
    counts = torch.stack([inner.sum(), chosen.sum()])
    if group is not None:
        dist.all_reduce(counts, group=group)
    regressed, judged = torch.stack([(regression * inner).sum(), (objectness * chosen).sum()]) / counts.clamp(min=1)
    return ((weight * regressed + judged) * place(group)[1]).to(dtype)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes [..., 4]: IoU less the share of the box around both that is in neither; -1 to 1."""

    def area(low: Tensor, high: Tensor) -> Tensor:
        return (high - low).clamp(min=0).prod(-1)

    (a_low, a_high), (b_low, b_high) = a.split(2, -1), b.split(2, -1)
    both = area(torch.maximum(a_low, b_low), torch.minimum(a_high, b_high))
    either = area(a_low, a_high) + area(b_low, b_high) - both
    around = area(torch.minimum(a_low, b_low), torch.maximum(a_high, b_high))
    share, outside = both / either.masked_fill(either == 0, 1), around - either
    return share - outside / around.masked_fill(around == 0, 1)
