"""Image-caption pairs, and what only evaluation may see: the true boxes of phrases and objects."""

import hashlib
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loupe_ext._checks import shown
from loupe_ext.phrases.phrase import Chunker, check_text, tokens
from loupe_ext.phrases.rules import chunk

PAD = 0
UNKNOWN, FIRST, LAST = "[UNK]", "[CLS]", "[SEP]"  # as BERT's vocabularies spell them


class Vocabulary:
    """Words and their ids. Id 0 pads.

    A word that is not among them is cut into the longest pieces that are, of which those that continue a word begin
    with "##" (WordPiece, as in BERT); where that fails it is "[UNK]", if that is among them.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if len(set(words)) != len(words):
            raise ValueError("words: expected distinct words, got a repeated one")
        self.words = tuple(words)
        self._ids = {word: i for i, word in enumerate(self.words, start=1)}
        self._longest = max(map(len, self.words), default=0)

    def __len__(self) -> int:
        return len(self.words) + 1

    def __contains__(self, word: object) -> bool:
        return word in self._ids

    def encode(self, text: str) -> list[int]:
        """The ids of the words of `text`, which spaces separate."""
        return [i for word in text.split() for i in self.pieces(word)]

    def pieces(self, word: str) -> list[int]:
        """The ids of one word, mostly one."""
        if word in self._ids:
            return [self._ids[word]]
        plain = "".join(c for c in unicodedata.normalize("NFD", word) if not unicodedata.combining(c))
        found = [self._cut(part) for part in re.findall(r"[^\W_]+|[\W_]", plain)]
        if found and all(found):
            return [i for ids in found for i in ids]
        if UNKNOWN not in self._ids:
            raise ValueError(f"text: expected words of the vocabulary, got {word!r}")
        return [self._ids[UNKNOWN]]

    def _cut(self, word: str) -> list[int]:
        """The longest pieces, from the left; none if some letter is in no piece."""
        ids: list[int] = []
        start = 0
        while start < len(word):
            for end in range(min(len(word), start + self._longest), start, -1):
                piece = self._ids.get(("##" if start else "") + word[start:end])
                if piece is not None:
                    ids.append(piece)
                    start = end
                    break
            else:
                return []
        return ids

    @classmethod
    def of(cls, captions: Sequence[str], least: int = 1) -> "Vocabulary":
        """The words, in lower case, that captions use at least `least` times, the commonest first, and "[UNK]"."""
        counts = Counter(word.text.lower() for text in captions for word in tokens(text))
        common = sorted((-n, word) for word, n in counts.items() if n >= least)
        return cls([UNKNOWN, *(word for _, word in common)])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """BERT's `vocab.txt`, one piece a line, the same ids: the first is "[PAD]"."""
        first, *words = Path(path).read_text(encoding="utf-8").splitlines() or [""]
        if first != "[PAD]":
            raise ValueError(f"path: expected a first line [PAD], got {shown(first)} in {path}")
        return cls(words)

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

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(x.to(device) for x in (self.images, self.words, self.spans, self.phrase_lengths)))


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

    @classmethod
    def from_captions(
        cls,
        images: Tensor,
        captions: Sequence[str],
        vocabulary: Vocabulary | None = None,
        chunker: Chunker = chunk,
        longest: int = 60,
    ) -> "Pairs":
        """Images with raw captions, whose noun phrases a chunker finds.

        A caption without any noun phrase becomes one phrase as a whole, so that it has something to align.

            pairs = Pairs.from_captions(images, ["A dog chases two cats.", "the red door of a house"])
            trained = train(pairs, Config(train_size=len(pairs)))

        Args:
            images: [n, 3, H, W] uint8. Captions: n of them, of one word or more each.
            vocabulary: of the words, in lower case. None: all words of these captions, and "[UNK]" for any other. One
                that has "[CLS]" and "[SEP]" (BERT's) gets them around each caption.
            chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.
            longest: the words (or pieces of words) that are kept of a caption.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; a caption has no word.
        """
        if isinstance(captions, str) or not all(isinstance(text, str) for text in captions):
            raise TypeError("captions: expected a sequence of str")
        if len(captions) != len(images):
            raise ValueError(f"captions: expected one an image ({len(images)}), got {len(captions)}")
        vocabulary = Vocabulary.of(captions) if vocabulary is None else vocabulary
        frame = vocabulary.encode(f"{FIRST} {LAST}") if FIRST in vocabulary and LAST in vocabulary else []
        if longest <= len(frame):
            raise ValueError(f"longest: expected room for a word, got {longest}")
        read = [_read(f"captions[{i}]", text, vocabulary, chunker, longest, frame) for i, text in enumerate(captions)]
        n, most = len(read), [max(map(len, part), default=0) for part in zip(*read, strict=True)] or [0, 0]
        words, spans = torch.zeros(n, most[0], dtype=torch.int64), torch.zeros(n, most[1], 2, dtype=torch.int64)
        for i, (ids, where) in enumerate(read):
            words[i, : len(ids)], spans[i, : len(where)] = torch.tensor(ids), torch.tensor(where)
        return cls(images, words, spans, torch.tensor([len(where) for _, where in read], dtype=torch.int64), vocabulary)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> dict[str, str]:
        """A line about each field, the same for the same content only: its dtype and shape, and a hash."""
        lines = {}
        for name in ("images", "words", "spans", "phrase_lengths"):
            value: Tensor = getattr(self, name)
            digest = hashlib.blake2b(digest_size=12)
            for rows in value.split(64):
                digest.update(rows.cpu().numpy().tobytes())
            lines[name] = f"{str(value.dtype)[6:]} {list(value.shape)} {digest.hexdigest()}"
        words = json.dumps(self.vocabulary.words).encode()
        digest = hashlib.blake2b(words, digest_size=12)
        return {**lines, "vocabulary": f"{len(self.vocabulary.words)} words {digest.hexdigest()}"}

    def batch(self, indices: Tensor | slice) -> Batch:
        return Batch(self.images[indices], self.words[indices], self.spans[indices], self.phrase_lengths[indices])

    def caption(self, i: int) -> str:
        return self.vocabulary.decode(self.words[i].tolist())

    def phrases(self, i: int) -> list[str]:
        spans = self.spans[i, : self.phrase_lengths[i]].tolist()
        return [self.vocabulary.decode(self.words[i, start:end].tolist()) for start, end in spans]


