"""Exact interactions within one side, regions or phrases: every player's value, and every pair of players."""

from typing import Any

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import check_index, check_like
from loupe_ext._indices import Index
from loupe_ext.ops._games import MAX_ENTRIES, GameName, Games, batch_of, check_games
from loupe_ext.ops._native import Backend, address, current_stream, on_device, resolve_backend, scratch_for
from loupe_ext.ops._register import register


def shapley_values(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    index: Index = "shapley",
    p: float = 0.5,
    game: GameName = "max-mean",
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    r"""The value of every region and of every phrase in a late-interaction score, exactly, at the price of a sort.

    The players and the games are those of `pairwise_interactions`. The value of a player :math:`k` is
    :math:`E_T[v(T+k) - v(T)]`, with the size of :math:`T` uniform and :math:`T` uniform given its size (the Shapley
    value), or every other player in :math:`T` with probability `p` (the p-weighted Banzhaf value). The Shapley values
    of all players add up to the score, :math:`v` of all of them. They are a closed form over the sorted rows and
    columns, :math:`O(MN \log MN)` (`python_ref/sides.py` has the formula).

    Args:
        scores: [B, M, N] or [M, N], alignment of M regions with N phrases; float16, bfloat16, float32 or float64.
        col_scores: the scores of the game's second direction, like `scores` in shape, dtype and device. None: the same
            as `scores`. Not for "maxsim".
        region_lengths: [B] int32 or int64 ([] for one problem), how many of the M regions each problem has.
            None: all of them. Entries beyond are never read, values beyond are exactly 0.
        phrase_lengths: the same for the N phrases.
        index: "shapley" or "banzhaf".
        p: probability of the Banzhaf index, strictly between 0 and 1. Not used by "shapley".
        game: "max-mean" or "maxsim".
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        Values of the regions, [B, M] or [M], and of the phrases, [B, N] or [N], in the unit and dtype of the scores.
        Half types, scores that are not finite or nearly overflow, and lengths out of range on a GPU are treated as by
        `pairwise_interactions`, and so are gradients, ties, thread counts and splits of the batch.

    Raises:
        TypeError, ValueError, RuntimeError: as `pairwise_interactions`.

    Example:
        >>> import torch, loupe_ext
        >>> loupe_ext.shapley_values(torch.tensor([[4.0, 0.0], [0.0, 8.0]]), game="maxsim")
        (tensor([2., 4.]), tensor([2., 4.]))
    """
    probability = check_index(index, p)
    batch = batch_of(scores, col_scores, region_lengths, phrase_lengths, game, backend)
    regions, phrases = sides(*batch, probability, game, 1, backend)
    return (regions.squeeze(0), phrases.squeeze(0)) if scores.dim() == 2 else (regions, phrases)


def _check(scores: Tensor, order: int, *games: Any) -> list[tuple[int, ...]]:
    """The shapes of the results, one per side."""
    check_games(scores, *games)
    if order not in (1, 2):
        raise ValueError(f"order: expected 1 (values) or 2 (pairs), got {order}")
    B, M, N = scores.shape
    if N * (M + 8) >= MAX_ENTRIES:
        raise ValueError(f"scores: expected fewer than 2^28 entries per problem, got {M} x {N}")
    return [(B, n) if order == 1 else (B, n, n) for n in (M, N)]


def _forward(
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    shapes = _check(scores, order, cols, rows_of, cols_of, p, game)
    chosen = resolve_backend(backend, scores.device)
    if scores.numel() == 0:
        return scores.new_zeros(shapes[0]), scores.new_zeros(shapes[1])
    games = Games(scores, cols, rows_of, cols_of, p, game)
    regions, phrases = scores.new_empty(*shapes[0]), scores.new_empty(*shapes[1])
    if chosen == "cpu":
        _C.sides_cpu(games.native(), order, address(regions), address(phrases), torch.get_num_threads())
        return regions, phrases
    with on_device(scores.device):
        if chosen == "triton":
            from loupe_ext.triton import sides as kernels

            return kernels.forward(*games.tensors, p, game, order)
        native = games.native()
        scratch = scratch_for(scores, _C.sides_scratch_bytes_cuda(native, order, False))
        results = address(regions), address(phrases)
        _C.sides_cuda(native, order, *results, address(scratch), current_stream(scores.device))
    return regions, phrases


def _backward(
    grad_regions: Tensor,
    grad_phrases: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
    backend: str,
) -> list[Tensor]:
    _check_grads((grad_regions, grad_phrases), scores, order, cols, rows_of, cols_of, p, game)
    chosen = resolve_backend(backend, scores.device)
    games = Games(scores, cols, rows_of, cols_of, p, game)
    grads = [torch.empty_like(x) for x in (games.scores, games.cols) if x is not None]
    if scores.numel() == 0:
        return grads
    sides_grads = grad_regions.contiguous(), grad_phrases.contiguous()
    results = address(grads[0]), address(grads[1]) if len(grads) == 2 else 0
    given = address(sides_grads[0]), address(sides_grads[1])
    if chosen == "cpu":
        _C.sides_backward_cpu(games.native(), order, *given, *results, torch.get_num_threads())
        return grads
    with on_device(scores.device):
        if chosen == "triton":
            from loupe_ext.triton import sides as kernels

            return kernels.backward(sides_grads, *games.tensors, p, game, order)
        native = games.native()
        scratch = scratch_for(scores, _C.sides_scratch_bytes_cuda(native, order, True))
        _C.sides_backward_cuda(native, order, *given, *results, address(scratch), current_stream(scores.device))
    return grads


def _check_grads(grads: tuple[Tensor, Tensor], scores: Tensor, order: int, *games: Any) -> None:
    shapes = _check(scores, order, *games)
    for name, grad, shape in zip(("grad_regions", "grad_phrases"), grads, shapes, strict=True):
        check_like(name, grad, f"the values or pairs of {name[5:]}", scores.new_empty(1).expand(shape))


def _fake_forward(
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
    backend: str,
) -> tuple[Tensor, Tensor]:
    regions, phrases = _check(scores, order, cols, rows_of, cols_of, p, game)
    return scores.new_empty(regions), scores.new_empty(phrases)


def _fake_backward(
    grad_regions: Tensor,
    grad_phrases: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    order: int,
    backend: str,
) -> list[Tensor]:
    _check_grads((grad_regions, grad_phrases), scores, order, cols, rows_of, cols_of, p, game)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (scores, cols) if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.p, ctx.game, ctx.order, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad_regions: Tensor, grad_phrases: Tensor) -> tuple[Tensor | None, ...]:
    options = ctx.p, ctx.game, ctx.order, ctx.backend
    grads = _sides_backward(grad_regions, grad_phrases, *ctx.saved_tensors, *options)
    return grads[0], grads[1] if len(grads) == 2 else None, None, None, None, None, None, None


_arguments = (
    "Tensor scores, Tensor? col_scores, Tensor? region_lengths, Tensor? phrase_lengths, float? p, str game, int order, "
    "str backend"
)
_sides_backward = register(
    f"sides_backward(Tensor grad_regions, Tensor grad_phrases, {_arguments}) -> Tensor[]", _backward, _fake_backward
)
sides = register(f"sides({_arguments}) -> (Tensor, Tensor)", _forward, _fake_forward, _autograd, _setup_context)
