"""Late interaction of regions and tokens, as in FILIP: MaxSim both ways, of every image with every caption."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag

from loupe_ext._checks import check_dtype, check_features, check_no_tangent, check_same, length_mask
from loupe_ext._dtypes import no_autocast, widened
from loupe_ext.ops._register import transformable, under_transform

CPU_BLOCK, GPU_BLOCK = 1 << 21, 1 << 25  # similarities held at a time: 8 and 128 MiB of float32


def _maxima(
    regions: Tensor, tokens: Tensor, region_lengths: Tensor, token_lengths: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The similarities of features whose padding repeats the first of each image and caption, and winners.

    Autograd through the maxima of all similarities at once would hold these Bi M Bt N numbers several times over. This
    makes a block of images by captions of them at a time, takes both maxima from it, and keeps only who won. Winners
    are few, so the gradient is four sums of chosen rows, where autograd has two products as large as the forward one.
    """
    (Bi, M, _), (Bt, N, _) = regions.shape, tokens.shape
    region_weight, token_weight = _mean_weights(region_lengths, M, regions), _mean_weights(token_lengths, N, tokens)
    region_to_token, token_to_region = regions.new_empty(Bi, Bt), regions.new_empty(Bi, Bt)
    best_token = torch.empty(Bi, M, Bt, dtype=torch.int32, device=regions.device)
    best_region = torch.empty(Bt, N, Bi, dtype=torch.int32, device=regions.device)
    pairs = _budget(regions) / (M * N)
    captions = min(Bt, math.ceil(max(math.sqrt(pairs), pairs / Bi)))
    images = min(Bi, math.ceil(pairs / captions))
    for i in _slices(Bi, images):
        for c in _slices(Bt, captions):
            some, others = regions[i], tokens[c]
            block = some.flatten(0, 1) @ others.flatten(0, 1).T
            block = block.view(len(some), M, len(others), N)
            best, best_token[i, :, c] = block.max(3)
            region_to_token[i, c] = (best * region_weight[i, :, None]).sum(1)
            best, winner = block.max(1)
            best_region[c, :, i] = winner.permute(1, 2, 0).int()
            token_to_region[i, c] = (best * token_weight[c]).sum(2)
    best_token.masked_fill_(best_token >= token_lengths, 0)  # a copy of the first won by a rounding error
    best_region.masked_fill_(best_region >= region_lengths, 0)
    return region_to_token, token_to_region, best_token, best_region


def _gradients(
    by_region: Tensor,
    by_token: Tensor,
    regions: Tensor,
    tokens: Tensor,
    region_lengths: Tensor,
    token_lengths: Tensor,
    best_token: Tensor,
    best_region: Tensor,
) -> tuple[Tensor, Tensor]:
    region_weight = _mean_weights(region_lengths, regions.shape[1], regions)
    token_weight = _mean_weights(token_lengths, tokens.shape[1], tokens)
    to_regions, to_tokens = torch.zeros_like(regions), torch.zeros_like(tokens)
    _add_gradients(to_regions, to_tokens, regions, tokens, region_weight, best_token, by_region)
    _add_gradients(to_tokens, to_regions, tokens, regions, token_weight, best_region, by_token.T)
    return to_regions, to_tokens


class _MaxSim(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *similarities, best_token, best_region = _maxima(*inputs)
        ctx.save_for_backward(*inputs, best_token, best_region)
        return similarities[0], similarities[1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_region: Tensor, by_token: Tensor) -> tuple[Tensor, Tensor, None, None]:
        return *_gradients(by_region, by_token, *ctx.saved_tensors), None, None


def _setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[2:])
    ctx.save_for_backward(*inputs, *output[2:])


