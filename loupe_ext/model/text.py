"""A small transformer text encoder that reads each noun phrase alone."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from loupe_ext._checks import check_device, check_int, check_ints, check_tensor


def phrase_of_words(spans: Tensor, length: int) -> Tensor:
    """Which phrase each word belongs to, [B, P, length] booleans, of spans [B, P, 2]; empty spans hold no word."""
    check_ints("spans", spans, "BP2")
    at = torch.arange(check_int("length", length, 0, 2**31 - 1), device=spans.device)
    return (at >= spans[..., :1]) & (at < spans[..., 1:])


class PhraseAttention(nn.Module):
    """Self-attention with a learned bias per distance, in which the words of a phrase see only their own phrase.

    Words outside phrases ("above", "and") see the whole caption. So a phrase's features are those of the phrase alone,
    wherever it stands, and nothing leaks into them from its neighbours.
    """

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(heads, 2 * reach + 1))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x [B, L, width], mask [B, L, L]: may word i see word j?"""
        B, L, width = x.shape
        q, k, v = self.qkv(x).view(B, L, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        at = torch.arange(L, device=x.device)
        distance = (at - at[:, None]).clamp(-self.reach, self.reach) + self.reach
        bias = self.bias[:, distance].masked_fill(~mask[:, None], -torch.inf)
        return self.out(scaled_dot_product_attention(q, k, v, bias).transpose(1, 2).reshape(B, L, width))


class TextEncoder(nn.Module):
    """Token ids, padded with 0, to one feature per token, by one transformer layer."""

    def __init__(self, vocabulary_size: int, width: int = 64, heads: int = 4, reach: int = 8) -> None:
        super().__init__()
        self.vocabulary_size = check_int("vocabulary_size", vocabulary_size, 1, 2**31 - 1)
        self.width = width = check_int("width", width, 1, 2**31 - 1)
        self.embed = nn.Embedding(vocabulary_size, width)
        nn.init.normal_(self.embed.weight, std=0.02)  # Adam's steps are small beside 1: rare words would hardly move
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.attention = PhraseAttention(width, heads, reach)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor, spans: Tensor) -> Tensor:
        """[B, L] int64 and [B, P, 2] int64 -> [B, L, width]; what stands at the padding means nothing."""
        check_tensor("tokens", tokens)
        if tokens.dim() != 2 or 0 in tokens.shape:
            raise ValueError(f"tokens: expected shape [B, L], got {tuple(tokens.shape)}")
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens: expected dtype int64, got {tokens.dtype}")
        check_device("spans", check_ints("spans", spans, "BP2"), "tokens", tokens)
        if spans.shape[0] != tokens.shape[0]:
            raise ValueError(f"spans: expected shape [{len(tokens)}, P, 2], got {tuple(spans.shape)}")
        member = phrase_of_words(spans, tokens.shape[1])
        together = (member[..., None] & member[:, :, None]).any(1)
        visible = together | (~member.any(1)[..., None] & (tokens != 0)[:, None])
        visible |= torch.eye(
            tokens.shape[1], dtype=torch.bool, device=tokens.device
        )  # padding sees itself, not nothing
        x = self.norm1(self.embed(tokens))
        x = x + self.attention(x, visible)
        return self.norm3(x + self.feed(self.norm2(x)))
