"""Regions: boxes proposed from the patches alone, and features of what lies in a box."""

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from loupe_ext.model.image import PATCH


def centres(height: int, width: int, device: torch.device | None = None, patch: float = PATCH) -> Tensor:
    """x, y in pixels of the centres of a grid of patches, each `patch` pixels wide, [height * width, 2]."""
    y = (torch.arange(height, device=device) + 0.5) * patch
    x = (torch.arange(width, device=device) + 0.5) * patch
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


class RegionHead(nn.Module):
    """The region generation module (LOUPE, section 3.2): each patch proposes a box around it and a confidence.

    A box begins with edges `side` patches from the patch's centre.
    """

    def __init__(self, width: int, side: float = 2.25) -> None:
        super().__init__()
        self.side = side
        self.project = nn.Linear(width, 5)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Tensor, patch: float = PATCH) -> tuple[Tensor, Tensor]:
        """[B, h, w, width] -> boxes [B, hw, 4] (x0, y0, x1, y1 in pixels) and confidence logits [B, hw]."""
        out = self.project(tokens).flatten(1, 2)
        sides = self.side * patch * out[..., :4].clamp(-3, 3).exp()
        at = centres(tokens.shape[1], tokens.shape[2], tokens.device, patch)
        return torch.cat([at - sides[..., :2], at + sides[..., 2:]], -1), out[..., 4]


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (x0, y0, x1, y1) whose leading dimensions broadcast; 0 for two empty boxes."""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) - both
    return both / either.clamp(min=1e-9)


def propose(boxes: Tensor, confidence: Tensor, count: int, overlap: float = 0.5) -> Tensor:
    """Indices [B, count] of the most confident boxes [B, n, 4], greedily, without those that overlap a better one.

    A box whose IoU with one taken before it is above `overlap` is taken only when no other is left.
    """
    if count > boxes.shape[1]:
        raise ValueError(f"count: expected at most the {boxes.shape[1]} boxes there are, got {count}")
    rank = confidence.argsort(dim=-1, descending=True, stable=True).argsort(-1).float()  # 0: most confident
    taken = []
    for _ in range(count):
        best = rank.argmin(-1)
        taken.append(best)
        near = box_iou(boxes, boxes.gather(1, best[:, None, None].expand(-1, 1, 4))) > overlap
        rank = rank + near * boxes.shape[1]
        rank = rank.scatter(1, best[:, None], torch.inf)
    return torch.stack(taken, 1)


def coverage(boxes: Tensor, height: int, width: int, edge: float = 1.0, patch: float = PATCH) -> Tensor:
    """How far each patch of a grid lies in each box, [..., height * width] of boxes [..., 4]; `edge` pixels soft."""
    at = centres(height, width, boxes.device, patch)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return (torch.sigmoid((at - low) / edge) * torch.sigmoid((high - at) / edge)).prod(-1)


def box_features(patches: Tensor, boxes: Tensor, patch: float = PATCH) -> Tensor:
    """Mean of the patches [B, h, w, d] in each box [B, M, 4], of length one: [B, M, d]."""
    return normalize(
        coverage(boxes, patches.shape[1], patches.shape[2], patch / 4, patch) @ patches.flatten(1, 2), dim=-1
    )


def window_features(patches: Tensor, side: int, stride: int) -> Tensor:
    """Mean of the patches [B, h, w, d] in each window of side x side patches, of length one: [B, M, d].

    Windows every `stride` patches cover an image densely: regions for losses that can afford many.
    """
    h, w = patches.shape[1:3]
    if not (1 <= side <= min(h, w) and stride >= 1):
        raise ValueError(f"side, stride: expected windows inside {h} x {w} patches, got {side}, {stride}")
    rows, columns = (_windows(n, side, stride).to(patches) for n in (h, w))
    return normalize(torch.einsum("iy,jx,byxd->bijd", rows, columns, patches).flatten(1, 2), dim=-1)


def _windows(n: int, side: int, stride: int) -> Tensor:
    """[windows, n], 1 where a position lies in a window."""
    start = torch.arange(0, n - side + 1, stride)[:, None]
    at = torch.arange(n)
    return (at >= start) & (at < start + side)
