"""The game of a dual encoder in full: its definition by enumeration, and the fit to all products of two samples."""

from collections.abc import Callable

import torch
from torch import Tensor

from python_ref.brute import interaction, player_value

Encoder = Callable[[Tensor], Tensor]


def explain(f: Encoder, g: Encoder, m: int, n: int, index: str, p: float) -> tuple[Tensor, Tensor]:
    """Values [m + n] and interactions [m + n, m + n] of v(S, T) = <f(S), g(T)>, with zeros on the diagonal."""

    def value(inside: Tensor) -> Tensor:
        return (f(inside[:, :m]).double() * g(inside[:, m:]).double()).sum(-1)

    values = torch.stack([player_value(value, m + n, i, index, p) for i in range(m + n)])
    pairs = torch.zeros(m + n, m + n, dtype=torch.float64)
    for i in range(m + n):
        for j in range(i):
            pairs[i, j] = pairs[j, i] = interaction(value, m + n, [i, j], index, p)
    return values, pairs


def joint_least_squares(image_masks: Tensor, text_masks: Tensor, f: Tensor, g: Tensor, p: float) -> Tensor:
    """Cross pairs [m, n] of least squares on the products of all K x K embeddings (FIxLIP's crossmodal game).

    The features are a constant, each player, and each pair of an image's and a text's.
    """
    x, y = image_masks.double() - p, text_masks.double() - p
    K, L = len(x), len(y)
    cross = (x[:, None, :, None] * y[None, :, None]).flatten(2)
    features = torch.cat(
        [torch.ones(K, L, 1, dtype=torch.float64), x[:, None].expand(-1, L, -1), y.expand(K, -1, -1), cross], 2
    ).flatten(0, 1)
    coefficients = torch.linalg.lstsq(features, (f.double() @ g.double().T).flatten()[:, None]).solution[:, 0]
    return coefficients[-x.shape[1] * y.shape[1] :].view(x.shape[1], y.shape[1])
