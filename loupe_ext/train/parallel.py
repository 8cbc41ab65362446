"""Several processes: what torchrun starts, each with its part of every batch."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn

from loupe_ext._checks import check_choice

PARALLEL = ("ddp", "fsdp")


@contextmanager
def processes(device: torch.device | str = "cpu", timeout: float = 600.0) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for the length of the block; gives the device of this one.

    Without torchrun, or where they are joined already, only the device. A process that waits for another longer than
    `timeout` seconds raises.
    """
    device = torch.device(device)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if device.type == "cuda" else "gloo"
    distributed.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
    try:
        yield device
    finally:
        distributed.destroy_process_group()


def world() -> Any:
    """The group of all processes; None where there is one alone."""
    together = distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1
    return distributed.group.WORLD if together else None


def rank() -> int:
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def world_size() -> int:
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def wrapped(module: nn.Module, parallel: str) -> nn.Module:
    """The module, whose gradients are means over the processes.

    "ddp" keeps all of it in each; "fsdp" a part of each parameter, gathered for a block (an entry of an
    `nn.ModuleList` or `nn.Sequential`) at a time.
    """
    check_choice("parallel", parallel, PARALLEL)
    if world() is None:
        return module
    if parallel == "ddp":
        return nn.parallel.DistributedDataParallel(module)
    from torch.distributed.fsdp import fully_shard

    for part in list(module.modules()):
        if isinstance(part, nn.ModuleList | nn.Sequential):
            for block in part:
                if any(True for _ in block.parameters()):
                    fully_shard(block)
    fully_shard(module)
    return module


def whole(tensor: Tensor) -> Tensor:
    """A parameter, or its state, of which each process holds a part; all processes ask at once."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def agreed(flag: bool, group: Any) -> bool:
    """Whether any process says so."""
    if group is None:
        return flag
    votes = torch.tensor([float(flag)], device="cuda" if distributed.get_backend(group) == "nccl" else "cpu")
    distributed.all_reduce(votes, group=group)
    return bool(votes.item())
