"""Image-caption pairs, and what only evaluation may see: the true box of each phrase."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PAD = 0


class Vocabulary:
    """Words and their ids. Id 0 pads."""

    def __init__(self, words: Sequence[str]) -> None:
        if len(set(words)) != len(words):
            raise ValueError("words: expected distinct words, got a repeated one")
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words, start=1)}

    def __len__(self) -> int:
        return len(self.words) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of the words of `text`, which spaces separate."""
        unknown = [word for word in text.split() if word not in self._ids]
        if unknown:
            raise ValueError(f"text: expected words of the vocabulary, got {unknown[0]!r}")
        return [self._ids[word] for word in text.split()]

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i - 1] for i in ids if i != PAD)


@dataclass(frozen=True)
class Batch:
    """All that training sees of a batch of B pairs. There is no place for a box in it.

    Attributes:
        images: [B, 3, H, W] uint8.
        words: [B, L] int64, the captions' word ids, padded with 0.
        spans: [B, P, 2] int64, where each noun phrase starts and ends (exclusive) in its caption; padded with 0, 0.
        phrase_lengths: [B] int64, how many of the P phrases each caption has.
    """

    images: Tensor
    words: Tensor
    spans: Tensor
    phrase_lengths: Tensor


@dataclass(frozen=True)
class Pairs:
    """n captioned images: the fields of `Batch` for all of them, and the vocabulary."""

    images: Tensor
    words: Tensor
    spans: Tensor
    phrase_lengths: Tensor
    vocabulary: Vocabulary

    def __post_init__(self) -> None:
        if self.images.dim() != 4 or self.images.shape[1] != 3 or self.images.dtype != torch.uint8:
            raise ValueError(
                f"images: expected uint8 of shape [n, 3, H, W], got {self.images.dtype} {tuple(self.images.shape)}"
            )
        n = len(self.images)
        for name, value, shape in (
            ("words", self.words, (n, None)),
            ("spans", self.spans, (n, None, 2)),
            ("phrase_lengths", self.phrase_lengths, (n,)),
        ):
            fits = value.dim() == len(shape) and all(s in (None, t) for s, t in zip(shape, value.shape, strict=True))
            if not fits or value.dtype != torch.int64:
                expected = ", ".join("*" if s is None else str(s) for s in shape)
                raise ValueError(
                    f"{name}: expected int64 of shape [{expected}], got {value.dtype} {tuple(value.shape)}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, indices: Tensor | slice) -> Batch:
        return Batch(self.images[indices], self.words[indices], self.spans[indices], self.phrase_lengths[indices])

    def caption(self, i: int) -> str:
        return self.vocabulary.decode(self.words[i].tolist())

    def phrases(self, i: int) -> list[str]:
        spans = self.spans[i, : self.phrase_lengths[i]].tolist()
        return [self.vocabulary.decode(self.words[i, start:end].tolist()) for start, end in spans]


@dataclass(frozen=True)
class Grounded:
    """Pairs with the true box of every phrase. Evaluation takes this; training takes its `pairs`.

    Attributes:
        pairs: n captioned images.
        boxes: [n, P, 4] float32, x0, y0, x1, y1 in pixels of each phrase's object; NaN where there is no phrase.
    """

    pairs: Pairs
    boxes: Tensor

    def __post_init__(self) -> None:
        shape = (*self.pairs.spans.shape[:2], 4)
        if self.boxes.shape != shape:
            raise ValueError(f"boxes: expected shape {shape}, got {tuple(self.boxes.shape)}")

    def __len__(self) -> int:
        return len(self.pairs)
