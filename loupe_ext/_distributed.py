"""A global batch over processes: each holds an equal, contiguous slice of its pairs, in the order of ranks.

A loss of it returns each process's own share, such that the mean over processes is the loss of one process that holds
the whole batch; and so is the mean of gradients of parameters, which DistributedDataParallel takes.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import pad

from loupe_ext._checks import length_mask, shown, values_are_read

Group = Any  # a torch.distributed.ProcessGroup, or None: this process alone (builds without distributed lack the class)


def check_group(group: object) -> None:
    if group is not None and not (dist.is_available() and isinstance(group, dist.ProcessGroup)):
        raise TypeError(f"group: expected None or a torch.distributed.ProcessGroup, got {shown(group)}")


def place(group: Group) -> tuple[int, int]:
    """The rank of this process and the number of processes."""
    return (0, 1) if group is None else (dist.get_rank(group), dist.get_world_size(group))


def common_sizes(name: str, x: Tensor, group: Group) -> list[int]:
    """The sizes between first and last of `x`, [B, ..., d], in the process where they are largest.

    One small all-reduce, of CPU tensors if the group has a backend for them, so that no GPU is waited for. It is left
    out within `unchecked`, whose caller sees to it that all sizes agree.

    Raises:
        ValueError: in every process, if B, d or the dtype isn't the same everywhere.
    """
    if not values_are_read.get():
        return list(x.shape[1:-1])
    same = {"number of pairs": x.shape[0], "d": x.shape[-1], "bytes per element": x.element_size()}
    device = "cpu" if "cpu:" in dist.get_backend_config(group) else x.device
    sizes = torch.tensor([*same.values(), *(-size for size in same.values()), *x.shape[1:-1]], device=device)
    dist.all_reduce(sizes, dist.ReduceOp.MAX, group)
    most = sizes.tolist()
    for i, what in enumerate(same):
        if most[i] != -most[len(same) + i]:
            raise ValueError(
                f"{name}: expected the same {what} in every process, got {-most[len(same) + i]} to {most[i]}"
            )
    return most[2 * len(same) :]


def gathered(x: Tensor, group: Group) -> Tensor:
    """[B, ...] of each process, of one shape, as [processes * B, ...]; gradients of all processes come back, summed."""
    found: Tensor = _Gather.apply(x, group)
    return found


def gathered_ragged(
    name: str, x: Tensor, lengths_name: str, lengths: Tensor | None, group: Group
) -> tuple[Tensor, Tensor | None]:
    """[B, n, d], n of each process its own, and [B], as [processes * B, largest n, d] and [processes * B]."""
    if group is None:
        return x, lengths
    found = length_mask(lengths_name, lengths, x, 1).sum(1)
    (n,) = common_sizes(name, x, group)
    return gathered(pad(x, (0, 0, 0, n - x.shape[1])), group), gathered(found, group)


def transposed(x: Tensor, group: Group) -> Tensor:
    """Own rows [B, processes * B] of a matrix that is shared by rows -> own rows of its transpose."""
    if group is None:
        return x.T
    found: Tensor = _Transpose.apply(x, group)
    return found


class _Transpose(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group = group
        return _exchanged(x, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _exchanged(grad, ctx.group), None


def _exchanged(x: Tensor, group: Group) -> Tensor:
    blocks = x.unflatten(1, (-1, len(x))).permute(1, 2, 0).contiguous()
    found = torch.empty_like(blocks)
    dist.all_to_all_single(found, blocks, group=group)
    return found.transpose(0, 1).flatten(1)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: Group) -> Tensor:
        ctx.group, x = group, x.contiguous()
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size(group))]
        dist.all_gather(parts, x, group)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rank, processes = place(ctx.group)
        if grad.is_cuda and "cuda:nccl" in dist.get_backend_config(ctx.group):
            parts = [part.contiguous() for part in grad.chunk(processes)]
            mine = torch.empty_like(parts[rank])
            dist.reduce_scatter(mine, parts, group=ctx.group)
        else:  # gloo scatters no sums
            total = grad.clone(memory_format=torch.contiguous_format)
            dist.all_reduce(total, group=ctx.group)
            mine = total.chunk(processes)[rank].clone()
        return mine, None
