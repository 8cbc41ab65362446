"""The region-phrase contrastive term over the batch."""

import torch
from torch import Tensor

from loupe_ext._checks import check_dtype, check_features, check_same, check_scale, length_mask
from loupe_ext._distributed import Group, check_group, gathered_ragged
from loupe_ext._dtypes import no_autocast, widened
from loupe_ext.losses._blocks import in_blocks
from loupe_ext.losses.cmc import contrast


def region_phrase_similarity(
    regions: Tensor,
    phrases: Tensor,
    phrase_lengths: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The mean over a caption's phrases of the best region's cosine, between every image and every caption.

    It is the phrases' half of LOUPE's fine-grained similarity (section 3.3). The cosines of a large batch are held a
    block at a time, and made again for backward.

    Args:
        regions: [B, M, d]; phrases: [C, P, d]: features of length one; floating dtypes, which promote.
        phrase_lengths: [C] int32 or int64, phrases of each caption; None: all P.
        region_lengths: [B] int32 or int64, regions of each image; None: all M.
        dtype: of the result; None: the promoted one. A half type holds too few digits to rank captions by.

    Returns:
        [B, C]. float64 is computed in float64, everything else in float32, under autocast too. Padding is never read.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("regions", regions, "BMd")
    check_features("phrases", phrases, "CPd")
    check_same("phrases", phrases, "regions", regions, {"d": (2, 2)})
    check_dtype("dtype", dtype)
    there = length_mask("region_lengths", region_lengths, regions, 1)
    mask = length_mask("phrase_lengths", phrase_lengths, phrases, 1)
    promoted, (regions, phrases) = widened(regions, phrases)
    regions = regions.masked_fill(~there[..., None], 0)  # whatever stands there, NaN among it
    phrases = phrases.masked_fill(~mask[..., None], 0)
    with no_autocast(regions.device):
        found = in_blocks(_similarity, (regions, there), (phrases, mask), regions.shape[1] * phrases.shape[1])
    return torch.cat([torch.cat(row, 1) for row in found]).to(dtype or promoted)


def _similarity(regions: Tensor, there: Tensor, phrases: Tensor, mask: Tensor) -> Tensor:
    (B, M, _), (C, P, _) = regions.shape, phrases.shape
    cosines = (phrases.flatten(0, 1) @ regions.flatten(0, 1).T).view(C, P, B, M)
    best = cosines.masked_fill(~there, -torch.inf).amax(-1)
    return (best * mask[..., None]).sum(1).T / mask.sum(1)


def region_phrase_loss(
    regions: Tensor,
    phrases: Tensor,
    scale: Tensor | float,
    phrase_lengths: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    group: Group = None,
) -> Tensor:
    """Symmetric InfoNCE over the batch of `region_phrase_similarity`. An addition to LOUPE.

    Args:
        regions: [B, M, d]; phrases: [B, P, d]: features of length one of B matched pairs; floating dtypes, which
            promote.
        scale: the inverse temperature, a positive number or a tensor [] or [1].
        phrase_lengths: [B] int32 or int64, phrases of each caption; None: all P.
        region_lengths: [B] int32 or int64, regions of each image; None: all M.
        group: as in `cmc_loss`. M and P may differ between processes.

    Returns:
        A scalar in the promoted dtype, computed as `region_phrase_similarity`; gradients flow to the features and to
        `scale`.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("regions", regions, "BMd")
    check_features("phrases", phrases, "BPd")
    check_same("phrases", phrases, "regions", regions, {"B": (0, 0)})
    scale = check_scale(scale, regions.device)
    check_group(group)
    dtype, (regions, phrases) = widened(regions, phrases)
    phrases, phrase_lengths = gathered_ragged("phrases", phrases, "phrase_lengths", phrase_lengths, group)
    logits = scale * region_phrase_similarity(regions, phrases, phrase_lengths, region_lengths=region_lengths)
    return contrast(logits, logits, group).to(dtype)
