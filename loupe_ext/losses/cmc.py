"""Cross-modal contrastive loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from loupe_ext._checks import check_features, check_same


def info_nce(similarity: Tensor) -> Tensor:
    """Symmetric InfoNCE of logits [B, B] whose diagonal holds the matched pairs: a scalar.

    The mean of the cross-entropies of the rows (which column matches?) and of the columns.
    """
    check_features("similarity", similarity, "BB")
    if similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"similarity: expected a square, got {tuple(similarity.shape)}")
    match = torch.arange(len(similarity), device=similarity.device)
    return (cross_entropy(similarity, match) + cross_entropy(similarity.T, match)) / 2


def cmc_loss(images: Tensor, texts: Tensor, scale: Tensor | float) -> Tensor:
    """L_CMC (LOUPE, section 3.1; CLIP's loss): symmetric InfoNCE of the cosines of global embeddings.

    Args:
        images, texts: [B, d] embeddings of B matched pairs, any length; one floating dtype.
        scale: the inverse temperature, a positive number or scalar tensor (learned).

    Returns:
        A scalar; gradients flow to all three.

    Raises:
        TypeError, ValueError: an argument has the wrong type or shape.
    """
    check_features("images", images, "Bd")
    check_features("texts", texts, "Bd")
    check_same("texts", texts, "images", images, {"B": (0, 0), "d": (1, 1)})
    return info_nce(scale * normalize(images, dim=-1) @ normalize(texts, dim=-1).T)
