"""Who carries a late-interaction score: each query token's maximum, shared out to the document's tokens, exactly."""

from typing import Any

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import check_floating, check_index, check_lengths, check_like, check_probability, check_tensor
from loupe_ext._indices import Index
from loupe_ext.ops._games import MAX_ENTRIES, Games
from loupe_ext.ops._native import Backend, address, current_stream, on_device, resolve_backend, scratch_for
from loupe_ext.ops._register import register


def maxsim_credit(
    scores: Tensor,
    *,
    index: Index = "shapley",
    p: float = 0.5,
    document_lengths: Tensor | None = None,
    query_lengths: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""The credit of every document token for every query token in a MaxSim score (ColBERT, ColPali), exactly.

    The query is fixed and the document's tokens play: a coalition :math:`S` of them has the score
    :math:`\sum_j \max_{i \in S} s_{ij}`, none of them 0. The credit :math:`c_{ij}` is token :math:`i`'s value in the
    game of query token :math:`j` alone, so a row's sum is the token's value in the whole score. With a column in
    descending order, :math:`s_{(1)} \ge \dots \ge s_{(M)}`, and :math:`s_{(M+1)} = 0`, the entry of rank :math:`k` has

    .. math:: c_{(k)} = \sum_{r \ge k} (s_{(r)} - s_{(r+1)})\, a_r,

    :math:`a_r = 1/r` for the Shapley value, :math:`(1-p)^{r-1}` for the p-weighted Banzhaf value
    (`python_ref/maxsim_credit.py` derives it). Shapley credit adds up to the maximum, column by column. In contrast to
    the maximum's winner alone, tokens that would do as well share the credit.

    Args:
        scores: [B, M, N] or [M, N], similarities of M document tokens with N query tokens; float16, bfloat16, float32
            or float64. Negative ones are as good as any.
        index: "shapley" or "banzhaf".
        p: probability of the Banzhaf index, strictly between 0 and 1. Not used by "shapley".
        document_lengths: [B] int32 or int64 ([] for one problem), how many of the M document tokens each problem has.
            None: all of them. Entries beyond are never read, and their credit is exactly 0.
        query_lengths: the same for the N query tokens.
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        The shape, dtype and unit of `scores`. Half types are computed in float32. A problem that holds NaN or an
        infinity is NaN all over, and no other is touched by it; so is one whose lengths are out of range on a GPU,
        where they are not checked, since that would have to wait for it. Equal scores have equal credit, up to
        rounding.

    The result is differentiable once in `scores`, backward, by torch.func too (grad, vjp, jacrev, vmap); where scores
    tie, of equal ones the one of lower index counts as the larger. The same bits come back for any thread count and
    any split of the batch.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value; or M or N is too large for the backend: "triton"
            takes up to 4096, CUDA what fits the GPU's shared memory.
        RuntimeError: the backend is absent or cannot run on the tensors' device; or double backward or forward-mode
            differentiation was asked for.

    Example:
        >>> import torch, loupe_ext
        >>> loupe_ext.maxsim_credit(torch.tensor([[0.75, 0.0], [0.75, 0.5], [0.0, 0.0]]))
        tensor([[0.3750, 0.0000],
                [0.3750, 0.5000],
                [0.0000, 0.0000]])
    """
    probability = check_index(index, p)
    check_tensor("scores", scores)
    lengths = {"document_lengths": document_lengths, "query_lengths": query_lengths}
    for name, value in lengths.items():
        if value is not None:
            check_tensor(name, value)
    resolve_backend(backend, scores.device)
    if scores.dim() != 2:
        return _credit(scores, document_lengths, query_lengths, probability, backend)
    for name, value in lengths.items():
        if value is not None:
            check_lengths(name, value, scores.shape[:0], scores.device)
    batch = (None if x is None else x.unsqueeze(0) for x in (scores, *lengths.values()))
    return _credit(*batch, probability, backend).squeeze(0)


def _check(scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None) -> None:
    if scores.dim() != 3:
        raise ValueError(f"scores: expected shape [B, M, N] or [M, N], got {tuple(scores.shape)}")
    check_floating("scores", scores)
    for name, lengths in (("document_lengths", rows_of), ("query_lengths", cols_of)):
        if lengths is not None:
            check_lengths(name, lengths, scores.shape[:1], scores.device)
    M, N = scores.shape[1:]
    if M * (N + 8) >= MAX_ENTRIES:
        raise ValueError(f"scores: expected fewer than 2^28 entries per problem, got {M} x {N}")
    check_probability(p)


def _run(
    grad: Tensor | None, scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str
) -> Tensor:
    """The credit or, of a gradient of it, that of the scores."""
    chosen = resolve_backend(backend, scores.device)
    games = Games(scores, None, rows_of, cols_of, p, "maxsim")
    out = torch.empty_like(games.scores)
    if out.numel() == 0:
        return out
    backward, grad = grad is not None, None if grad is None else grad.contiguous()
    addresses = (address(grad), address(out)) if backward else (address(out),)
    if chosen == "cpu":
        kernel: Any = _C.maxsim_credit_backward_cpu if backward else _C.maxsim_credit_cpu
        kernel(games.native(), *addresses, torch.get_num_threads())
        return out
    with on_device(scores.device):
        if chosen == "triton":
            from loupe_ext.triton import maxsim_credit as kernels

            return kernels.run(grad, games.scores, games.rows_of, games.cols_of, p)
        native = games.native()
        scratch = scratch_for(scores, _C.maxsim_credit_scratch_bytes_cuda(native, backward))
        kernel = _C.maxsim_credit_backward_cuda if backward else _C.maxsim_credit_cuda
        kernel(native, *addresses, address(scratch), current_stream(scores.device))
    return out


def _forward(scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str) -> Tensor:
    _check(scores, rows_of, cols_of, p)
    return _run(None, scores, rows_of, cols_of, p, backend)


def _backward(
    grad: Tensor, scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str
) -> Tensor:
    _check(scores, rows_of, cols_of, p)
    check_like("grad", grad, "scores", scores)
    return _run(grad, scores, rows_of, cols_of, p, backend)


def _fake_forward(
    scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str
) -> Tensor:
    _check(scores, rows_of, cols_of, p)
    return torch.empty_like(scores, memory_format=torch.contiguous_format)


def _fake_backward(
    grad: Tensor, scores: Tensor, rows_of: Tensor | None, cols_of: Tensor | None, p: float | None, backend: str
) -> Tensor:
    check_like("grad", grad, "scores", scores)
    return _fake_forward(scores, rows_of, cols_of, p, backend)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.p, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return _credit_backward(grad, *ctx.saved_tensors, ctx.p, ctx.backend), None, None, None, None


_arguments = "Tensor scores, Tensor? document_lengths, Tensor? query_lengths, float? p, str backend"
_credit_backward = register(f"maxsim_credit_backward(Tensor grad, {_arguments}) -> Tensor", _backward, _fake_backward)
_credit = register(f"maxsim_credit({_arguments}) -> Tensor", _forward, _fake_forward, _autograd, _setup_context)
