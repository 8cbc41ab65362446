"""Cross-modal contrastive loss."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loupe_ext._checks import check_features, check_same, check_scale
from loupe_ext._distributed import Group, check_group, common_sizes, gathered, place, transposed
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
    return contrast(similarity, similarity).to(dtype)


def contrast(by_image: Tensor, by_text: Tensor, group: Group = None) -> Tensor:
    """The mean cross-entropy of logits [B, processes * B] of own images with all texts, by rows and by columns.

    Rows are those of `by_image` and columns those of `by_text`. Own pairs match from column rank * B on.
    """
    match = place(group)[0] * len(by_image) + torch.arange(len(by_image), device=by_image.device)
    return (cross_entropy(by_image, match) + cross_entropy(transposed(by_text, group), match)) / 2


def cmc_loss(images: Tensor, texts: Tensor, scale: Tensor | float, *, group: Group = None) -> Tensor:
    """L_CMC (LOUPE, section 3.1; CLIP's loss): symmetric InfoNCE of the cosines of global embeddings.

    Args:
        images, texts: [B, d] embeddings of B matched pairs, any length; floating dtypes, which promote.
        scale: the inverse temperature, a positive number or a tensor [] or [1] (learned).
        group: a torch.distributed.ProcessGroup, whose processes each hold an equal slice of the batch, in the order of
            ranks: each contrasts its own pairs with everybody's, and the mean of their losses, and of gradients, is
            that of the whole batch in one process. None: this process holds all.

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
    check_group(group)
    dtype, (images, texts) = widened(images, texts)
    images, texts = directions(images), directions(texts)
    with no_autocast(images.device):
        if group is not None:
            common_sizes("images", images, group)
            texts = gathered(texts, group)
        logits = scale * images @ texts.T
        return contrast(logits, logits, group).to(dtype)
