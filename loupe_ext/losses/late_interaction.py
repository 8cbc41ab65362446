"""Word-patch late interaction, as in FILIP."""

import torch
from torch import Tensor

from loupe_ext.losses._checks import check_features, check_same, length_mask
from loupe_ext.losses.cmc import info_nce


def late_interaction(patches: Tensor, words: Tensor, word_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fine-grained similarities of every image with every caption (FILIP: Yao et al., ICLR 2022, section 3.1).

    Args:
        patches: [B, n, d] features of length one. words: [C, L, d] likewise. word_lengths: [C] integers, or None.

    Returns:
        [B, C] twice: the mean over patches of the best word, and the mean over words of the best patch.
    """
    check_features("patches", patches, "Bnd")
    check_features("words", words, "CLd")
    check_same("words", words, "patches", patches, {"d": (2, 2)})
    mask = length_mask("word_lengths", word_lengths, words, 1)
    (B, n, _), (C, L, _) = patches.shape, words.shape
    cosines = (words.flatten(0, 1) @ patches.flatten(0, 1).T).view(C, L, B, n)
    best_patch = cosines.amax(-1).masked_fill(~mask[..., None], 0).sum(1) / mask.sum(1)[:, None]
    best_word = cosines.masked_fill(~mask[..., None, None], -torch.inf).amax(1).mean(-1)
    return best_word.T, best_patch.T


def late_interaction_loss(
    patches: Tensor, words: Tensor, scale: Tensor | float, word_lengths: Tensor | None = None
) -> Tensor:
    """Symmetric contrastive loss of word-patch late interaction (FILIP, section 3.1), the peer of CMC.

    The image-to-text direction scores a pair by each patch's best word, the text-to-image direction by each word's
    best patch; padded words don't take part.

    Args:
        patches: [B, n, d]; words: [B, L, d]: features of length one of B matched pairs.
        scale: the inverse temperature.
        word_lengths: [B] int32 or int64, words of each caption; None: all L.

    Returns:
        A scalar; gradients flow to the features and to `scale`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    by_patch, by_word = late_interaction(patches, words, word_lengths)
    rows, columns = scale * by_patch, scale * by_word
    match = torch.arange(len(rows), device=rows.device)
    if rows.shape[0] != rows.shape[1]:
        raise ValueError(f"words: expected as many captions as images ({rows.shape[0]}), got {rows.shape[1]}")
    return (
        torch.nn.functional.cross_entropy(rows, match) + torch.nn.functional.cross_entropy(columns.T, match)
    ) / 2
