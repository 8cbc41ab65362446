"""The contrastive loss of late interaction, as in FILIP."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from loupe_ext._checks import check_features, check_same, check_scale
from loupe_ext._dtypes import widened
from loupe_ext.ops import late_interaction_similarity


def late_interaction_loss(
    regions: Tensor,
    tokens: Tensor,
    scale: Tensor | float,
    region_lengths: Tensor | None = None,
    token_lengths: Tensor | None = None,
) -> Tensor:
    """Symmetric contrastive loss of late interaction (FILIP, section 3.1), the peer of CMC.

    The image-to-text direction scores a pair by each region's best token, the text-to-image direction by each token's
    best region; padding doesn't take part.

    Args:
        regions: [B, M, d]; tokens: [B, N, d]: features of length one of B matched pairs (FILIP: patches and words).
        scale: the inverse temperature, a positive number or a tensor [] or [1].
        region_lengths: [B] int32 or int64, regions of each image; None: all M.
        token_lengths: [B] likewise, tokens of each caption; None: all N.

    Returns:
        A scalar in the features' promoted dtype; gradients flow to the features and to `scale`, once.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("regions", regions, "BMd")
    check_features("tokens", tokens, "BNd")
    check_same("tokens", tokens, "regions", regions, {"B": (0, 0)})
    scale = check_scale(scale, regions.device)
    dtype, (regions, tokens) = widened(regions, tokens)
    by_region, by_token = late_interaction_similarity(regions, tokens, region_lengths, token_lengths)
    match = torch.arange(len(regions), device=regions.device)
    return ((cross_entropy(scale * by_region, match) + cross_entropy(scale * by_token.T, match)) / 2).to(dtype)
