"""Fine-grained semantic alignment, supervised by exact interactions."""

import torch
from torch import Tensor

from loupe_ext.losses._checks import check_features, length_mask
from loupe_ext.ops import pairwise_interactions


def fsa_labels(
    alignment: Tensor,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    temperature: float = 0.05,
) -> tuple[Tensor, Tensor]:
    """Soft labels from the interaction of every region with every phrase, exactly.

    The alignment logits [B, M, N] are softmaxed over each row and over each column, and the two are the scores s and s'
    of the late-interaction game of `pairwise_interactions`. A softmax of the interactions at `temperature` gives, for
    each region, a distribution over phrases, and for each phrase, one over regions: [B, M, N] twice, 0 at the padding.
    They carry no gradient.
    """
    check_features("alignment", alignment, "BMN")
    if not temperature > 0:
        raise ValueError(f"temperature: expected a positive number, got {temperature}")
    regions = length_mask("region_lengths", region_lengths, alignment, 1)[:, :, None]
    phrases = length_mask("phrase_lengths", phrase_lengths, alignment, 2)[:, None, :]
    with torch.no_grad():
        rows = alignment.masked_fill(~phrases, -torch.inf).softmax(2)
        columns = alignment.masked_fill(~regions, -torch.inf).softmax(1)
        interactions = pairwise_interactions(
            rows, columns, region_lengths=region_lengths, phrase_lengths=phrase_lengths
        )
        logits = interactions / temperature
        both = regions & phrases
        return (
            logits.masked_fill(~phrases, -torch.inf).softmax(2) * both,
            logits.masked_fill(~regions, -torch.inf).softmax(1) * both,
        )


def fsa_loss(
    alignment: Tensor,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    temperature: float = 0.05,
) -> Tensor:
    """L_FSA (LOUPE, section 3.3): cross-entropy of softmaxed alignments against labels from their interactions.

    Args:
        alignment: [B, M, N] logits (cosines times an inverse temperature) of the M regions of each image with the N
            phrases of its own caption; float32 or float64 (half types work, with their precision).
        region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
        temperature: of the softmax that turns interactions, which lie within -1..1, into labels.

    Returns:
        A scalar: the mean over regions of the row's cross-entropy plus the mean over phrases of the column's, halved.
        Gradients flow through the alignment; the labels carry none.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    row_labels, column_labels = fsa_labels(alignment, region_lengths, phrase_lengths, temperature)
    regions = length_mask("region_lengths", region_lengths, alignment, 1)
    phrases = length_mask("phrase_lengths", phrase_lengths, alignment, 2)
    outside = ~(regions[:, :, None] & phrases[:, None, :])
    total = alignment.new_zeros(())
    for labels, mask, axis, present in ((row_labels, phrases[:, None], 2, regions), (column_labels, regions[..., None], 1, phrases)):
        likelihood = alignment.masked_fill(~mask, -torch.inf).log_softmax(axis).masked_fill(outside, 0)
        total = total - (labels * likelihood).sum((1, 2)).div(present.sum(1)).mean()
    return total / 2
