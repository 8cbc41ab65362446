"""The problems that tests and benchmarks share."""

import dataclasses

import torch
from torch import Tensor

from loupe_ext import pack_coalitions


@dataclasses.dataclass
class Pairs:
    """Arguments of pairwise_interactions, in float64."""

    name: str
    scores: Tensor
    col_scores: Tensor | None = None
    region_lengths: Tensor | None = None
    phrase_lengths: Tensor | None = None
    index: str = "shapley"
    p: float = 0.5
    game: str = "max-mean"

    def __str__(self) -> str:
        return self.name

    def to(self, dtype: torch.dtype) -> "Pairs":
        """In another dtype and back, so that every implementation reads the same numbers."""
        cols = None if self.col_scores is None else self.col_scores.to(dtype)
        return dataclasses.replace(self, scores=self.scores.to(dtype), col_scores=cols)

    @property
    def options(self) -> dict[str, object]:
        lengths = {"region_lengths": self.region_lengths, "phrase_lengths": self.phrase_lengths}
        return {**lengths, "index": self.index, "p": self.p, "game": self.game}


def random_pairs(B: int, M: int, N: int, seed: int = 0) -> Tensor:
    return torch.randn(B, M, N, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pairs_problems(small: bool = False) -> list[Pairs]:
    """Problems for every implementation; `small` for those that interpret each thread."""
    many = 2 if small else 5
    lengths = lambda *x: torch.tensor(x)  # noqa: E731
    softmax = random_pairs(2, 6, 5, 7)
    problems = [
        Pairs("1x1", random_pairs(2, 1, 1)),
        Pairs("1x7", random_pairs(2, 1, 7)),
        Pairs("7x1", random_pairs(2, 7, 1)),
        Pairs("2x2-banzhaf", random_pairs(2, 2, 2), index="banzhaf", p=0.3),
        Pairs("9x5", random_pairs(many, 9, 5)),
        Pairs("16x16-banzhaf", random_pairs(many, 16, 16), index="banzhaf"),
        Pairs("two-sided", softmax.softmax(2), softmax.softmax(1)),
        Pairs("two-sided-banzhaf", random_pairs(2, 5, 17), random_pairs(2, 5, 17, 1), index="banzhaf", p=0.9),
        Pairs("ragged", random_pairs(4, 13, 9), None, lengths(13, 1, 0, 8), lengths(9, 9, 4, 1)),
        Pairs("ragged-rows", random_pairs(3, 4, 20), random_pairs(3, 4, 20, 2), lengths(2, 4, 3), None, "banzhaf", 0.1),
        Pairs("ragged-columns", random_pairs(3, 20, 4), None, None, lengths(3, 0, 4)),
        Pairs("ties", random_pairs(3, 11, 12).round()),
        Pairs("signed-zeros", random_pairs(2, 6, 6).round() * 0 * torch.tensor([1.0, -1.0] * 3)),
        Pairs("constant-rows", random_pairs(2, 8, 1).expand(2, 8, 6)),
        Pairs("constant", torch.full((1, 5, 4), 3.0, dtype=torch.float64)),
        Pairs("negative", -random_pairs(2, 10, 10).abs()),
        Pairs("offset", random_pairs(2, 10, 10) + 100),
        Pairs("not-contiguous", random_pairs(9, 7, 4).transpose(0, 2)),
        Pairs("maxsim", random_pairs(many, 9, 5), game="maxsim"),
        Pairs("maxsim-banzhaf", random_pairs(2, 7, 12).round(), index="banzhaf", p=0.2, game="maxsim"),
        Pairs("maxsim-ragged", random_pairs(4, 13, 9), None, lengths(13, 1, 0, 8), lengths(9, 9, 4, 1), game="maxsim"),
        Pairs("maxsim-1x1", random_pairs(2, 1, 1), game="maxsim"),
        Pairs("empty-batch", random_pairs(0, 3, 4)),
        Pairs("no-regions", random_pairs(2, 0, 4)),
        Pairs("no-phrases", random_pairs(2, 3, 0)),
    ]
    if small:
        return problems
    return [
        *problems,
        Pairs("16x32", random_pairs(7, 16, 32)),
        Pairs("49x30", random_pairs(3, 49, 30), None, lengths(49, 20, 33), lengths(30, 30, 17)),
        Pairs("64x64", random_pairs(2, 64, 64)),
        Pairs("65x66-two-sided", random_pairs(2, 65, 66), random_pairs(2, 65, 66, 1)),
        Pairs("130x70", random_pairs(1, 130, 70), index="banzhaf"),
        Pairs("3x1024", random_pairs(1, 3, 1024)),
        Pairs("1024x5", random_pairs(1, 1024, 5)),
        Pairs("maxsim-49x30", random_pairs(3, 49, 30), game="maxsim"),
    ]


def random_coalitions(S: int, n: int, seed: int = 0) -> Tensor:
    """Packed coalitions of every size, with random bits beyond player n - 1."""
    generator = torch.Generator().manual_seed(seed)
    words = (n + 63) // 64
    masks = torch.rand(S, 64 * words, generator=generator) < torch.rand(S, 1, generator=generator)
    masks[:, n:] = torch.rand(S, 64 * words - n, generator=generator) < 0.5
    return pack_coalitions(masks)


@dataclasses.dataclass
class Regions:
    """Arguments of the walks of the pooled-cosine game (python_ref/region.py), in float64."""

    name: str
    patches: Tensor  # [B, n, d]
    text: Tensor  # [B, d]
    masks: Tensor  # bool [B, R, n]
    walks: int = 6

    def __str__(self) -> str:
        return self.name


def random_masks(B: int, R: int, n: int, share: float = 0.3, seed: int = 0) -> Tensor:
    return torch.rand(B, R, n, generator=torch.Generator().manual_seed(seed)) < share


def random_regions(name: str, B: int, R: int, n: int, d: int = 8, walks: int = 6, share: float = 0.3) -> Regions:
    return Regions(name, random_pairs(B, n, d), random_pairs(B, 1, d, 1)[:, 0], random_masks(B, R, n, share), walks)


def region_problems(small: bool = False) -> list[Regions]:
    """Problems for every implementation; `small` for those that interpret each thread."""
    steps = torch.arange(9)
    special = torch.stack([steps < k for k in range(10)])  # no patch, one, .., all
    zeros = random_regions("zero-patches", 2, 4, 7)
    zeros.patches[0, ::2] = 0
    zeros.patches[1] = 0
    problems = [
        random_regions("1-patch", 2, 2, 1, share=0.6),
        random_regions("2-patches", 2, 5, 2, share=0.6),
        Regions("every-size", random_pairs(1, 9, 5), random_pairs(1, 1, 5)[0], special.unsqueeze(0)),
        random_regions("one-walk", 3, 3, 6, walks=1),
        random_regions("17-walks", 2, 2, 5, walks=17),
        random_regions("64-patches", 1, 3, 64, walks=2),
        random_regions("65-patches", 1, 3, 65, walks=2),
        random_regions("33-regions", 1, 33, 8, walks=3),
        random_regions("large-regions", 1, 3, 20, share=0.9),
        random_regions("more-members-than-registers", 1, 3, 90, walks=2, share=0.9),
        zeros,
        random_regions("no-image", 0, 2, 5),
        random_regions("no-region", 2, 0, 5),
        random_regions("no-walk", 2, 2, 5, walks=0),
    ]
    if small:
        return problems
    return [
        *problems,
        random_regions("49-patches", 5, 32, 49, 64, 40),
        random_regions("196-patches", 2, 7, 196, 32, 35),
        random_regions("1024-patches", 1, 2, 1024, 16, 3, 0.1),
        random_regions("300-regions", 1, 300, 12, walks=3),
    ]
