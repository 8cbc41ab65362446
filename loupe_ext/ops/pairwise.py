"""Exact region-phrase interactions of the late-interaction (max-mean) game."""

from typing import Any

import torch
from torch import Tensor

from loupe_ext import _C
from loupe_ext.ops._checks import check_floating, check_index, check_lengths, check_like, check_tensor
from loupe_ext.ops._native import address, current_stream, dense_lengths, dtype_name, resolve_backend
from loupe_ext.ops._register import register

MAX_ENTRIES = 2**28  # of one problem's scores, padded; the CPU kernel's sort keys carry an entry's offset in 28 bits


def pairwise_interactions(
    scores: Tensor,
    col_scores: Tensor | None = None,
    *,
    region_lengths: Tensor | None = None,
    phrase_lengths: Tensor | None = None,
    index: str = "shapley",
    p: float = 0.5,
    backend: str = "auto",
) -> Tensor:
    r"""Interaction of every region with every phrase, exactly, at the price of a sort.

    Regions :math:`i` and phrases :math:`j` are the players of the late-interaction game of LOUPE (Li et al., NeurIPS
    2022, section 3.3), in which a coalition :math:`T` of regions and phrases is worth

    .. math:: v(T) = \tfrac12\Big[\operatorname{mean}_{i \in T} \max_{j \in T} s_{ij}
                     + \operatorname{mean}_{j \in T} \max_{i \in T} s'_{ij}\Big]

    and 0 without a region or without a phrase. The result is
    :math:`I_{ij} = E_T[v(T+i+j) - v(T+i) - v(T+j) + v(T)]`, with the size of :math:`T` uniform and :math:`T` uniform
    given its size (the pairwise Shapley interaction index), or every other player in :math:`T` with probability `p`
    (the p-weighted Banzhaf interaction index). LOUPE samples it; here it is a closed form over the sorted rows and
    columns, :math:`O(MN \log MN)` for all pairs (`python_ref/pairwise.py` has the formula).

    Args:
        scores: [B, M, N] or [M, N], alignment of M regions with N phrases; float16, bfloat16, float32 or float64.
        col_scores: :math:`s'`, like `scores` in shape, dtype and device, for games whose two directions are normalised
            differently (row and column softmax). None: the same as `scores`.
        region_lengths: [B] int32 or int64 ([] for one problem), how many of the M regions each problem has.
            None: all of them. Entries beyond are never read and come back exactly 0.
        phrase_lengths: the same for the N phrases.
        index: "shapley" or "banzhaf".
        p: probability of the Banzhaf index, strictly between 0 and 1. Not used by "shapley".
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        Interactions in the unit of the scores, shape and dtype of `scores`. Half types are computed in float32.
        A problem that holds NaN or infinity comes back all NaN; other problems are not touched by it. On a GPU, where
        lengths cannot be checked without waiting for it, a problem with a length out of range comes back all NaN.

    The result is differentiable once in both inputs. It is piecewise linear in them; on a tie the gradient is that of
    the linear piece in which the entry of lower index is the larger. The same bits come back for any thread count and
    any split of the batch.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: the backend is absent or cannot run on the tensors' device; or double backward was asked for.

    Example:
        >>> import torch, loupe_ext
        >>> loupe_ext.pairwise_interactions(torch.eye(2))
        tensor([[ 0.7500, -0.2500],
                [-0.2500,  0.7500]])
    """
    check_tensor("scores", scores)
    if scores.dim() not in (2, 3):
        raise ValueError(f"scores: expected shape [B, M, N] or [M, N], got {tuple(scores.shape)}")
    check_floating("scores", scores)
    if col_scores is not None:
        check_tensor("col_scores", col_scores)
        check_like("col_scores", col_scores, "scores", scores)
    for name, lengths in (("region_lengths", region_lengths), ("phrase_lengths", phrase_lengths)):
        if lengths is not None:
            check_lengths(name, lengths, scores.shape[:-2], scores.device)
    M, N = scores.shape[-2:]
    if M * (N + 8) >= MAX_ENTRIES:
        raise ValueError(f"scores: expected fewer than 2^28 entries a problem, got {M} x {N}")
    probability = check_index(index, p)
    resolve_backend(backend, scores.device)
    if scores.dim() == 3:
        return _pairwise(scores, col_scores, region_lengths, phrase_lengths, probability, backend)
    batch = [None if x is None else x.unsqueeze(0) for x in (scores, col_scores, region_lengths, phrase_lengths)]
    return _pairwise(*batch, probability, backend).squeeze(0)


def _dense(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _forward(
    scores: Tensor, cols: Tensor | None, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str
) -> Tensor:
    chosen = resolve_backend(backend, scores.device)
    s, c, m, n = scores.contiguous(), _dense(cols), dense_lengths(rows_of), dense_lengths(cols_of)
    if chosen == "triton":
        from loupe_ext.triton import pairwise as kernels

        return kernels.forward(s, c, m, n, p)
    out = torch.empty_like(s)
    B, M, N = s.shape
    call = _C.PairwiseCall(address(s), address(c), address(m), address(n), B, M, N, dtype_name(s), p)
    if chosen == "cpu":
        _C.pairwise_cpu(call, address(out), torch.get_num_threads())
    else:
        with torch.cuda.device(s.device):
            scratch = s.new_empty(_C.pairwise_scratch_bytes_cuda(call), dtype=torch.uint8)
            _C.pairwise_cuda(call, address(out), address(scratch), current_stream(s.device))
    return out


def _backward(
    grad: Tensor,
    scores: Tensor,
    cols: Tensor | None,
    rows_of: Tensor | None,
    cols_of: Tensor | None,
    p: float | None,
    backend: str,
) -> list[Tensor]:
    chosen = resolve_backend(backend, scores.device)
    g, s, c, m, n = grad.contiguous(), scores.contiguous(), _dense(cols), dense_lengths(rows_of), dense_lengths(cols_of)
    if chosen == "triton":
        from loupe_ext.triton import pairwise as kernels

        return kernels.backward(g, s, c, m, n, p)
    grads = [torch.empty_like(x) for x in (s, c) if x is not None]
    B, M, N = s.shape
    call = _C.PairwiseCall(address(s), address(c), address(m), address(n), B, M, N, dtype_name(s), p)
    results = address(grads[0]), 0 if c is None else address(grads[1])
    if chosen == "cpu":
        _C.pairwise_backward_cpu(call, address(g), *results, torch.get_num_threads())
    else:
        with torch.cuda.device(s.device):
            scratch = s.new_empty(_C.pairwise_scratch_bytes_cuda(call), dtype=torch.uint8)
            _C.pairwise_backward_cuda(call, address(g), *results, address(scratch), current_stream(s.device))
    return grads


def _fake_forward(scores: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _fake_backward(grad: Tensor, scores: Tensor, cols: Tensor | None, *rest: Any) -> list[Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (scores, cols) if x is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.p, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    grads = _pairwise_backward(grad, *ctx.saved_tensors, ctx.p, ctx.backend)
    return grads[0], grads[1] if len(grads) == 2 else None, None, None, None, None


_arguments = "Tensor scores, Tensor? col_scores, Tensor? region_lengths, Tensor? phrase_lengths, float? p, str backend"
_pairwise_backward = register(f"pairwise_backward(Tensor grad, {_arguments}) -> Tensor[]", _backward, _fake_backward)
_pairwise = register(f"pairwise({_arguments}) -> Tensor", _forward, _fake_forward, _autograd, _setup_context)
