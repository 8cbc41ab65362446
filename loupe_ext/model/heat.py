"""Heat maps of phrases over patches, and the box that a heat map shows."""

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate, pad

from loupe_ext._checks import (
    check_choice,
    check_device,
    check_features,
    check_floating,
    check_ints,
    check_number,
    check_range,
    check_same,
    check_tensor,
)
from loupe_ext._dtypes import at_least_float32, promoted
from loupe_ext.extras import needs
from loupe_ext.model.image import PATCH

ON_HOST = ("cpu",)  # devices whose masks scipy labels; on any other the host would have to wait for them
LEVELS = ("peak", "deviation")
PIXELS = 2**22  # of the maps that are looked at together
SHADES = 12  # of red, green and blue, in histograms
ROUNDS = 3  # of finding what is hot


def heat_maps(patches: Tensor, phrases: Tensor) -> Tensor:
    """Cosine of every patch [B, h, w, d] with every phrase [B, P, d] of the same pair, [B, P, h, w].

    Floating; the maps of half types are float32.
    """
    check_features("patches", patches, "Bhwd")
    check_features("phrases", phrases, "BPd")
    check_same("phrases", phrases, "patches", patches, {"B": (0, 0), "d": (2, 3)})
    return torch.einsum("bhwd,bpd->bphw", *promoted(patches, phrases))


def check_maps(heat: object) -> Tensor:
    """Maps [n, h, w], maybe none, in float32 or float64."""
    check_tensor("heat", heat)
    assert isinstance(heat, Tensor)
    if heat.dim() != 3 or 0 in heat.shape[1:]:
        raise ValueError(f"heat: expected shape [n, h, w], got {tuple(heat.shape)}")
    check_floating("heat", heat)
    return at_least_float32(heat)


