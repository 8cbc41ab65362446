"""Moments of coalitions: what every evaluated coalition says about every pair of players."""

from typing import Any

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext._checks import check_floating, check_int, check_tensor
from loupe_ext.ops._native import (
    Backend,
    address,
    current_stream,
    dense_lengths,
    dtype_name,
    on_device,
    resolve_backend,
    scratch_for,
)
from loupe_ext.ops._register import register
from loupe_ext.ops.coalitions import MAX_PLAYERS


def coalition_moments(
    coalitions: Tensor,
    values: Tensor,
    n: int,
    *,
    offsets: Tensor | None = None,
    backend: Backend = "auto",
) -> Tensor:
    r"""For every pair of players, the sum of the values of the coalitions that hold both.

    .. math:: M_{ij} = \sum_k v_k\, x_{ki} x_{kj}

    with :math:`x_{ki} = 1` if player :math:`i` is in coalition :math:`k`, otherwise 0; on the diagonal, the sum over
    the coalitions that hold :math:`i`. With :math:`V = \sum_k v_k` it says how much value fell to coalitions with both
    of :math:`i, j` (:math:`M_{ij}`), only :math:`i` (:math:`M_{ii} - M_{ij}`) or neither
    (:math:`V - M_{ii} - M_{jj} + M_{ij}`): an estimator of all pair interactions is a few sums over it, in which every
    evaluated coalition serves every pair. An estimator that takes the coalitions of each size apart sorts them by size
    and passes the bounds as `offsets`.

    Args:
        coalitions: [S, ceil(n / 64)] int64, packed as by `pack_coalitions` and `sample_coalitions`. Bits beyond `n` are
            ignored.
        values: [S] or [C, S], the value of each coalition (in C games or channels), on the device of `coalitions`;
            float16, bfloat16, float32 or float64.
        n: number of players, 1 to 1024.
        offsets: [G + 1] int64, on a CPU or on the device of `coalitions`: rows offsets[g] to offsets[g + 1] - 1 are
            group g. From 0 to S, never decreasing; a group may be empty. None: all rows are one group, which has no
            dimension in the result.
        backend: "auto" (by device), "cpu", "cuda" or "triton".

    Returns:
        [n, n], [G, n, n], [C, n, n] or [C, G, n, n] by the shapes of `values` and `offsets`, in the dtype of `values`;
        symmetric, and 0 for pairs that no coalition holds. A value that is NaN or infinite reaches only the pairs of
        players of its coalition, in its channel and group. Float32 and half types are summed in float64 on a CPU; on a
        GPU in float32, 16 coalitions at a time, and between these with the rounding errors kept. So the error is within
        1e-6 of the sum of the absolute values for any number of coalitions (half types: before the result is rounded
        to its dtype).

    The result is differentiable once in `values`, backward, by torch.func too (grad, vjp, jacrev, vmap). The same bits
    come back for any thread count. Offsets that lie on a GPU are not checked, since that would have to wait for it:
    where they leave 0..S or decrease, which rows are summed is not defined, but nothing outside of the tensors is read.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong shape, device or value.
        RuntimeError: the backend is absent or cannot run on the tensors' device; or double backward or forward-mode
            differentiation was asked for.

    Example:
        >>> import torch, loupe_ext
        >>> held = loupe_ext.pack_coalitions(torch.tensor([[True, True, False], [False, True, True]]))
        >>> loupe_ext.coalition_moments(held, torch.tensor([2.0, 5.0]), 3)
        tensor([[2., 2., 0.],
                [2., 7., 5.],
                [0., 5., 5.]])
    """
    check_tensor("coalitions", coalitions)
    check_tensor("values", values)
    if offsets is not None:
        check_tensor("offsets", offsets)
    n = check_int("n", n, 1, MAX_PLAYERS)
    resolve_backend(backend, values.device)
    if values.dim() not in (1, 2):
        raise ValueError(f"values: expected shape [S] or [C, S], got {tuple(values.shape)}")
    out = _moments(coalitions, values.unsqueeze(0) if values.dim() == 1 else values, offsets, n, backend)
    if offsets is None:
        out = out.squeeze(1)
    return out.squeeze(0) if values.dim() == 1 else out


def _check(coalitions: Tensor, offsets: Tensor | None, n: int, S: int, device: torch.device) -> None:
    if not 1 <= n <= MAX_PLAYERS:
        raise ValueError(f"n: expected 1 to {MAX_PLAYERS}, got {n}")
    words = (n + 63) // 64
    if coalitions.dtype != torch.int64:
        raise TypeError(f"coalitions: expected dtype int64, got {coalitions.dtype}")
    if coalitions.dim() != 2 or coalitions.shape[0] != S or coalitions.shape[1] != words:
        raise ValueError(f"coalitions: expected shape [S, ceil(n / 64)] = {(S, words)}, got {tuple(coalitions.shape)}")
    if coalitions.device != device:
        raise ValueError(f"coalitions: expected the device of values ({device}), got {coalitions.device}")
    if offsets is None:
        return
    if offsets.dtype != torch.int64:
        raise TypeError(f"offsets: expected dtype int64, got {offsets.dtype}")
    if offsets.dim() != 1 or offsets.shape[0] == 0:
        raise ValueError(f"offsets: expected shape [G + 1], got {tuple(offsets.shape)}")
    if offsets.device.type != "cpu" and offsets.device != device:
        raise ValueError(f"offsets: expected device cpu or {device}, got {offsets.device}")


