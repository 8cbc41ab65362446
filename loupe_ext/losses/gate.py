"""When a model may label for itself."""

import math

import torch
from torch import Tensor


def contrast_gate(contrasts: list[Tensor], batch_size: int) -> Tensor:
    """The weight, 0 to 1, of losses whose labels the model makes itself: a scalar without gradient.

    It is (1 - c / log(batch_size))^2, c the mean of the batch's contrastive losses, which start at log(batch_size). A
    model that tells nothing apart yet would label at random, and then learn that. It is 1 for a batch of one.
    """
    with torch.no_grad():
        contrast = torch.stack(contrasts).mean()
        if batch_size < 2:
            return torch.ones_like(contrast)
        return (1 - contrast / math.log(batch_size)).clamp(min=0).square()
