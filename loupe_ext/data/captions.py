"""Captions of scenes whose objects have names and places."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loupe_ext.data.pairs import Vocabulary

CONNECTIVES = ("and", ",", "above", "below", "left", "right", "of")


def relation(first: NDArray[np.float32], second: NDArray[np.float32]) -> str:
    """Where the centre (x, y) `first` lies as seen from `second`, along the axis on which they are farther apart."""
    dx, dy = second - first
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def caption(phrases: Sequence[str], centres: NDArray[np.float32]) -> tuple[str, list[tuple[int, int]]]:
    """The caption of two or three phrases, and each phrase's span in words: "a X above a Y", "a X , a Y and a Z"."""
    joints = [relation(centres[0], centres[1])] if len(phrases) == 2 else [","] * (len(phrases) - 2) + ["and"]
    words, spans = [], []
    for phrase, joint in zip(phrases, [*joints, ""], strict=True):
        start = len(words)
        words += phrase.split()
        spans.append((start, len(words)))
        words += joint.split()
    return " ".join(words), spans


def encode(
    texts: Sequence[str], spans: Sequence[Sequence[tuple[int, int]]], vocabulary: Vocabulary
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded words [n, L], spans [n, P, 2] and phrase lengths [n] of n captions."""
    ids = [torch.tensor(vocabulary.encode(text)) for text in texts]
    lengths = torch.tensor([len(s) for s in spans])
    padded = torch.zeros(len(texts), int(lengths.max()), 2, dtype=torch.int64)
    for row, s in zip(padded, spans, strict=True):
        row[: len(s)] = torch.tensor(s)
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True), padded, lengths
