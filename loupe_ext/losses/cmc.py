"""Cross-modal contrastive loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loupe_ext._checks import check_features, check_same, check_scale
from loupe_ext._dtypes import directions, no_autocast, widened


def info_nce(similarity: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [B, B] whose diagonal holds the matched pairs: a scalar.

    The mean of the cross-entropies of the rows (which column matches?) and of the columns, in the logits' dtype. Half
    types are computed in float32.
    """
    check_features("similarity", similarity, "BB")
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity: expected a square, got {tuple(similarity.shape)}")
    dtype, (similarity,) = widened(similarity)
    match = torch.arange(len(similarity), device=similarity.device)
    return ((cross_entropy(similarity, match) + cross_entropy(similarity.T, match)) / 2).to(dtype)


def cmc_loss(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """L_CMC (LOUPE, section 3.1; CLIP's loss): symmetric InfoNCE of the cosines of global embeddings.

    Args:
        images, texts: [B, d] embeddings of B matched pairs, any length; floating dtypes, which promote.
        scale: the inverse temperature, a positive number or a tensor [] or [1] (learned).

    Returns:
        A scalar in the promoted dtype; gradients flow to all three. float64 is computed in float64, everything else in
        float32, under autocast too.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    check_features("images", images, "Bd")
    check_features("texts", texts, "Bd")
    check_same("texts", texts, "images", images, {"B": (0, 0), "d": (1, 1)})
    scale = check_scale(scale, images.device)
    dtype, (images, texts) = widened(images, texts)
    with no_autocast(images.device):
        return info_nce(scale * directions(images) @ directions(texts).T).to(dtype)