def _backward(ctx: Any, by_region: Tensor, by_token: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    return *_func_gradients(by_region, by_token, *ctx.saved_tensors), None, None


# torch.func asks for a setup_context, which torch.compile refuses in older versions of torch
_func_gradients = transformable("late_interaction_similarity's gradient", _gradients)
_func_maxima = transformable("late_interaction_similarity", _maxima, _backward, _setup_context)


def _add_gradients(
    to_queries: Tensor, to_keys: Tensor, queries: Tensor, keys: Tensor, weight: Tensor, best: Tensor, grad: Tensor
) -> None:
    """Adds the gradients of sum_p weight[a, p] max_q queries[a, p] keys[c, q], whose maxima are at best[a, p, c]."""
    (A, P, d), (C, Q, _) = queries.shape, keys.shape
    query_rows, key_rows = queries.reshape(-1, d), keys.reshape(-1, d)
    first = torch.arange(C, dtype=torch.int32, device=best.device) * Q
    winners = _budget(best) // 4  # at a time: each takes several numbers
    for a in _slices(A, winners // (P * C)):
        share = (weight[a, :, None] * grad[a, None]).reshape(-1, C)
        to_queries[a] += _sums(key_rows, (best[a] + first).view(-1, C), None, share).view(-1, P, d)
    for c in _slices(C, winners // (A * P)):  # each key's winners, brought together by sorting
        count = len(keys[c])
        flat = (best[:, :, c] + first[:count]).permute(2, 0, 1).flatten()
        flat, order = flat.sort(stable=True)
        share = (weight[..., None] * grad[:, None, c]).permute(2, 0, 1).flatten()[order]
        starts = torch.searchsorted(flat, torch.arange(count * Q, dtype=flat.dtype, device=flat.device))
        to_keys[c] += _sums(query_rows, order % (A * P), starts, share).view(-1, Q, d)


def _sums(rows: Tensor, chosen: Tensor, bags: Tensor | None, weights: Tensor) -> Tensor:
    return embedding_bag(chosen, rows, bags, mode="sum", per_sample_weights=weights)


def _without_padding(name: str, lengths: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    """x, copies of each problem's first row for its padding; and the lengths."""
    mask = length_mask(name, lengths, x, 1)
    if lengths is None:
        lengths = mask.sum(1)
    else:
        x = torch.where(mask[..., None], x, x[:, :1])
    return x, lengths


def _mean_weights(lengths: Tensor, n: int, like: Tensor) -> Tensor:
    present = torch.arange(n, device=like.device) < lengths[:, None]
    return present.to(like.dtype) / lengths[:, None]


def _budget(like: Tensor) -> int:
    return CPU_BLOCK if like.device.type == "cpu" else GPU_BLOCK


def _slices(size: int, step: int) -> list[slice]:
    return [slice(i, i + max(1, step)) for i in range(0, size, max(1, step))]


def late_interaction_similarity(
    regions: Tensor,
    tokens: Tensor,
    region_lengths: Tensor | None = None,
    token_lengths: Tensor | None = None,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Fine-grained similarities of every image with every caption (FILIP: Yao et al., ICLR 2022, section 3.1).

    MaxSim both ways: each region's best token and each token's best region, averaged over the regions and over the
    tokens. The similarities of all regions with all tokens, Bi M Bt N, are never held at once: the peak is a few
    integers for each of the Bi Bt (M + N) maxima.

    Args:
        regions: [Bi, M, d] features of length one; float16, bfloat16, float32 or float64.
        tokens: [Bt, N, d] likewise; different dtypes promote.
        region_lengths: [Bi] int32 or int64, regions of each image; None: all M.
        token_lengths: [Bt] likewise; None: all N.
        dtype: of the result; None: the promoted one. A half type holds too few digits to rank captions by, and float32
            here costs nothing.

    Returns:
        [Bi, Bt] twice, region-to-token and token-to-region. float64 is computed in float64, everything else in float32,
        under autocast too. Differentiable once, by torch.func too; of several best, the first gets the gradient.
        torch.compile traces it whole; the check of lengths breaks the graph.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
        RuntimeError: double backward or forward-mode differentiation was asked for.
    """
    check_features("regions", regions, "BMd")
    check_features("tokens", tokens, "BNd")
    check_same("tokens", tokens, "regions", regions, {"d": (2, 2)})
    check_dtype("dtype", dtype)
    promoted, (regions, tokens) = widened(regions, tokens)
    regions, region_lengths = _without_padding("region_lengths", region_lengths, regions)
    tokens, token_lengths = _without_padding("token_lengths", token_lengths, tokens)
    with no_autocast(regions.device):
        check_no_tangent("late_interaction_similarity", ("regions", "tokens"), (regions, tokens))
        maxima = _func_maxima if under_transform() else _MaxSim.apply
        by_region, by_token = maxima(regions, tokens, region_lengths, token_lengths)[:2]
    return by_region.to(dtype or promoted), by_token.to(dtype or promoted)
