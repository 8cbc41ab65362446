"""The distributions of the coalitions that the interaction indices average over."""

import math

import torch
from torch import Tensor


def size_weights(players: int, index: str, p: float) -> Tensor:
    """float64 [players + 1]: the distribution of the size of a coalition of the other players, 0 to `players`."""
    if index == "shapley":
        return torch.full((players + 1,), 1 / (players + 1), dtype=torch.float64)
    sizes = torch.arange(players + 1, dtype=torch.float64)
    log = math.lgamma(players + 1) - torch.lgamma(sizes + 1) - torch.lgamma(players - sizes + 1)
    return torch.exp(log + sizes * math.log(p) + (players - sizes) * math.log1p(-p))
