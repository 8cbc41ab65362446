"""Interactions of regions (coalitions of an image's patches), in plain PyTorch.

The interaction of a region R of n patches (LOUPE, Li et al., NeurIPS 2022, section 3.2), over sets T of the others:

    I(R) = E_T[ v(T+R) - sum_{i in R} v(T+i) + (|R|-1) v(T) ]

Pooled-cosine game: v(T) = A_T / sqrt(Q_T), A_T = sum_{i in T} a_i, Q_T = sum_{i,k in T} G_ik, where a_i = <x_i, t> and
G_ik = <x_i, x_k>: the cosine of the summed patches with the text. Estimated by walks: the prefixes of a random
permutation, R's own patches left out, are one coalition of each size, which is the distribution of T.

Where the patches of T cancel, A_T and Q_T are what rounding leaves of them. Q_T therefore counts as at least
4 n eps sum_{i in T} |x_i|^2, which is above its rounding error; the value is then about 0.

Late-interaction game: v(T) = 1/2 [ mean_{i in T} m_i + (1/N) sum_j max_{i in T} s_ij ], m_i = max_j s_ij. Exact.
"""

import torch
from torch import Tensor


def pooled_cosine(patches: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """The pooled-cosine game's a [B, n] and G [B, n, n], of patches [B, n, d] and text [B, d]."""
    unit = text / text.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(text.dtype).tiny)
    return (patches @ unit.unsqueeze(-1)).squeeze(-1), patches @ patches.transpose(-1, -2)


def walk_values(a: Tensor, gram: Tensor, regions: Tensor, orders: Tensor, prefixes: bool = True) -> Tensor:
    """What every walk says of every region's interaction: [B, R, K] of regions bool [B, R, n] and orders [B, K, n].

    An order names the players that join, one per step; -1 is nobody. With `prefixes` a walk's value is the mean over
    the coalitions it passes through, the empty one included; otherwise that of the coalition it ends with.
    """
    B, R, n = regions.shape
    K = orders.shape[1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    floors = 4 * n * torch.finfo(gram.dtype).eps * diagonal
    members = regions.to(gram.dtype)
    size = regions.sum(-1, keepdim=True)
    own_a = (members @ a.unsqueeze(-1)).view(B, R, 1)
    own_q = ((members @ gram) * members).sum(-1, keepdim=True)
    own_floor = (members @ floors.unsqueeze(-1)).view(B, R, 1)
    A, Q, h = gram.new_zeros(B, R, K), gram.new_zeros(B, R, K), gram.new_zeros(B, R, K, n)
    floor = gram.new_full((B, R, K), torch.finfo(gram.dtype).tiny)  # zero vectors have value 0

    def value(a: Tensor, q: Tensor, floor: Tensor) -> Tensor:
        return a * torch.maximum(q, floor).rsqrt()

    def gain() -> Tensor:
        own_h = torch.einsum("brkn,brn->brk", h, members)
        joint = value(A + own_a, Q + 2 * own_h + own_q, floor + own_floor)
        with_one = Q.unsqueeze(-1) + 2 * h + diagonal[:, None, None]
        alone = value(A.unsqueeze(-1) + a[:, None, None], with_one, floor.unsqueeze(-1) + floors[:, None, None])
        singles = torch.einsum("brkn,brn->brk", alone, members)
        return joint - singles + (size - 1) * value(A, Q, floor)

    total = gain()
    for step in range(n):
        player = orders[:, :, step].long()
        somebody, player = (player >= 0).unsqueeze(1), player.clamp(min=0)
        everywhere = player.unsqueeze(1).expand(B, R, K)
        joins = (somebody & ~regions.gather(-1, everywhere)).to(gram.dtype)
        Q = Q + joins * (2 * h.gather(-1, everywhere.unsqueeze(-1)).squeeze(-1) + diagonal.gather(-1, player)[:, None])
        A = A + joins * a.gather(-1, player)[:, None]
        floor = floor + joins * floors.gather(-1, player)[:, None]
        h += joins.unsqueeze(-1) * gram.gather(1, player.unsqueeze(-1).expand(B, K, n)).unsqueeze(1)
        if prefixes:
            total = total + joins * gain()
    mean = total / (n - size + 1) if prefixes else gain()
    return torch.where(size < 2, torch.zeros_like(mean), mean)  # a region of one patch has nothing to interact with


def late_interactions(
    scores: Tensor, regions: Tensor, text_lengths: Tensor | None = None, index: str = "shapley", p: float = 0.5
) -> Tensor:
    """Exact interactions [B, R] of regions bool [B, R, n] in the late-interaction game of scores [B, n, N].

    With m patches outside R, k inside, and u_1 >= ... >= u_m the outside patches' scores for a word,

        I = 1/2 { mean part + (1/N) sum_j [ Psi_j(max_{i in R} s_ij) - sum_{i in R} Psi_j(s_ij) ] }
        Psi_j(x) = e x + sum_r max(x - u_r, 0) w_r

    where w_r is the probability that u_r is the coalition's maximum and e that the coalition is empty.
    """
    B, _, N = scores.shape
    words = torch.full((B,), N) if text_lengths is None else text_lengths
    out = scores.new_zeros(regions.shape[:2])
    for b in range(B):
        s = scores[b, :, : int(words[b])]
        for r, inside in enumerate(regions[b]):
            k, m = int(inside.sum()), int((~inside).sum())
            if k < 2 or s.shape[1] == 0:
                continue
            size = torch.arange(m + 1, dtype=torch.float64)
            if index == "shapley":
                chance = torch.full_like(size, 1 / (m + 1))
                weight, empty = 1 / (size[1:] * (size[1:] + 1)), 1 / (m + 1)
            else:
                ways = (
                    torch.lgamma(torch.tensor(m + 1.0).double()) - torch.lgamma(size + 1) - torch.lgamma(m - size + 1)
                )
                chance = (ways.exp() * p**size * (1 - p) ** (m - size)).double()
                weight, empty = p * (1 - p) ** (size[1:] - 1), (1 - p) ** m
            best = s.amax(-1)
            mu_in = best[inside].mean()
            mu_out = best[~inside].mean() if m else torch.zeros_like(mu_in)
            mean = (chance * (k * (mu_in - mu_out) * (1 / (size + k) - 1 / (size + 1)))).sum()
            mean = mean - chance[0] * (k - 1) * mu_out
            u = s[~inside].sort(dim=0, descending=True).values
            psi = lambda x, u=u, w=weight, e=empty: (  # noqa: E731
                e * x + ((x.unsqueeze(0) - u.unsqueeze(1)).clamp(min=0) * w.view(-1, 1, 1)).sum(0)
            )
            maxima = psi(s[inside].amax(0, keepdim=True)) - psi(s[inside]).sum(0, keepdim=True)
            out[b, r] = (mean + maxima.mean()) / 2
    return out
