"""Token-level semantic alignment: confidences of regions, supervised by what their patches gain together."""

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from loupe_ext._checks import check_device, check_features, check_flag, check_same, check_tensor, length_mask, unchecked
from loupe_ext._dtypes import widened


def tsa_labels(
    interactions: Tensor, sizes: Tensor, region_lengths: Tensor | None = None, literal: bool = False
) -> Tensor:
    r"""Soft labels of regions' confidences from their token-level interactions (LOUPE, section 3.2).

    The interactions of an image's regions are brought to 0..1, the least to 0 and the largest to 1. The paper takes
    :math:`I(R)` itself, as `literal` does. In the games of `region_interactions` the patches of an object replace each
    other, so :math:`I` is *least* on objects (docs/token-level.md shows it); the default takes :math:`-I(R)/|R|`.

    Args:
        interactions: [B, M], of each region; a floating dtype.
        sizes: [B, M] int64, how many patches each region has. A region of none gets label 0.
        region_lengths: [B] int32 or int64, in 1..M; None: all of them.
        literal: the paper's sign.

    Returns:
        [B, M] in 0..1, in the dtype of `interactions`, without gradient; 0 at the padding, and wherever an image's
        regions are all alike.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("interactions", interactions, "BM")
    if not isinstance(sizes, Tensor) or sizes.dtype != torch.int64:
        raise TypeError(f"sizes: expected an int64 tensor, got {getattr(sizes, 'dtype', type(sizes).__name__)}")
    check_tensor("sizes", sizes)
    literal = check_flag("literal", literal)
    if sizes.shape != interactions.shape:
        raise ValueError(f"sizes: expected shape {tuple(interactions.shape)}, got {tuple(sizes.shape)}")
    check_device("sizes", sizes, "interactions", interactions)
    there = length_mask("region_lengths", region_lengths, interactions, 1) & (sizes > 0)
    dtype, (gain,) = widened(interactions.detach())
    if not literal:
        gain = -gain / sizes.clamp(min=1)
    low = gain.masked_fill(~there, torch.inf).amin(1, keepdim=True)
    high = gain.masked_fill(~there, -torch.inf).amax(1, keepdim=True)
    unit = torch.where(high > low, high - low, torch.ones_like(high))
    return torch.where(there, (gain - low) / unit, torch.zeros_like(gain)).to(dtype)


def tsa_loss(
    confidence: Tensor,
    interactions: Tensor,
    sizes: Tensor,
    region_lengths: Tensor | None = None,
    literal: bool = False,
) -> Tensor:
    """L_TSA (LOUPE, section 3.2): binary cross-entropy of the confidences against `tsa_labels`.

    Args:
        confidence: [B, M] logits of the proposed regions.
        interactions: [B, M], as `region_interactions` returns them for the regions. Different dtypes promote.
        sizes, region_lengths, literal: as in `tsa_labels`.

    Returns:
        A scalar in the dtype of `confidence`, to which gradients flow: the mean over images of the mean over regions.
        Half types are computed in float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("confidence", confidence, "BM")
    check_features("interactions", interactions, "BM")
    check_same("interactions", interactions, "confidence", confidence, {"B": (0, 0), "M": (1, 1)})
    dtype = confidence.dtype
    _, (confidence, interactions) = widened(confidence, interactions)
    there = length_mask("region_lengths", region_lengths, confidence, 1)
    with unchecked():
        labels = tsa_labels(interactions, sizes, region_lengths, literal)
    each = binary_cross_entropy_with_logits(confidence.masked_fill(~there, 0), labels, reduction="none")
    return ((each * there).sum(1) / there.sum(1)).mean().to(dtype)
