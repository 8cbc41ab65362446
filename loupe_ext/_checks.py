"""Argument checks that the whole package shares. Every message names the argument, what was expected and what came."""

import contextlib
import contextvars
import math
import numbers
import operator
import reprlib
from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
NO_FORWARD_MODE = "forward-mode differentiation is not supported (jvp, jacfwd, hessian)"
_REPR = reprlib.Repr()
_REPR.maxstring = 80
values_are_read = contextvars.ContextVar("values_are_read", default=True)


@contextlib.contextmanager
def unchecked() -> Iterator[None]:
    """Within it no check reads a tensor's values, which on a GPU would wait for it: who enters has checked them.

    Shapes, dtypes and devices are checked as ever. Lengths that are out of range give wrong numbers, or NaN.
    """
    token = values_are_read.set(False)
    try:
        yield
    finally:
        values_are_read.reset(token)


def shown(value: object) -> str:
    """The value as a message shows it: a short line, whatever its size, depth or kind."""
    try:
        return _REPR.repr(value).replace("\n", " ")[:120]
    except Exception:  # an int of thousands of digits, or what cannot show itself
        return f"a value of {type(value).__name__}"


def check_tensor(name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided or value.is_nested:
        got = "a nested one" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name}: expected a dense (strided) tensor, got {got}")


def layers(value: Tensor) -> list[Tensor]:
    """The tensor under each of torch.func's transforms, outside last. (vmap lets nobody read but that one's values.)"""
    found = [value]
    if not torch.compiler.is_compiling():
        while torch._C._functorch.is_functorch_wrapped_tensor(found[-1]):
            found.append(torch._C._functorch.get_unwrapped(found[-1]))
    return found


def is_mapped(value: Tensor) -> bool:
    """Whether torch.vmap maps over it."""
    return any(torch._C._functorch.is_batchedtensor(x) for x in layers(value)[:-1])


def check_no_tangent(op: str, names: Iterable[str], values: Iterable[object]) -> None:
    """The ops have no forward-mode derivative, and torch would take its absence for zero."""
    if forward_ad._current_level < 0:
        return
    for name, value in zip(names, values, strict=False):
        if not isinstance(value, Tensor) or torch._C._functorch.is_batchedtensor(value):  # the latter can't be unpacked
            continue
        if forward_ad.unpack_dual(value).tangent is not None:
            raise RuntimeError(f"{name}: {NO_FORWARD_MODE} by {op}, got a dual tensor")


def check_floating(name: str, value: Tensor) -> None:
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {value.dtype}")


def check_kind(name: str, value: object, kind: Any, expected: str) -> None:
    """`kind` is a class, a tuple of classes or a runtime protocol, which the message calls `expected`."""
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")


def check_dtype(name: str, value: object) -> None:
    """None, or the dtype of a floating result."""
    if value is not None and not (isinstance(value, torch.dtype) and value in FLOATS):
        raise TypeError(f"{name}: expected None, float16, bfloat16, float32 or float64, got {shown(value)}")


def check_like(name: str, value: Tensor, other_name: str, other: Tensor, dtype: bool = True) -> None:
    """`value` must have the shape, device and (without `dtype`, any floating) dtype of `other`."""
    check_tensor(name, value)
    if value.shape != other.shape:
        raise ValueError(f"{name}: expected the shape of {other_name} {tuple(other.shape)}, got {tuple(value.shape)}")
    if not dtype:
        check_floating(name, value)
    elif value.dtype != other.dtype:
        raise TypeError(f"{name}: expected the dtype of {other_name} ({other.dtype}), got {value.dtype}")
    check_device(name, value, other_name, other)


