"""Argument checks that the ops share. Every message names the argument, what was expected and what came."""

import torch
from torch import Tensor

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense (strided) tensor, got layout {value.layout}")


def check_floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {value.dtype}")


def check_like(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """`value` must have the shape, dtype and device of `other`."""
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name} {tuple(other.shape)}, got {tuple(value.shape)}")
    if value.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name} ({other.dtype}), got {value.dtype}")
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name} ({other.device}), got {value.device}")


def check_lengths(name: str, value: object, shape: torch.Size, device: torch.device) -> None:
    """Lengths of a batch: an integer tensor of the batch's shape on its device (None is for the caller to skip)."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected dtype int32 or int64, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, one length a problem, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name}: expected device {device}, got {value.device}")


def check_index(index: object, p: object) -> float | None:
    """The probability of the p-weighted Banzhaf index, or None for the Shapley index."""
    if index not in ("shapley", "banzhaf"):
        raise ValueError(f"index: expected 'shapley' or 'banzhaf', got {index!r}")
    if isinstance(p, bool) or not isinstance(p, (int, float)):
        raise TypeError(f"p: expected a float, got {type(p).__name__}")
    if not 0 < p < 1:
        raise ValueError(f"p: expected a probability strictly between 0 and 1, got {p}")
    return None if index == "shapley" else float(p)
