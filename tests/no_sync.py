"""A mode in which nothing may wait for a device, as far as a CPU can tell: what would read a tensor raises."""

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    *("aten::_local_scalar_dense", "aten::is_nonzero", "aten::item", "aten::equal", "aten::nonzero", "aten::argwhere"),
    *("aten::masked_select", "aten::bincount", "aten::histc", "aten::_unique", "aten::_unique2", "aten::unique_dim"),
    *("aten::unique_consecutive", "aten::nonzero_numpy"),
)
METHODS = ("__array__", "cpu", "item", "numpy", "tolist", "__bool__", "__float__", "__index__", "__int__")


class HostReadError(AssertionError):
    pass


class _Dispatch(TorchDispatchMode):
    def __torch_dispatch__(self, op, types, arguments=(), options=None):
        options = options or {}
        name = op._schema.name
        if name in READS or (name == "aten::repeat_interleave" and options.get("output_size") is None):
            raise HostReadError(f"{name} reads a tensor")
        if name.startswith(("aten::index", "aten::_unsafe_index", "aten::_index_put")) and any(
            x.dtype in (torch.bool, torch.uint8) for x in _tensors(arguments[1] if len(arguments) > 1 else [])
        ):
            raise HostReadError(f"{name} with a mask counts its elements")
        out = op(*arguments, **options)
        devices = {x.device for x in (*_tensors(arguments), *_tensors(out)) if x.dim() or x.device.type != "cpu"}
        if len(devices) > 1:
            raise HostReadError(f"{name} copies between {devices}")
        return out


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, (list, tuple)):
        return [x for each in value for x in _tensors(each)]
    return [value] if isinstance(value, Tensor) else []


@contextlib.contextmanager
def no_sync() -> Iterator[None]:
    """Within it, in forward and backward, a host read raises HostReadError: an op of `READS`, a mask as an index, a
    copy between devices; and the methods that on a CPU tensor read it without an op.
    """

    def refusing(name):
        def method(self, *arguments, **options):
            raise HostReadError(f"Tensor.{name} reads a tensor")

        return method

    with contextlib.ExitStack() as stack:
        for name in METHODS:
            stack.enter_context(mock.patch.object(Tensor, name, refusing(name)))
        stack.enter_context(_Dispatch())
        yield
