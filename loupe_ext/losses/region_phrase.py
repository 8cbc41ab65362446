"""The region-phrase contrastive term over the batch."""

from torch import Tensor

from loupe_ext._checks import check_features, check_same, length_mask
from loupe_ext.losses.cmc import info_nce


def region_phrase_similarity(regions: Tensor, phrases: Tensor, phrase_lengths: Tensor | None = None) -> Tensor:
    """[B, M, d] regions and [C, P, d] phrases -> [B, C]: the mean over a caption's phrases of the best region's cosine.

    It is the phrases' half of LOUPE's fine-grained similarity (section 3.3), between every image and every caption.
    """
    check_features("regions", regions, "BMd")
    check_features("phrases", phrases, "CPd")
    check_same("phrases", phrases, "regions", regions, {"d": (2, 2)})
    mask = length_mask("phrase_lengths", phrase_lengths, phrases, 1)
    phrases = phrases.masked_fill(~mask[..., None], 0)  # whatever stands there, NaN among it
    (B, M, _), (C, P, _) = regions.shape, phrases.shape
    best = (phrases.flatten(0, 1) @ regions.flatten(0, 1).T).view(C, P, B, M).amax(-1)
    return (best * mask[..., None]).sum(1).T / mask.sum(1)


def region_phrase_loss(
    regions: Tensor, phrases: Tensor, scale: Tensor | float, phrase_lengths: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE over the batch of `region_phrase_similarity`. An addition to LOUPE.

    Args:
        regions: [B, M, d]; phrases: [B, P, d]: features of length one of B matched pairs.
        scale: the inverse temperature.
        phrase_lengths: [B] int32 or int64, phrases of each caption; None: all P.

    Returns:
        A scalar; gradients flow to the features and to `scale`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("phrases", phrases, "BPd")
    check_same("phrases", phrases, "regions", regions, {"B": (0, 0)})
    return info_nce(scale * region_phrase_similarity(regions, phrases, phrase_lengths))
