"""When a model may label for itself."""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from loupe_ext._distributed import Group, place


def contrast_gate(contrasts: list[Tensor], batch_size: int, group: Group = None) -> Tensor:
    """The weight, 0 to 1, of losses whose labels the model makes itself: a scalar without gradient.

    It is (1 - c / log(batch_size))^2, c the mean of the batch's contrastive losses, which start at log(batch_size). A
    model that tells nothing apart yet would label at random, and then learn that. It is 1 for a batch of one.

    Args:
        contrasts: scalars. batch_size: pairs of the whole batch.
        group: of processes, each with a share of these losses, whose mean counts. None: this process has all.
    """
    with torch.no_grad():
        contrast = torch.stack(contrasts).mean()
        if group is not None:
            dist.all_reduce(contrast, group=group)
            contrast /= place(group)[1]
        if batch_size < 2:
            return torch.ones_like(contrast)
        return (1 - contrast / math.log(batch_size)).clamp(min=0).square()