def check_lengths(name: str, value: object, shape: torch.Size, device: torch.device) -> None:
    """Lengths of a batch: an integer tensor of the batch's shape on its device (None is for the caller to skip)."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name}: expected dtype int32 or int64, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {tuple(shape)}, one length per problem, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"{name}: expected device {device}, got {value.device}")


def check_int(name: str, value: object, least: int, most: int) -> int:
    """The value as an int: whatever counts (NumPy's integers too), but no bool."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}") from None
    if not least <= number <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {shown(number)}")
    return number


def check_flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return bool(value)


def check_names(name: str, value: Any, count: int | None = None) -> tuple[str, ...]:
    """A sequence of str (not one str, which is a sequence of its letters), `count` of them."""
    try:
        fits = not isinstance(value, str | Set | Mapping) and len(value) >= 0 and all(isinstance(x, str) for x in value)
    except TypeError:  # it has no length, or no elements
        fits = False
    if not fits:
        raise TypeError(f"{name}: expected a sequence of str, got {shown(value)}")
    names = tuple(value)
    if count is not None and len(names) != count:
        raise ValueError(f"{name}: expected {count} names, got {len(names)}")
    return names


def as_device(name: str, value: object) -> torch.device:
    if not isinstance(value, str | torch.device):
        raise TypeError(f"{name}: expected a torch.device or its name, got {type(value).__name__}")
    try:
        return torch.device(value)
    except RuntimeError:
        raise ValueError(f"{name}: expected a torch.device or its name, got {shown(value)}") from None


def check_number(
    name: str, value: object, least: float = -math.inf, most: float = math.inf, above: bool = False
) -> float:
    """The value as a finite float from `least` (with `above`, strictly above it) to `most`."""
    if type(value) is float and least < value < most:  # what comes nearly always
        return value
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:  # an int beyond every float
        number = math.inf if value > 0 else -math.inf  # type: ignore[operator]
    if not (math.isfinite(number) and least <= number <= most) or (above and number == least):
        bounds = f"above {least:g}" if above else f"at least {least:g}" if least > -math.inf else ""
        bounds += (" and " if bounds else "") + f"at most {most:g}" if most < math.inf else ""
        raise ValueError(f"{name}: expected a finite number{' ' if bounds else ''}{bounds}, got {number}")
    return number


def check_index(index: object, p: object) -> float | None:
    """The probability of the p-weighted Banzhaf index, or None for the Shapley index."""
    check_choice("index", index, ("shapley", "banzhaf"))
    try:
        probability = check_number("p", p, 0, 1, above=True)
    except ValueError:
        probability = 1.0
    if probability == 1:
        raise ValueError(f"p: expected a probability strictly between 0 and 1, got {shown(p)}")
    return None if index == "shapley" else probability


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected {' or '.join(map(repr, choices))}, got {shown(value)}")


def check_probability(p: float | None) -> None:
    """The same for an op called past its public function."""
    if p is not None and not 0 < p < 1:
        raise ValueError(f"p: expected None or a probability strictly between 0 and 1, got {p}")


def check_features(name: str, value: object, dims: str) -> Tensor:
    """A floating tensor with the dimensions named in `dims`, one character each: letters, or a digit for its size."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if not _has_dims(value, dims) or 0 in value.shape:
        raise ValueError(f"{name}: expected shape [{', '.join(dims)}], none of them 0, got {tuple(value.shape)}")
    check_floating(name, value)
    return value


def check_ints(name: str, value: object, dims: str, least: int = 0) -> Tensor:
    """An int64 tensor with the dimensions named in `dims` as in `check_features`, each of size `least` or more."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype != torch.int64 or not _has_dims(value, dims) or min(value.shape) < least:
        at_least = f", none of them below {least}" if least else ""
        got = f"{value.dtype} {tuple(value.shape)}"
        raise ValueError(f"{name}: expected int64 of shape [{', '.join(dims)}]{at_least}, got {got}")
    return value


def _has_dims(value: Tensor, dims: str) -> bool:
    return len(dims) == value.dim() and all(d.isalpha() or d == str(n) for d, n in zip(dims, value.shape, strict=True))


def check_range(name: str, value: Tensor, least: int, most: int) -> None:
    """Integers of a tensor, which are read unless `unchecked`."""
    if value.numel() and values_are_read.get() and not least <= value.min() <= value.max() <= most:
        raise ValueError(f"{name}: expected {least} to {most}, got {value.min()} to {value.max()}")


def check_same(name: str, value: Tensor, other_name: str, other: Tensor, dims: dict[str, tuple[int, int]]) -> None:
    """Sizes and devices must agree: `dims` maps a dimension's letter to its places in `value` and in `other`."""
    for letter, (i, j) in dims.items():
        if value.shape[i] != other.shape[j]:
            raise ValueError(
                f"{name}: expected the {letter} of {other_name} ({other.shape[j]}) at dimension {i}, "
                f"got {tuple(value.shape)}"
            )
    check_device(name, value, other_name, other)


def check_device(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    if value.device != other.device:
        raise ValueError(f"{name}: expected the device of {other_name} ({other.device}), got {value.device}")


def check_scale(scale: object, device: torch.device, name: str = "scale") -> Tensor | float:
    """An inverse temperature: a number above 0, or a floating tensor of one element, which isn't read."""
    if not isinstance(scale, Tensor):
        try:
            return check_number(name, scale, 0, above=True)
        except TypeError:
            got = type(scale).__name__
            raise TypeError(f"{name}: expected a number or a floating tensor of one element, got {got}") from None
    check_tensor(name, scale)
    check_floating(name, scale)
    if scale.numel() != 1 or scale.dim() > 1:
        raise ValueError(f"{name}: expected a tensor of one element, shape [] or [1], got {tuple(scale.shape)}")
    if scale.device != device and scale.device.type != "cpu":
        raise ValueError(f"{name}: expected device {device} or cpu, got {scale.device}")
    return scale.reshape(())


def length_mask(name: str, lengths: Tensor | None, like: Tensor, dim: int) -> Tensor:
    """[B, n] booleans, True within each problem's length; the lengths must lie in 1..n (unless `unchecked`, they are
    read). None: all True.
    """
    B, n = like.shape[0], like.shape[dim]
    if lengths is None:
        return torch.ones(B, n, dtype=torch.bool, device=like.device)
    check_lengths(name, lengths, torch.Size([B]), like.device)
    if B and values_are_read.get():
        values = layers(lengths)[-1]
        if not bool(((values >= 1) & (values <= n)).all()):
            raise ValueError(f"{name}: expected lengths in 1..{n}, got {values.min().item()}..{values.max().item()}")
    return torch.arange(n, device=like.device) < lengths[:, None]
