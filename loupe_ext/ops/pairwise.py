"""Exact region-phrase interactions of the late-interaction (max-mean) game."""

from typing import Any, Literal

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import check_choice, check_index, check_like
from loupe_ext._indices import Index
from loupe_ext.ops._games import GameName, Games, batch_of, check_games
from loupe_ext.ops._native import Backend, address, current_stream, on_device, resolve_backend, scratch_for
from loupe_ext.ops._register import register
from loupe_ext.ops.sides import sides


def pairwise_interactions(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    index: Index = "shapley",
    p: float = 0.5,
    pairs: Literal["cross", "all"] = "cross",
    game: GameName = "max-mean",
    backend: Backend = "auto",
) -> Tensor:
    r"""Interaction of every region with every phrase, or of all pairs of players, exactly, at the price of a sort.

    Regions :math:`i` and phrases :math:`j` are the players of the late-interaction game of LOUPE (Li et al., NeurIPS
    2022, section 3.3), in which a coalition :math:`T` of regions and phrases has the value

    .. math:: v(T) = \tfrac12\Big[\operatorname{mean}_{i \in T} \max_{j \in T} s_{ij}
                     + \operatorname{mean}_{j \in T} \max_{i \in T} s'_{ij}\Big]

    and 0 without a region or without a phrase. The result is
    :math:`I_{ij} = E_T[v(T+i+j) - v(T+i) - v(T+j) + v(T)]`, with the size of :math:`T` uniform and :math:`T` uniform
    given its size (the pairwise Shapley interaction index), or every other player in :math:`T` with probability `p`
    (the p-weighted Banzhaf interaction index). LOUPE samples it; here it is a closed form over the sorted rows and
    columns, :math:`O(MN \log MN)` for all of them (`python_ref/pairwise.py` has the formula). The pairs within a side
    are sums of minima over the rows or columns, :math:`O(MN (M + N))` (`python_ref/sides.py`).

    Args:
        scores: [B, M, N] or [M, N], alignment of M regions with N phrases; float16, bfloat16, float32 or float64.
        col_scores: :math:`s'`, like `scores` in shape, dtype and device, for games whose two directions are normalised
            differently (row and column softmax). None: the same as `scores`.
        region_lengths: [B] int32 or int64 ([] for one problem), how many of the M regions each problem has.
            None: all of them. Entries beyond are never read and come back exactly 0.
        phrase_lengths: the same for the N phrases.
        index: "shapley" or "banzhaf".
        p: probability of the Banzhaf index, strictly between 0 and 1. Not used by "shapley".
        pairs: "cross", regions with phrases; or "all", every two of the M + N players.
        game: "max-mean", as above; or "maxsim", the late interaction of ColBERT (Khattab and Zaharia, SIGIR 2020),
            :math:`v(T) = \sum_{j \in T} \max_{i \in T} s_{ij}`, which takes no `col_scores`.
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        Interactions in the unit of the scores and in their dtype. "cross": in the shape of `scores`. "all": [B, M + N,
        M + N] or [M + N, M + N], regions first, symmetric, 0 on the diagonal. Half types are computed in float32.
        A problem that holds NaN or infinity comes back all NaN; other problems are not touched by it (nor is a result
        defined for scores beyond an eighth of what their dtype, or for half types float32, can hold). On a GPU, where
        lengths cannot be checked without waiting for it, a problem with a length out of range comes back all NaN.

    The result is differentiable once in both inputs, backward, by torch.func too (grad, vjp, jacrev, vmap). It is
    piecewise linear in them; on a tie the gradient is that of the linear piece in which the entry of lower index is the
    larger. The same bits come back for any thread count and any split of the batch.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; or a problem is too large: 2^28 entries on a CPU,
            with CUDA rows or columns that do not fit the GPU's shared memory (about 4,000 float32 or 2,000 float64
            entries on an H100), with Triton 4,096.
        RuntimeError: the backend is absent or cannot run on the tensors' device; or double backward or forward-mode
            differentiation was asked for.

    Example:
        >>> import torch, loupe_ext
        >>> loupe_ext.pairwise_interactions(torch.eye(2))
        tensor([[ 0.7500, -0.2500],
                [-0.2500,  0.7500]])
    """
    probability = check_index(index, p)
    check_choice("pairs", pairs, ("cross", "all"))
    batch = batch_of(scores, col_scores, region_lengths, phrase_lengths, game, backend)
    result = _pairwise(*batch, probability, game, backend)
    if pairs == "all":
        regions, phrases = sides(*batch, probability, game, 2, backend)
        top, bottom = torch.cat([regions, result], 2), torch.cat([result.mT, phrases], 2)
        result = torch.cat([top, bottom], 1)
    return result.squeeze(0) if scores.dim() == 2 else result


def _forward(
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    backend: str,
) -> Tensor:
    check_games(scores, cols, rows_of, cols_of, p, game)
    chosen = resolve_backend(backend, scores.device)
    call = Games(scores, cols, rows_of, cols_of, p, game)
    out = torch.empty_like(call.scores)
    if out.numel() == 0:
        return out
    if chosen == "cpu":
        _C.pairwise_cpu(call.native(), address(out), torch.get_num_threads())
        return out
    with on_device(scores.device):
        if chosen == "triton":
            from loupe_ext.triton import pairwise as kernels

            return kernels.forward(*call.tensors, p, game)
        native = call.native()
        scratch = scratch_for(out, _C.pairwise_scratch_bytes_cuda(native))
        _C.pairwise_cuda(native, address(out), address(scratch), current_stream(scores.device))
    return out


def _backward(
    grad: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    backend: str,
) -> list[Tensor]:
    check_games(scores, cols, rows_of, cols_of, p, game)
    check_like("grad", grad, "scores", scores)
    chosen = resolve_backend(backend, scores.device)
    call = Games(scores, cols, rows_of, cols_of, p, game)
    grads = [torch.empty_like(x) for x in (call.scores, call.cols) if x is not None]
    grad = grad.contiguous()
    if grad.numel() == 0:
        return grads
    results = address(grads[0]), address(grads[1]) if len(grads) == 2 else 0
    if chosen == "cpu":
        _C.pairwise_backward_cpu(call.native(), address(grad), *results, torch.get_num_threads())
        return grads
    with on_device(scores.device):
        if chosen == "triton":
            from loupe_ext.triton import pairwise as kernels

            return kernels.backward(grad, *call.tensors, p, game)
        native = call.native()
        scratch = scratch_for(grad, _C.pairwise_scratch_bytes_cuda(native))
        _C.pairwise_backward_cuda(native, address(grad), *results, address(scratch), current_stream(scores.device))
    return grads


def _fake_forward(
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    backend: str,
) -> Tensor:
    check_games(scores, cols, rows_of, cols_of, p, game)
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _fake_backward(
    grad: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    game: str,
    backend: str,
) -> list[Tensor]:
    check_games(scores, cols, rows_of, cols_of, p, game)
    check_like("grad", grad, "scores", scores)
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (scores, cols) if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.p, ctx.game, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _pairwise_backward(grad, *ctx.saved_tensors, ctx.p, ctx.game, ctx.backend)
    return grads[0], grads[1] if len(grads) == 2 else None, None, None, None, None, None


_arguments = (
    "Tensor scores, Tensor? col_scores, Tensor? region_lengths, Tensor? phrase_lengths, float? p, str game, str backend"
)
_pairwise_backward = register(f"pairwise_backward(Tensor grad, {_arguments}) -> Tensor[]", _backward, _fake_backward)
_pairwise = register(f"pairwise({_arguments}) -> Tensor", _forward, _fake_forward, _autograd, _setup_context)
