"""Several processes: what torchrun starts, each with its part of every batch."""

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import pad

from loupe_ext._checks import as_device, check_choice, check_number
from loupe_ext._distributed import place
from loupe_ext.data.batch import Batch
from loupe_ext.model.dual import DualEncoder

PARALLEL = ("ddp", "fsdp")


@contextmanager
def processes(device: torch.device | str = "cpu", timeout: float = 600.0) -> Iterator[torch.device]:
    """Join the processes that torchrun started, for the length of the block; gives the device of this one.

    Without torchrun, or where they are joined already, only the device. A process that waits for another longer than
    `timeout` seconds raises.
    """
    device = as_device("device", device)
    timeout = check_number("timeout", timeout, 0, 1e9, above=True)
    if device.type == "cuda" and device.index is None and "LOCAL_RANK" in os.environ:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    if "WORLD_SIZE" not in os.environ or distributed.is_initialized():
        yield device
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"  # what is small is agreed on the CPU
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
    return place(world())[0]


def world_size() -> int:
    return place(world())[1]


def wrapped(module: nn.Module, parallel: str) -> nn.Module:
    """The module, whose gradients are means over the processes.

    "ddp" keeps all of it in each; "fsdp" a part of each parameter, gathered for a block (an entry of an
    `nn.ModuleList`) at a time.
    """
    check_choice("parallel", parallel, PARALLEL)
    if world() is None:
        return module
    if parallel == "ddp":
        unused = not isinstance(getattr(module, "model", None), DualEncoder)  # of ours, all parameters that learn
        return nn.parallel.DistributedDataParallel(module, find_unused_parameters=unused)
    from torch.distributed.fsdp import fully_shard

    for part in list(module.modules()):
        if isinstance(part, nn.ModuleList):
            for block in part:
                if any(True for _ in block.parameters()):
                    fully_shard(block)
    fully_shard(module)
    return module


def whole(tensor: Tensor) -> Tensor:
    """A parameter, or its state, of which each process holds a part; all processes ask at once."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def padded(batch: Batch, group: Any) -> Batch:
    """The batch with as many tokens and phrases as the largest part of the global batch has, on the CPU.

    Raises:
        ValueError: in every process, if their parts differ in the number of pairs.
    """
    if group is None:
        return batch
    sizes = torch.tensor([batch.tokens.shape[1], batch.spans.shape[1], len(batch), -len(batch)])
    distributed.all_reduce(sizes, distributed.ReduceOp.MAX, group=group)
    tokens, phrases, most, least = sizes.tolist()
    if most != -least:
        raise ValueError(f"batches: expected as many pairs in every process, got {-least} to {most}")
    more = tokens - batch.tokens.shape[1]
    options = {
        name: pad(x, (0, more)) if x.dim() == 2 and x.shape == batch.tokens.shape else x
        for name, x in batch.text_options.items()
    }
    spans = pad(batch.spans, (0, 0, 0, phrases - batch.spans.shape[1]))
    return replace(batch, tokens=pad(batch.tokens, (0, more)), spans=spans, text_options=options)


def everyones(value: Any, group: Any) -> list[Any]:
    """What each process says, in the order of ranks."""
    if group is None:
        return [value]
    found: list[Any] = [None] * distributed.get_world_size(group)
    distributed.all_gather_object(found, value, group=group)
    return found


def agreed(flag: bool, group: Any) -> bool:
    """Whether any process says so."""
    if group is None:
        return flag
    votes = torch.tensor([float(flag)])
    distributed.all_reduce(votes, group=group)
    return bool(votes.item())
