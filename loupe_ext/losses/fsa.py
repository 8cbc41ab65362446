"""Fine-grained semantic alignment, supervised by interactions: exact ones, or whatever the caller has."""

import torch
from torch import Tensor

from loupe_ext._checks import (
    check_features,
    check_flag,
    check_like,
    check_number,
    check_same,
    check_scale,
    length_mask,
    unchecked,
)
from loupe_ext._distributed import Group, check_group, gathered_ragged
from loupe_ext._dtypes import no_autocast, widened
from loupe_ext.losses._blocks import in_blocks
from loupe_ext.losses.sampled import sampled_interactions
from loupe_ext.ops import pairwise_interactions


def alignment_interactions(
    alignment: Tensor,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    *,
    first_problem: int = 0,
) -> Tensor:
    """The exact interaction of each region with each phrase, in the game that their alignment makes (section 3.3).

    The logits, softmaxed over each row and over each column, are the scores s and s' of the late-interaction game of
    `pairwise_interactions`.

    Args:
        alignment: [B, M, N] logits of M regions with the N phrases of their own caption; a floating dtype.
        region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
        num_samples, seed, first_problem: of `sampled_interactions`, to estimate them instead; None: exact.

    Returns:
        [B, M, N] in the dtype of `alignment`, 0 at the padding; half types are computed in float32. Differentiable
        once; estimates are constants.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("alignment", alignment, "BMN")
    regions = length_mask("region_lengths", region_lengths, alignment, 1)[:, :, None]
    phrases = length_mask("phrase_lengths", phrase_lengths, alignment, 2)[:, None, :]
    dtype, (alignment,) = widened(alignment)
    rows = alignment.masked_fill(~phrases, -torch.inf).softmax(2)
    columns = alignment.masked_fill(~regions, -torch.inf).softmax(1)
    if num_samples is not None:
        with unchecked():
            found = sampled_interactions(
                rows, columns, num_samples, seed, region_lengths, phrase_lengths, first_problem=first_problem
            )
    else:
        found = pairwise_interactions(rows, columns, region_lengths=region_lengths, phrase_lengths=phrase_lengths)
    return found.to(dtype)


def fsa_labels(
    alignment: Tensor,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    temperature: float = 0.2,
    interactions: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Which phrase each region should go with, from the interactions of all regions with all phrases.

    The interactions I, by default the exact ones of `alignment_interactions`, divided by the largest of the problem so
    that neither the number of regions nor the sharpness of the softmax sets their unit, give

        labels  = softmax over phrases of I / (max I * temperature)
        weights = max over phrases of I / max I, not below 0

    A region that interacts with no phrase (the background) has no weight. Neither carries a gradient.

    Args:
        alignment: [B, M, N] logits of M regions with the N phrases of their own caption; a floating dtype.
        region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
        temperature: of the labels' softmax.
        interactions: [B, M, N] in any unit: sampled, predicted, or of another game. None: exact. Its dtype and that of
            `alignment` promote.

    Returns:
        Labels [B, M, N], each row a distribution over phrases, and weights [B, M] in 0..1; both 0 at the padding, in
        the promoted dtype. Half types are computed in float32.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("alignment", alignment, "BMN")
    temperature = check_number("temperature", temperature, 0, above=True)
    regions = length_mask("region_lengths", region_lengths, alignment, 1)[:, :, None]
    phrases = length_mask("phrase_lengths", phrase_lengths, alignment, 2)[:, None, :]
    with torch.no_grad(), unchecked():
        if interactions is None:
            dtype, (alignment,) = widened(alignment.detach())  # no tangent either
            interactions = alignment_interactions(alignment, region_lengths, phrase_lengths)
        else:
            check_like("interactions", interactions, "alignment", alignment, dtype=False)
            dtype, (_, interactions) = widened(alignment, interactions.detach())
        interactions = interactions.masked_fill(~(regions & phrases), -torch.inf)
        best = interactions.amax(2)
        unit = best.amax(1)[:, None].clamp(min=torch.finfo(best.dtype).tiny)
        labels = (interactions / (unit[..., None] * temperature)).clamp(min=torch.finfo(best.dtype).min)
        labels = labels.masked_fill(~phrases, -torch.inf)
        labels = torch.where(regions, labels, 0).softmax(2)
        return (labels * (regions & phrases)).to(dtype), (best / unit).clamp(min=0).to(dtype)


def fsa_loss(
    regions: Tensor,
    phrases: Tensor,
    scale: Tensor | float,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    temperature: float = 0.2,
    negatives: bool = True,
    interactions: Tensor | None = None,
    *,
    group: Group = None,
) -> Tensor:
    """L_FSA (LOUPE, section 3.3): cross-entropy of the regions' alignments against labels from their interactions.

    The alignment of a region with the phrases is softmaxed, and `fsa_labels` of the matched pair supervise it, each
    region by its weight. LOUPE softmaxes over the phrases of the region's own caption; with `negatives`, the phrases of
    all captions of the batch compete, and the labels say which of the region's own it should win for. (Of a large batch
    a block of these alignments is held at a time, and made again for backward.)

    Args:
        regions: [B, M, d]; phrases: [B, N, d]: features of length one of B matched pairs; floating dtypes, which
            promote.
        scale: the inverse temperature of the alignment, a positive number or a tensor [] or [1].
        region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.
        temperature: of the labels.
        negatives: whether other captions' phrases compete.
        interactions: [B, M, N], of the matched pairs, for `fsa_labels`; any floating dtype. None: exact.
        group: as in `cmc_loss`: phrases of all processes compete. M and N may differ between processes.

    Returns:
        A scalar in the features' promoted dtype, the mean over images of the weighted mean over regions. Gradients flow
        to the features and to `scale` through the alignment; the labels carry none. float64 is computed in float64,
        everything else in float32, under autocast too.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("regions", regions, "BMd")
    check_features("phrases", phrases, "BNd")
    check_same("phrases", phrases, "regions", regions, {"B": (0, 0), "d": (2, 2)})
    negatives = check_flag("negatives", negatives)
    there = length_mask("region_lengths", region_lengths, regions, 1)
    present = length_mask("phrase_lengths", phrase_lengths, phrases, 1)
    scale = check_scale(scale, regions.device)
    check_group(group)
    dtype, (regions, phrases) = widened(regions, phrases)
    regions = regions.masked_fill(~there[..., None], 0)  # whatever stands there, NaN among it
    phrases = phrases.masked_fill(~present[..., None], 0)
    with no_autocast(regions.device):
        own = scale * regions @ phrases.mT
        if negatives:
            if group is not None:
                phrases, lengths = gathered_ragged("phrases", phrases, "phrase_lengths", phrase_lengths, group)
                present = length_mask("phrase_lengths", lengths, phrases, 1)
            each = regions.shape[1] * phrases.shape[1]
            found = in_blocks(_log_sum_exp, (scale * regions,), (phrases, present), each)
            total = torch.cat([row[0] if len(row) == 1 else torch.stack(row).logsumexp(0) for row in found])
        else:
            total = own.masked_fill(~present[:, None], -torch.inf).logsumexp(2)
    with unchecked():
        labels, weights = fsa_labels(own, region_lengths, phrase_lengths, temperature, interactions)
    cross_entropy = (labels * (total[..., None] - own)).sum(2)
    means = (weights * cross_entropy).sum(1) / weights.sum(1).clamp(min=torch.finfo(weights.dtype).tiny)
    return means.mean().to(dtype)


def _log_sum_exp(regions: Tensor, phrases: Tensor, present: Tensor) -> Tensor:
    """Over all phrases that are present, of each region: [B, M]."""
    absent = regions.new_zeros(()).masked_fill(~present.flatten(), -torch.inf)  # added, for less memory than filled in
    return torch.addmm(absent, regions.flatten(0, 1), phrases.flatten(0, 1).T).logsumexp(1).view(regions.shape[:2])
