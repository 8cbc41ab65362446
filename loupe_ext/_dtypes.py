"""The dtypes that losses are computed in, and directions that are finite in them, gradients too."""

import contextlib

import torch
from torch import Tensor


def widened(*tensors: Tensor) -> tuple[torch.dtype, list[Tensor]]:
    """The dtype that floating tensors promote to; and the tensors in it, or in float32 where it is a half type.

    Half types hold neither an epsilon (1e-12 is 0 in float16) nor an area (65504 at most) nor ranks (8 bits).
    """
    dtype = tensors[0].dtype
    for x in tensors[1:]:
        dtype = torch.promote_types(dtype, x.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    return dtype, [x.to(wide) for x in tensors]


def promoted(*tensors: Tensor) -> list[Tensor]:
    """The tensors of `widened` alone."""
    return widened(*tensors)[1]


def at_least_float32(x: Tensor) -> Tensor:
    return promoted(x)[0]


def directions(x: Tensor) -> Tensor:
    """x over its norm along the last dimension; of 0, 0, with a gradient that float16 can hold (not 1 / epsilon)."""
    norm = x.norm(dim=-1, keepdim=True)
    return x / torch.where(norm == 0, 1, norm)


def no_autocast(device: torch.device) -> contextlib.AbstractContextManager[object]:
    known = device.type in ("cpu", "cuda")
    return torch.autocast(device.type, enabled=False) if known else contextlib.nullcontext()
