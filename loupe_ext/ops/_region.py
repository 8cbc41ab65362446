"""The kernels of `region_interactions` as ops: walks of the pooled-cosine game, maxima of the late-interaction game."""

import torch
from torch import Tensor

import loupe_ext._C as _C
from loupe_ext.ops._native import address, current_stream, dtype_name, on_device, resolve_backend, scratch_for
from loupe_ext.ops._register import register
from loupe_ext.ops.coalitions import MAX_PLAYERS


def _check_walks(a: Tensor, gram: Tensor, regions: Tensor, orders: Tensor) -> None:
    if a.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"values: expected dtype float32 or float64, got {a.dtype}")
    if a.dim() != 2 or a.shape[1] > MAX_PLAYERS:
        raise ValueError(f"values: expected shape [B, n], n up to {MAX_PLAYERS}, got {tuple(a.shape)}")
    B, n = a.shape
    if gram.dtype != a.dtype or regions.dtype != torch.int64 or orders.dtype != torch.int32:
        got = f"{gram.dtype}, {regions.dtype}, {orders.dtype}"
        raise TypeError(f"gram, regions, orders: expected {a.dtype}, torch.int64, torch.int32, got {got}")
    if gram.shape != (B, n, n):
        raise ValueError(f"gram: expected shape {(B, n, n)}, got {tuple(gram.shape)}")
    if regions.dim() != 3 or regions.shape[0] != B or regions.shape[2] != (n + 63) // 64:
        raise ValueError(f"regions: expected shape ({B}, R, {(n + 63) // 64}), got {tuple(regions.shape)}")
    if orders.dim() != 3 or orders.shape[0] != B or orders.shape[2] != n:
        raise ValueError(f"orders: expected shape ({B}, K, {n}), got {tuple(orders.shape)}")
    if not gram.device == regions.device == orders.device == a.device:
        got = f"{gram.device}, {regions.device}, {orders.device}"
        raise ValueError(f"gram, regions, orders: expected the device of values ({a.device}), got {got}")


def _walks(a: Tensor, gram: Tensor, regions: Tensor, orders: Tensor, prefixes: bool, backend: str) -> Tensor:
    _check_walks(a, gram, regions, orders)
    chosen = resolve_backend(backend, a.device)
    (B, n), R, K = a.shape, regions.shape[1], orders.shape[1]
    out = a.new_empty(B, R, K)
    if n == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    a, gram, regions, orders = (x.contiguous() for x in (a, gram, regions, orders))
    with on_device(a.device):
        if chosen == "triton":
            from loupe_ext.triton import region as kernels

            kernels.walks(out, a, gram, regions, orders, prefixes)
            return out
        sizes = B, R, K, n, prefixes, dtype_name(a)
        call = _C.RegionCall(address(a), address(gram), address(regions), address(orders), *sizes)
        if chosen == "cpu":
            _C.region_walks_cpu(call, address(out), torch.get_num_threads())
        else:
            scratch = scratch_for(out, _C.region_scratch_bytes_cuda(call))
            _C.region_walks_cuda(call, address(out), address(scratch), current_stream(a.device))
    return out


def _fake_walks(a: Tensor, gram: Tensor, regions: Tensor, orders: Tensor, prefixes: bool, backend: str) -> Tensor:
    _check_walks(a, gram, regions, orders)
    return a.new_empty(a.shape[0], regions.shape[1], orders.shape[1])


region_walks = register(
    "region_walks(Tensor values, Tensor gram, Tensor regions, Tensor orders, bool prefixes, str backend) -> Tensor",
    _walks,
    _fake_walks,
)


def _check_maxima(u: Tensor, order: Tensor, regions: Tensor, slopes: Tensor, lengths: Tensor) -> None:
    if u.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"sorted: expected dtype float32 or float64, got {u.dtype}")
    if u.dim() != 3 or u.shape[2] > MAX_PLAYERS:
        raise ValueError(f"sorted: expected shape [B, N, n], n up to {MAX_PLAYERS}, got {tuple(u.shape)}")
    B, _, n = u.shape
    wanted = {
        "order": (order, torch.int64, u.shape),
        "regions": (regions, torch.int64, (B, *regions.shape[1:2], (n + 63) // 64)),
        "slopes": (slopes, u.dtype, (n + 1,)),
        "lengths": (lengths, torch.int64, (B,)),
    }
    for name, (value, dtype, shape) in wanted.items():
        if value.dtype != dtype:
            raise TypeError(f"{name}: expected dtype {dtype}, got {value.dtype}")
        if value.shape != shape:
            raise ValueError(f"{name}: expected shape {tuple(shape)}, got {tuple(value.shape)}")
        if value.device != u.device:
            raise ValueError(f"{name}: expected the device of sorted ({u.device}), got {value.device}")


def _maxima(u: Tensor, order: Tensor, regions: Tensor, slopes: Tensor, lengths: Tensor, backend: str) -> Tensor:
    _check_maxima(u, order, regions, slopes, lengths)
    chosen = resolve_backend(backend, u.device)
    (B, N, n), R = u.shape, regions.shape[1]
    out = u.new_empty(B, R)
    if n == 0:
        return out.zero_()
    if out.numel() == 0:
        return out
    u, order, regions, slopes = (x.contiguous() for x in (u, order, regions, slopes))
    lengths = lengths.contiguous()
    with on_device(u.device):
        if chosen == "triton":
            from loupe_ext.triton import region as kernels

            kernels.maxima(out, u, order, regions, slopes, lengths)
            return out
        sizes = B, R, N, n, dtype_name(u)
        call = _C.MaximaCall(address(u), address(order), address(regions), address(slopes), address(lengths), *sizes)
        if chosen == "cpu":
            _C.region_maxima_cpu(call, address(out), torch.get_num_threads())
        else:
            _C.region_maxima_cuda(call, address(out), current_stream(u.device))
    return out


def _fake_maxima(u: Tensor, order: Tensor, regions: Tensor, slopes: Tensor, lengths: Tensor, backend: str) -> Tensor:
    _check_maxima(u, order, regions, slopes, lengths)
    return u.new_empty(u.shape[0], regions.shape[1])


region_maxima = register(
    "region_maxima(Tensor sorted, Tensor order, Tensor regions, Tensor slopes, Tensor lengths, str backend) -> Tensor",
    _maxima,
    _fake_maxima,
    shared=(3,),
)
