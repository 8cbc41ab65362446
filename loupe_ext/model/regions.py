"""Regions: boxes proposed from the patches alone, and features of what lies in a box."""

import sys

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from loupe_ext._checks import (
    as_device,
    check_device,
    check_features,
    check_floating,
    check_int,
    check_number,
    check_same,
    check_tensor,
)
from loupe_ext._dtypes import at_least_float32, promoted
from loupe_ext.model.image import PATCH, ChannelNorm, Context


def centres(height: int, width: int, device: torch.device | None = None, patch: float = PATCH) -> Tensor:
    """x, y in pixels of the centres of a grid of patches, each `patch` pixels wide, [height * width, 2] float32."""
    height, width = check_int("height", height, 1, sys.maxsize), check_int("width", width, 1, sys.maxsize)
    device = None if device is None else as_device("device", device)
    check_number("patch", patch, 0, above=True)
    y = (torch.arange(height, device=device) + 0.5) * patch
    x = (torch.arange(width, device=device) + 0.5) * patch
    return torch.stack([x.repeat(height), y.repeat_interleave(width)], -1)


class RegionHead(nn.Module):
    """The region generation module (LOUPE, section 3.2): each patch proposes a box around it and a confidence.

    A box begins with edges `side` patches from the patch's centre. A `Context` of `blocks`, if any, sees further than
    the patches' features, which keep to their own object: to propose a box is to find where an object ends.
    """

    def __init__(self, width: int, side: float = 2.25, blocks: int = 0) -> None:
        super().__init__()
        width, self.side = check_int("width", width, 1, 2**31 - 1), check_number("side", side, 0, above=True)
        blocks = check_int("blocks", blocks, 0, 1000)
        self.context = nn.Sequential(Context(width, blocks), ChannelNorm(width)) if blocks else nn.Identity()
        self.project = nn.Linear(width, 5)
        nn.init.normal_(self.project.weight, std=0.01)
        nn.init.zeros_(self.project.bias)

    def forward(self, tokens: Tensor, patch: float = PATCH) -> tuple[Tensor, Tensor]:
        """[B, h, w, width] -> boxes [B, hw, 4] (x0, y0, x1, y1 in pixels) and confidence logits [B, hw].

        The boxes of half types are float32.
        """
        check_features("tokens", tokens, "Bhwd")
        if tokens.shape[3] != self.project.in_features:
            raise ValueError(f"tokens: expected width {self.project.in_features}, got {tuple(tokens.shape)}")
        patch = check_number("patch", patch, 0, above=True)
        seen = self.context(tokens.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out = self.project(seen).flatten(1, 2)
        sides = self.side * patch * at_least_float32(out[..., :4]).clamp(-3, 3).exp()
        at = centres(tokens.shape[1], tokens.shape[2], tokens.device, patch)
        return torch.cat([at - sides[..., :2], at + sides[..., 2:]], -1), out[..., 4]


def check_boxes(name: str, boxes: object) -> Tensor:
    """A floating tensor [..., 4]."""
    check_tensor(name, boxes)
    assert isinstance(boxes, Tensor)
    if boxes.dim() < 1 or boxes.shape[-1] != 4:
        raise ValueError(f"{name}: expected shape [..., 4], got {tuple(boxes.shape)}")
    check_floating(name, boxes)
    return boxes


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (x0, y0, x1, y1) [..., 4] whose leading dimensions broadcast.

    Floating, half types in float32. 0 for two empty boxes; NaN where a box holds NaN.

    Raises:
        TypeError, ValueError: a box tensor has the wrong type, shape or dtype, or the two do not broadcast.
    """
    a, b = at_least_float32(check_boxes("a", a)), at_least_float32(check_boxes("b", b))
    check_device("b", b, "a", a)
    try:
        torch.broadcast_shapes(a.shape, b.shape)
    except RuntimeError:
        raise ValueError(f"b: expected a shape that broadcasts with {tuple(a.shape)}, got {tuple(b.shape)}") from None
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    both = (high - low).clamp(min=0).prod(-1)
    either = (a[..., 2:] - a[..., :2]).clamp(min=0).prod(-1) + (b[..., 2:] - b[..., :2]).clamp(min=0).prod(-1) - both
    return both / either.masked_fill(either == 0, 1)


def propose(boxes: Tensor, confidence: Tensor, count: int, overlap: float = 0.5) -> Tensor:
    """Indices [B, count] of the most confident boxes, greedily, without those that overlap a better one.

    A box whose IoU with one taken before it is above `overlap` is taken only when no other is left, and one whose
    coordinates or confidence are not finite last of all.

    Args:
        boxes: [B, n, 4] floating, x0, y0, x1, y1; confidence: [B, n] floating.
        count: 1 to n. overlap: 0 to 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    check_features("boxes", boxes, "Bn4")
    check_features("confidence", confidence, "Bn")
    check_same("confidence", confidence, "boxes", boxes, {"B": (0, 0), "n": (1, 1)})
    count, n = check_int("count", count, 1, sys.maxsize), boxes.shape[1]
    overlap = check_number("overlap", overlap, 0, 1)
    if count > n:
        raise ValueError(f"count: expected at most the {n} boxes there are, got {count}")
    fit = boxes.isfinite().all(-1) & confidence.isfinite()
    order = confidence.masked_fill(~fit, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    # 0: most confident. Each better box that overlaps adds n, and a box that is not finite is behind all of those.
    rank = order.argsort(-1) + ~fit * (n * (n + 1))
    taken = []
    for _ in range(count):
        best = rank.argmin(-1)
        taken.append(best)
        near = box_iou(boxes, boxes.gather(1, best[:, None, None].expand(-1, 1, 4))) > overlap
        rank = rank + near * n
        rank = rank.scatter(1, best[:, None], 2**62)
    return torch.stack(taken, 1)


def coverage(boxes: Tensor, height: int, width: int, edge: float = 1.0, patch: float = PATCH) -> Tensor:
    """How far each patch of a grid lies in each box, [..., height * width] of boxes [..., 4]; `edge` pixels soft.

    In 0..1, float32 or, of float64 boxes, float64.
    """
    boxes = at_least_float32(check_boxes("boxes", boxes))
    check_number("edge", edge, 0, above=True)
    at = centres(height, width, boxes.device, patch)
    low, high = boxes[..., None, :2], boxes[..., None, 2:]
    return (torch.sigmoid((at - low) / edge) * torch.sigmoid((high - at) / edge)).prod(-1)


def box_features(patches: Tensor, boxes: Tensor, patch: float = PATCH) -> Tensor:
    """Mean of the patches [B, h, w, d] in each box [B, M, 4], of length one: [B, M, d], of the dtype of `patches`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    check_features("patches", patches, "Bhwd")
    check_features("boxes", boxes, "BM4")
    check_same("boxes", boxes, "patches", patches, {"B": (0, 0)})
    patch = check_number("patch", patch, 0, above=True)
    inside = coverage(boxes, patches.shape[1], patches.shape[2], patch / 4, patch)
    inside, wide = promoted(inside, patches.flatten(1, 2))
    return normalize(inside @ wide, dim=-1).to(patches.dtype)


def window_features(patches: Tensor, side: int, stride: int) -> Tensor:
    """Mean of the patches [B, h, w, d] in each window of side x side patches, of length one: [B, M, d], same dtype.

    Windows every `stride` patches cover an image densely: regions for losses that can afford many.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    h, w = check_features("patches", patches, "Bhwd").shape[1:3]
    side, stride = check_int("side", side, 0, sys.maxsize), check_int("stride", stride, 0, sys.maxsize)
    if not (1 <= side <= min(h, w) and stride >= 1):
        raise ValueError(f"side, stride: expected windows inside {h} x {w} patches, got {side}, {stride}")
    wide = at_least_float32(patches)
    rows, columns = (_windows(n, side, stride, wide) for n in (h, w))
    sums = torch.einsum("iy,jx,byxd->bijd", rows, columns, wide).flatten(1, 2)
    return normalize(sums, dim=-1).to(patches.dtype)


def _windows(n: int, side: int, stride: int, like: Tensor) -> Tensor:
    """[windows, n], 1 where a position lies in a window."""
    start = torch.arange(0, n - side + 1, stride, device=like.device)[:, None]
    at = torch.arange(n, device=like.device)
    return ((at >= start) & (at < start + side)).to(like.dtype)
