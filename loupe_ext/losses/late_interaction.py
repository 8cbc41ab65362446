"""Word-patch late interaction, as in FILIP."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy

from loupe_ext.losses._checks import check_features, check_same, length_mask


class _BestMatches(torch.autograd.Function):
    """[C, Bn] the best word of each patch in each caption, and [C, L, B] the best patch of each word in each image.

    Autograd through max over all cosines at once would hold them several times over, C L B n of them; this goes through
    them one word of every caption at a time, forward and backward, and keeps only who won.
    """

    @staticmethod
    def forward(ctx: Any, patches: Tensor, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        (B, n, _), (C, L, _) = patches.shape, words.shape
        flat = patches.flatten(0, 1)
        best_word = patches.new_full((C, B * n), -torch.inf)
        winner = torch.zeros(C, B * n, dtype=torch.int32, device=patches.device)
        best_patch, winners = [], []
        for i in range(L):
            cosines = words[:, i] @ flat.T
            value, index = cosines.view(C, B, n).max(-1)
            best_patch.append(value)
            winners.append(index)
            cosines = torch.where(mask[:, i, None], cosines, -torch.inf)
            winner = torch.where(cosines > best_word, i, winner)
            best_word = torch.maximum(best_word, cosines)
        ctx.save_for_backward(patches, words, winner, torch.stack(winners))
        return best_word, torch.stack(best_patch, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_word: Tensor, grad_patch: Tensor) -> tuple[Tensor, Tensor, None]:
        patches, words, winner, winners = ctx.saved_tensors
        B, n, _ = patches.shape
        flat = patches.flatten(0, 1)
        to_patches, to_words = torch.zeros_like(flat), torch.zeros_like(words)
        for i in range(words.shape[1]):
            grad = grad_word * (winner == i)
            grad.view(-1, B, n).scatter_add_(2, winners[i, ..., None], grad_patch[:, i, :, None])
            to_words[:, i] = grad @ flat
            to_patches.addmm_(grad.T, words[:, i])
        return to_patches.view_as(patches), to_words, None


def late_interaction(patches: Tensor, words: Tensor, word_lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fine-grained similarities of every image with every caption (FILIP: Yao et al., ICLR 2022, section 3.1).

    Args:
        patches: [B, n, d] features of length one. words: [C, L, d] likewise.
        word_lengths: [C] int32 or int64; None: all L.

    Returns:
        [B, C] twice: the mean over patches of the best word, and the mean over words of the best patch. Differentiable
        once; of several best, the first gets the gradient.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("patches", patches, "Bnd")
    check_features("words", words, "CLd")
    check_same("words", words, "patches", patches, {"d": (2, 2)})
    mask = length_mask("word_lengths", word_lengths, words, 1)
    words = words.masked_fill(~mask[..., None], 0)  # whatever stands there, NaN among it
    best_word, best_patch = _BestMatches.apply(patches, words, mask)
    by_word = (best_patch * mask[..., None]).sum(1) / mask.sum(1)[:, None]
    return best_word.view(len(words), *patches.shape[:2]).mean(-1).T, by_word.T


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
        A scalar; gradients flow to the features and to `scale`, once.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    by_patch, by_word = late_interaction(patches, words, word_lengths)
    check_same("words", words, "patches", patches, {"B": (0, 0)})
    match = torch.arange(len(patches), device=patches.device)
    return (cross_entropy(scale * by_patch, match) + cross_entropy(scale * by_word.T, match)) / 2