def _read(
    name: str, text: str, vocabulary: Vocabulary, chunker: Chunker, longest: int, frame: list[int]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a caption, and the spans of its noun phrases in them."""
    words = tokens(check_text(name, text))
    if not words:
        raise ValueError(f"{name}: expected a word or more, got {text!r}")
    ids, starts = frame[:1], []
    for word in words:
        starts.append(len(ids))
        ids += vocabulary.pieces(word.text.lower())
    starts.append(len(ids))
    last = min(len(ids), longest - len(frame[1:]))
    spans = []
    for phrase in chunker(text):
        if not 0 <= phrase.first < phrase.after <= len(words):
            raise ValueError(f"chunker: expected phrases of the {len(words)} words of {text!r}, got {phrase}")
        if starts[phrase.first] < last:
            spans.append((starts[phrase.first], min(starts[phrase.after], last)))
    return ids[:last] + frame[1:], spans or [(starts[0], last)]


@dataclass(frozen=True)
class Grounded:
    """Pairs with the true boxes of every phrase and object. Evaluation takes this; training takes its `pairs`.

    Attributes:
        pairs: n captioned images.
        boxes: [n, P, 4] float32, x0, y0, x1, y1 in pixels of each phrase's object; NaN where there is no phrase.
        objects: [n, K, 4] float32, the boxes of all objects, also of those that the caption does not name; NaN where
            there is none.
        classes: [n, K] int64, what each object is, an index of `prompts`; -1 where there is none.
        prompts: what a caption would call an object of each class, in the words of the vocabulary.
    """

    pairs: Pairs
    boxes: Tensor
    objects: Tensor
    classes: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (*self.pairs.spans.shape[:2], 4)
        if self.boxes.shape != shape:
            raise ValueError(f"boxes: expected shape {shape}, got {tuple(self.boxes.shape)}")
        check_objects(self.objects, self.classes, len(self), len(self.prompts))

    def __len__(self) -> int:
        return len(self.pairs)


def check_objects(objects: Tensor, classes: Tensor, n: int, count: int) -> None:
    """Raise unless these are the boxes [n, K, 4] and the classes [n, K], of `count`, of the objects of n images."""
    if classes.dim() != 2 or len(classes) != n or classes.dtype != torch.int64:
        raise ValueError(f"classes: expected int64 of shape [{n}, *], got {classes.dtype} {tuple(classes.shape)}")
    if objects.shape != (*classes.shape, 4):
        raise ValueError(f"objects: expected shape {(*classes.shape, 4)}, got {tuple(objects.shape)}")
    if ((classes < -1) | (classes >= count)).any():
        raise ValueError(f"classes: expected -1 to {count - 1}, got {classes.min()} to {classes.max()}")
    if not objects[classes >= 0].isfinite().all():
        raise ValueError("objects: expected finite boxes of all objects, got NaN or infinity")
