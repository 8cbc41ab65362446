"""Tokens against the patches that they group, within each pair, as in SPARC."""

import torch
from torch import Tensor

from loupe_ext._checks import check_features, check_same, check_scale, length_mask
from loupe_ext._dtypes import directions, no_autocast, widened


def grouping_weights(patches: Tensor, tokens: Tensor) -> Tensor:
    """[B, n, d] patches and [B, L, d] tokens -> [B, L, n]: how much each patch is of each token's group; rows sum to 1.

    SPARC, section 2: a token's similarities with its image's patches, min-max normalised over the patches; those below
    1/n are dropped, and the rest normalised to sum to one. A token that is equally similar to all groups them equally.
    """
    similarity = tokens @ patches.mT
    low, high = similarity.aminmax(dim=2, keepdim=True)
    same = low == high
    share = torch.where(same, 1, (similarity - low) / torch.where(same, 1, high - low))
    share = torch.where(share < 1 / patches.shape[1], 0, share)
    return share / share.sum(2, keepdim=True)


def sparse_grouping_loss(
    patches: Tensor, tokens: Tensor, scale: Tensor | float, token_lengths: Tensor | None = None
) -> Tensor:
    """SPARC's fine-grained loss (Bica et al., ICML 2024, section 2): symmetric InfoNCE within each pair.

    Each token groups patches by `grouping_weights`; the mean of its group is to match the token better than the
    caption's other tokens, and the token it better than their groups. No other pair takes part. As in the paper the
    weights carry gradients, and `scale` enters the contrast, not the grouping. A caption of one token has loss 0; one
    that repeats a token unchanged can't reach it.

    Args:
        patches: [B, n, d]; tokens: [B, L, d]: features of B matched pairs, words or phrases; floating dtypes, which
            promote.
        scale: the inverse temperature, a positive number or a tensor [] or [1].
        token_lengths: [B] int32 or int64, tokens of each caption; None: all L.

    Returns:
        A scalar in the promoted dtype, the mean over pairs of the mean over tokens; gradients flow to the features and
        to `scale`. float64 is computed in float64, everything else in float32, under autocast too.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    check_features("patches", patches, "Bnd")
    check_features("tokens", tokens, "BLd")
    check_same("tokens", tokens, "patches", patches, {"B": (0, 0), "d": (2, 2)})
    scale = check_scale(scale, patches.device)
    mask = length_mask("token_lengths", token_lengths, tokens, 1)
    tokens = tokens.masked_fill(~mask[..., None], 0)  # whatever stands there, NaN among it
    dtype, (patches, tokens) = widened(patches, tokens)
    with no_autocast(patches.device):
        groups = directions(grouping_weights(patches, tokens) @ patches)
        logits = scale * directions(tokens) @ groups.mT
    own = logits.diagonal(dim1=1, dim2=2)
    by_token = logits.masked_fill(~mask[:, None], -torch.inf).logsumexp(2) - own
    by_group = logits.masked_fill(~mask[:, :, None], -torch.inf).logsumexp(1) - own
    return (((by_token + by_group) * mask).sum(1) / (2 * mask.sum(1))).mean().to(dtype)