def peaks(heat: Tensor, patch: float = PATCH) -> Tensor:
    """x, y in pixels of the centre of the hottest patch, `patch` pixels wide, of each map [n, h, w]: [n, 2] float32.

    The first of the hottest. NaN for a map that is not finite: it has no peak, and counts as a miss.
    """
    maps = check_maps(heat).flatten(1)
    check_number("patch", patch, 0, above=True)
    at = maps.argmax(1)
    points = torch.stack([at % heat.shape[2] + 0.5, at // heat.shape[2] + 0.5], 1) * patch
    return points.masked_fill(~maps.isfinite().all(1, keepdim=True), torch.nan)


def heat_boxes(heat: Tensor, threshold: float, patch: float = PATCH, by: str = "peak") -> Tensor:
    """The box of each heat map [n, h, w] of patches, [n, 4] in pixels: the usual rule for class activation maps.

    The map is brought to the image's resolution (bilinear); of the pixels at least as hot as a level, those connected
    to the peak count, and the box lies around them. It reads nothing but the map, so any model can be judged by it.

    Args:
        by: "peak": the level is mean + threshold (peak - mean), threshold from 0 to below 1. "deviation": it is mean +
            threshold standard deviations, 0 or more, and the peak's at most. A large object raises the deviation and
            not the peak, so that one threshold suits more sizes.

    Returns:
        x0, y0, x1, y1, float32 or, of float64 maps, float64. NaN for a map that is not finite: it shows no box, and
        counts as a miss.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
        ImportError: the maps are on the CPU, and scipy is missing.
    """
    heat = check_maps(heat)
    check_choice("by", by, LEVELS)
    check_number("threshold", threshold)
    patch = check_number("patch", patch, 0, above=True)
    if not (0 <= threshold < 1 or (by == "deviation" and threshold >= 1)):
        most = "below 1" if by == "peak" else "any"
        raise ValueError(f"threshold: expected a number from 0 to {most}, got {threshold}")
    boxes = []
    size = [round(n * patch) for n in heat.shape[1:]]
    if not 0 < min(size) <= max(size) < 2**31:
        raise ValueError(f"patch: expected maps of 1 to 2^31 - 1 pixels a side, got {patch} for {tuple(heat.shape)}")
    for maps in heat.split(max(1, PIXELS // (size[0] * size[1]))):
        fine = interpolate(maps[:, None], size=size, mode="bilinear")[:, 0]
        mean, peak = fine.mean((1, 2), keepdim=True), fine.amax((1, 2), keepdim=True)
        unit = peak - mean if by == "peak" else (fine - mean).square().mean((1, 2), keepdim=True).sqrt()
        hot = fine >= torch.minimum(mean + threshold * unit, peak)  # the mean of a constant may round above it
        blob = connected(hot, fine.flatten(1).argmax(1))
        none = ~(blob.any((1, 2)) & maps.isfinite().all((1, 2)))
        boxes.append(extents(blob).to(heat.dtype).masked_fill(none[:, None], torch.nan))
    return torch.cat(boxes)


def sharpened(heat: Tensor, images: Tensor, weight: float = 2.0, sharpness: float = 2.0) -> Tensor:
    """Heat maps [n, h, w] that end where the colours of what is hot end: [n, 2h, 2w]; images [n, 3, H, W].

    Heat spreads beyond a small object, as far as a patch sees, and covers no more than the telling part of a large one.
    Colours know better: in cells of half a patch, the logarithm of how much more frequent a cell's colour is among hot
    cells (weighted by the softmax of sharpness * map) than in the image. Both maps are brought to mean 0 and deviation
    1; the result is heat + weight * colour. What is hot is found by the heat, and twice more by that result.

    Returns:
        float32 or, of float64 heat, float64. A map is NaN where its heat or its image is not finite.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    heat = check_maps(heat)
    check_tensor("images", images)
    n, h, w = heat.shape
    if images.dim() != 4 or images.shape[:2] != (n, 3) or 0 in images.shape[2:]:
        raise ValueError(f"images: expected shape [{n}, 3, H, W], got {tuple(images.shape)}")
    if images.dtype != torch.uint8:
        check_floating("images", images)
    check_device("images", images, "heat", heat)
    check_number("weight", weight)
    check_number("sharpness", sharpness)
    pixels = images.float() if images.dtype == torch.uint8 else at_least_float32(images)
    cells = adaptive_avg_pool2d(pixels, (2 * h, 2 * w)).flatten(2)
    finite = heat.isfinite().all(2).all(1) & cells.isfinite().all(2).all(1)
    heat = _standard(interpolate(heat[:, None], size=(2 * h, 2 * w), mode="bilinear").flatten(1))
    colours = _colours(cells)
    image = _histogram(colours, torch.zeros_like(heat).softmax(1))
    found = heat
    for _ in range(ROUNDS):
        hot = _histogram(colours, (sharpness * _standard(found)).softmax(1))
        found = heat + weight * _standard((hot / image).log().gather(1, colours))
    return found.masked_fill(~finite[:, None], torch.nan).view(n, 2 * h, 2 * w)


def _colours(cells: Tensor) -> Tensor:
    """The colour of each cell [n, 3, cells], of SHADES^3 between its image's darkest value and its lightest."""
    low, high = cells.amin((1, 2), keepdim=True), cells.amax((1, 2), keepdim=True)
    shades = (SHADES * (cells - low) / (high - low)).nan_to_num(0, 0, 0).long().clamp(0, SHADES - 1)
    red, green, blue = shades.unbind(1)
    return (red * SHADES + green) * SHADES + blue


def _histogram(colours: Tensor, weights: Tensor) -> Tensor:
    """How frequent each colour and its neighbours are among cells of weights [n, cells] that sum to 1: [n, SHADES^3].

    Summed as integers, so that no order of adding matters, on a GPU or in another batch. No frequency is 0.
    """
    unit = 2**32
    counts = weights.new_zeros(len(colours), SHADES**3, dtype=torch.int64)
    counts.scatter_add_(1, colours, (weights.nan_to_num(0) * unit).long())
    near = pad(counts.view(-1, SHADES, SHADES, SHADES), (1,) * 6)
    for channel in (1, 2, 3):
        near = near.narrow(channel, 0, SHADES) + near.narrow(channel, 1, SHADES) + near.narrow(channel, 2, SHADES)
    return near.flatten(1).to(weights.dtype) / (27 * unit) + 1e-3


def _standard(x: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x / x.square().mean(1, keepdim=True).sqrt().clamp(min=1e-6)


def check_masks(name: str, masks: object) -> None:
    """Booleans [n, h, w], maybe none."""
    check_tensor(name, masks)
    assert isinstance(masks, Tensor)
    if masks.dim() != 3 or 0 in masks.shape[1:] or masks.dtype != torch.bool:
        raise ValueError(f"{name}: expected booleans of shape [n, h, w], got {masks.dtype} {tuple(masks.shape)}")


def connected(mask: Tensor, seeds: Tensor) -> Tensor:
    """The 4-connected parts of masks [n, h, w] that hold the pixel of each mask's seed, [n] row after row: [n, h, w].

    A mask that its seed is not in has no such part. `mask` is of booleans, `seeds` int64.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
        ImportError: the masks are on the CPU, and scipy is missing.
    """
    check_masks("mask", mask)
    check_same("seeds", check_ints("seeds", seeds, "n"), "mask", mask, {"n": (0, 0)})
    check_range("seeds", seeds, 0, mask.shape[1] * mask.shape[2] - 1)
    if mask.device.type in ON_HOST:
        with needs("scipy"):
            from scipy.ndimage import label
        neighbours = [[[0] * 3] * 3, [[0, 1, 0], [1, 1, 1], [0, 1, 0]], [[0] * 3] * 3]  # within a mask, not to the next
        parts = torch.from_numpy(label(mask.numpy(), neighbours)[0]).flatten(1)
    else:
        parts = _parts(mask)
    return mask & (parts == parts.gather(1, seeds[:, None])).view_as(mask)


def _parts(mask: Tensor) -> Tensor:
    """The first pixel of the part that each pixel of masks [n, h, w] is in, [n, h * w], without waiting for a device.

    A pixel points at its part's first pixel known so far, a root; to begin with, of its run in its row. In a round
    each root that touches smaller ones points at the least, twice over. If the first time a root neither does so nor is
    pointed at, all that it touches came to point below it, so the second time it does. Thus each round leaves at most
    half of a part's roots, or one. Chains of pointers are no longer than roots are many, and each step halves them.
    """
    h, w = mask.shape[1:]
    pixel = torch.arange(h * w, device=mask.device).view(h, w)
    inside = torch.zeros_like(mask)
    inside[:, :, 1:] = mask[:, :, 1:] & mask[:, :, :-1]
    root = pixel.expand_as(mask).masked_fill(inside, -1).cummax(2).values.flatten(1)
    joined = (mask[:, 1:] & mask[:, :-1]).flatten(1)
    roots = h * ((w + 1) // 2)
    while roots > 1:
        for _ in range(2):
            above = root[:, :-w]
            below = torch.where(joined, root[:, w:], above)
            ends = torch.minimum(above, below), torch.maximum(above, below)
            root = root.scatter_reduce(1, ends[1], ends[0], "amin")
            for _ in range((roots - 1).bit_length()):
                root = root.gather(1, root)
        roots //= 2
    return root


def extents(masks: Tensor) -> Tensor:
    """Boxes x0, y0, x1, y1 [n, 4] int64 around the true pixels of masks [n, h, w]; 0, 0, 0, 0 of an empty one."""
    check_masks("masks", masks)
    across, down = masks.any(1).byte(), masks.any(2).byte()
    (x0, x1), (y0, y1) = ((along.argmax(1), along.shape[1] - along.flip(1).argmax(1)) for along in (across, down))
    return torch.stack([x0, y0, x1, y1], 1) * masks.flatten(1).any(1, keepdim=True)