def _check_values(values: Tensor) -> None:
    if values.dim() != 2:
        raise ValueError(f"values: expected shape [C, S], got {tuple(values.shape)}")
    check_floating("values", values)


def _check_grad(grad: Tensor, coalitions: Tensor, offsets: Tensor | None) -> None:
    groups = _groups(offsets)
    if grad.dim() != 4 or grad.shape[1] != groups or grad.shape[2] != grad.shape[3]:
        raise ValueError(f"grad: expected shape [C, {groups}, n, n], got {tuple(grad.shape)}")
    check_floating("grad", grad)
    if coalitions.dim() != 2:
        raise ValueError(f"coalitions: expected shape [S, ceil(n / 64)], got {tuple(coalitions.shape)}")


def _groups(offsets: Tensor | None) -> int:
    return 1 if offsets is None else offsets.shape[0] - 1


class _Call:
    """One call of the kernels: dense tensors on one device, and offsets checked where that needs no wait."""

    def __init__(self, coalitions: Tensor, offsets: Tensor | None) -> None:
        self.coalitions, self.offsets, self.groups = coalitions.contiguous(), dense_lengths(offsets), _groups(offsets)
        if self.offsets is not None and self.offsets.device.type == "cpu":
            _C.check_offsets(address(self.offsets), self.groups, coalitions.shape[0])
            self.offsets = self.offsets.to(coalitions.device, non_blocking=True)

    def native(self, values: Tensor, n: int) -> _C.MomentsCall:
        sizes = values.shape[0], self.coalitions.shape[0], self.groups, n
        return _C.MomentsCall(address(self.coalitions), address(self.offsets), *sizes, dtype_name(values))


def _forward(coalitions: Tensor, values: Tensor, offsets: Tensor | None, n: int, backend: str) -> Tensor:
    _check_values(values)
    _check(coalitions, offsets, n, values.shape[1], values.device)
    chosen = resolve_backend(backend, values.device)
    call, values = _Call(coalitions, offsets), values.contiguous()
    out = values.new_empty(values.shape[0], call.groups, n, n)
    if out.numel() == 0 or values.numel() == 0:
        return out.zero_()
    if chosen == "cpu":
        _C.moments_cpu(call.native(values, n), address(values), address(out), torch.get_num_threads())
        return out
    with on_device(values.device):
        if chosen == "triton":
            from loupe_ext.triton import moments as kernels

            return kernels.forward(call.coalitions, values, call.offsets, n)
        native = call.native(values, n)
        scratch = scratch_for(out, _C.moments_scratch_bytes_cuda(native))
        _C.moments_cuda(native, address(values), address(out), address(scratch), current_stream(values.device))
    return out


def _backward(grad: Tensor, coalitions: Tensor, offsets: Tensor | None, backend: str) -> Tensor:
    _check_grad(grad, coalitions, offsets)
    n = grad.shape[-1]
    _check(coalitions, offsets, n, coalitions.shape[0], grad.device)
    chosen = resolve_backend(backend, grad.device)
    call, grad = _Call(coalitions, offsets), grad.contiguous()
    out = grad.new_empty(grad.shape[0], coalitions.shape[0])
    if out.numel() == 0 or grad.numel() == 0:
        return out.zero_()
    if chosen == "cpu":
        _C.moments_backward_cpu(call.native(grad, n), address(grad), address(out), torch.get_num_threads())
        return out
    with on_device(grad.device):
        if chosen == "triton":
            from loupe_ext.triton import moments as kernels

            return kernels.backward(grad, call.coalitions, call.offsets)
        _C.moments_backward_cuda(call.native(grad, n), address(grad), address(out), current_stream(grad.device))
    return out


def _fake_forward(coalitions: Tensor, values: Tensor, offsets: Tensor | None, n: int, backend: str) -> Tensor:
    _check_values(values)
    _check(coalitions, offsets, n, values.shape[1], values.device)
    return values.new_empty(values.shape[0], _groups(offsets), n, n)


def _fake_backward(grad: Tensor, coalitions: Tensor, offsets: Tensor | None, backend: str) -> Tensor:
    _check_grad(grad, coalitions, offsets)
    _check(coalitions, offsets, grad.shape[-1], coalitions.shape[0], grad.device)
    return grad.new_empty(grad.shape[0], coalitions.shape[0])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    coalitions, _, offsets, _, ctx.backend = inputs
    ctx.save_for_backward(coalitions, offsets)


def _autograd(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return None, _moments_backward(grad, *ctx.saved_tensors, ctx.backend), None, None, None


_moments_backward = register(
    "moments_backward(Tensor grad, Tensor coalitions, Tensor? offsets, str backend) -> Tensor",
    _backward,
    _fake_backward,
    shared=(1, 2),
)
_moments = register(
    "moments(Tensor coalitions, Tensor values, Tensor? offsets, SymInt n, str backend) -> Tensor",
    _forward,
    _fake_forward,
    _autograd,
    _setup_context,
    shared=(0, 2),
)
