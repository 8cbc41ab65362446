"""One way to register an op: its schema, one function for CPU and CUDA alike, its fake and its gradient.

`torch.library.Library` instead of `torch.library.custom_op`: a third of the overhead a call.
"""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("loupe", "DEF")


def register(
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    backward: Callable[..., Any] | None = None,
    setup_context: Callable[..., Any] | None = None,
    dispatch: tuple[str, ...] = ("CPU", "CUDA"),
) -> Any:
    """Define `torch.ops.loupe.<name>` from its schema and return it. Without `backward`, differentiating it raises.

    `dispatch` names the keys that the implementation serves; an op without tensor arguments has "BackendSelect".
    """
    name = schema.split("(")[0]
    qualified = f"loupe::{name}"
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for key in dispatch:
        _library.impl(name, implementation, key)
    torch.library.register_fake(qualified, fake, lib=_library)

    def no_backward(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{qualified} has no derivative: double backward through this op is not supported")

    torch.library.register_autograd(qualified, backward or no_backward, setup_context=setup_context, lib=_library)
    return getattr(torch.ops.loupe, name).default
