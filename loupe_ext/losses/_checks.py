"""Argument checks that the losses share."""

import torch
from torch import Tensor

from loupe_ext.ops._checks import check_floating, check_lengths, check_tensor


def check_features(name: str, value: object, dims: str) -> Tensor:
    """A floating tensor with the dimensions named in `dims`, one character each: letters, or a digit for its size."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    fits = value.dim() == len(dims) and all(
        not d.isdigit() or int(d) == s for d, s in zip(dims, value.shape, strict=True)
    )
    if not fits or 0 in value.shape:
        raise ValueError(f"{name}: expected shape [{', '.join(dims)}], none of them 0, got {tuple(value.shape)}")
    check_floating(name, value)
    return value


def check_same(name: str, value: Tensor, other_name: str, other: Tensor, dims: dict[str, tuple[int, int]]) -> None:
    """The dtypes must agree, and sizes: `dims` maps a dimension's letter to its places in `value` and in `other`."""
    for letter, (i, j) in dims.items():
        if value.shape[i] != other.shape[j]:
            raise ValueError(
                f"{name}: expected the {letter} of {other_name} ({other.shape[j]}) at dimension {i}, "
                f"got {tuple(value.shape)}"
            )
    if value.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name} ({other.dtype}), got {value.dtype}")


def length_mask(name: str, lengths: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """[B, n] booleans, True within each problem's length; the lengths must lie in 1..n. None: all True."""
    B, n = like.shape[0], like.shape[dim]
    if lengths is None:
        return torch.ones(B, n, dtype=torch.bool, device=like.device)
    check_lengths(name, lengths, torch.Size([B]), like.device)
    if B and not bool(((lengths >= 1) & (lengths <= n)).all()):
        raise ValueError(f"{name}: expected lengths in 1..{n}, got {lengths.min().item()}..{lengths.max().item()}")
    return torch.arange(n, device=like.device) < lengths[:, None]
