"""One way to register an op: its schema, one function for CPU and CUDA alike, its fake and its gradient.

`torch.library.Library` instead of `torch.library.custom_op`: a third of the overhead per call.
"""

import functools
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

from loupe_ext._checks import NO_FORWARD_MODE, check_no_tangent

_library = torch.library.Library("loupe", "DEF")
# Keys, of tensors and of the thread, for which the dispatcher has nothing to do.
_PLAIN = functools.reduce(
    operator.or_,
    (
        torch._C.DispatchKeySet(torch._C._dispatch_key_parse(key)).raw_repr()
        for key in ("CPU", "CUDA", "AutogradCPU", "ADInplaceOrView", "AutocastCPU", "AutocastCUDA", "BackendSelect")
    ),
)
_AUTOGRAD = torch._C.DispatchKey.AutogradFunctionality


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    dispatch: tuple[str, ...] = ("CPU", "CUDA"),
    shared: tuple[int, ...] = (),
) -> Callable[..., Any]:
    """Define `torch.ops.loupe.<name>` from its schema and return it. Without `backward`, differentiating it raises.

    `dispatch` names the keys that the implementation serves; an op without tensor arguments has "BackendSelect".
    What is returned works under torch.func too: see `transformable` for it and for `shared`.
    """
    name = schema.split("(")[0]
    qualified = f"loupe::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in dispatch:
        _library.impl(name, implementation, key)
    torch.library.register_fake(qualified, fake, lib=_library)

    torch.library.register_autograd(
        qualified, backward or no_derivative(qualified), setup_context=setup_context, lib=_library
    )
    op = getattr(torch.ops.loupe, name).default
    names = [argument.name for argument in op._schema.arguments]
    transformed = transformable(qualified, op, backward, setup_context, shared)

    differentiable = _differentiable(qualified, implementation, backward, setup_context)

    def call(*args: Any) -> Any:
        plain, differentiated = is_plain(args)
        if plain:
            return differentiable(*args) if differentiated else implementation(*args)
        check_no_tangent(qualified, names, args)
        return transformed(*args) if under_transform() else op(*args)

    return call


def is_plain(args: tuple[Any, ...]) -> tuple[bool, bool]:
    """Whether PyTorch's dispatcher would do nothing but call the implementation, which it does at a higher price than a
    small problem's: there is no compiler, transform, mode, subclass, lazy negation, trace or profiler. And whether a
    gradient is asked for.
    """
    if torch.compiler.is_compiling():
        return False, False
    keys, differentiated = torch._C._dispatch_tls_local_include_set().raw_repr(), False
    for x in args:
        if isinstance(x, Tensor):
            keys |= torch._C._dispatch_keys(x).raw_repr()
            differentiated = differentiated or x.requires_grad
    differentiated = differentiated and torch.is_grad_enabled()
    special = (
        keys & ~_PLAIN
        or has_torch_function(args)
        or forward_ad._current_level >= 0
        or torch._C._autograd._profiler_enabled()
        or (differentiated and torch._C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD))
    )
    return not special, differentiated


def _differentiable(
    name: str,
    implementation: Callable[..., Any],
    backward: Callable[..., Any] | None,
    setup_context: Callable[..., Any] | None,
) -> Callable[..., Any]:
    """The implementation with its gradient, as the op has it, for plain arguments."""

    def forward(ctx: Any, *args: Any) -> Any:
        out = implementation(*args)
        out = tuple(out) if isinstance(out, list) else out
        if setup_context is not None:
            setup_context(ctx, args, out)
        return out

    methods = {"forward": staticmethod(forward), "backward": staticmethod(backward or no_derivative(name))}
    apply: Callable[..., Any] = type(name, (torch.autograd.Function,), methods).apply  # type: ignore[attr-defined]
    return apply


def under_transform() -> bool:
    """Whether torch.func's grad, vmap and their kin are at work. (A graph that is compiled holds the op itself.)"""
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()


def no_derivative(name: str) -> Callable[..., Any]:
    def backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{name} has no derivative: double backward through this op is not supported")

    return backward


def transformable(
    name: str,
    function: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    shared: tuple[int, ...] | None = None,
) -> Callable[..., Any]:
    """`function` for torch.func, which goes through an autograd.Function but not through an op's registered autograd.

    vmap folds its dimension into the first of every tensor, but for the arguments at the places `shared`, which have no
    batch dimension: where one of these is mapped, or with `shared` None, it is one call for each.
    """

    def forward(*args: Any) -> Any:
        out = function(*args)
        return tuple(out) if isinstance(out, list) else out

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError(f"{name}: {NO_FORWARD_MODE}")

    def vmap(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        size, tensors = info.batch_size, [i for i, x in enumerate(args) if isinstance(x, Tensor)]
        if shared is None or any(in_dims[i] is not None for i in shared):
            if size == 0:
                raise RuntimeError(f"{name}: vmap expected a dimension of at least one here, got one of 0")
            each = [
                apply(*(x if d is None else x.select(d, k) for x, d in zip(args, in_dims, strict=True)))
                for k in range(size)
            ]
            if isinstance(each[0], Tensor):
                return torch.stack(each), 0
            return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])
        folded, batch = list(args), 1
        for i in tensors:
            if i not in shared:
                d, x = in_dims[i], args[i]
                x = x.expand(size, *x.shape) if d is None else x.movedim(d, 0)
                batch, folded[i] = x.shape[1], x.flatten(0, 1)
        out = apply(*folded)
        if isinstance(out, Tensor):
            return out.unflatten(0, (size, batch)), 0
        return tuple(x.unflatten(0, (size, batch)) for x in out), (0,) * len(out)

    def nothing(ctx: Any, inputs: Any, output: Any) -> None: ...

    methods = {
        "forward": forward,
        "setup_context": setup_context or nothing,
        "backward": backward or no_derivative(name),
        "jvp": jvp,
        "vmap": vmap,
    }
    kind: Any = type(name, (torch.autograd.Function,), {key: staticmethod(value) for key, value in methods.items()})
    apply: Callable[..., Any] = kind.apply
    return apply
