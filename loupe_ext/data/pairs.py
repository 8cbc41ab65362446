"""Image-caption pairs, their words and batches."""

import hashlib
import json
import os
import re
import sys
import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import (
    check_int,
    check_ints,
    check_kind,
    check_names,
    check_range,
    check_same,
    check_tensor,
    shown,
)
from loupe_ext.data.batch import Batch
from loupe_ext.extras import needs
from loupe_ext.phrases.phrase import Chunker, check_text, tokens
from loupe_ext.phrases.rules import chunk

PAD = 0
PADDING, UNKNOWN, FIRST, LAST = "[PAD]", "[UNK]", "[CLS]", "[SEP]"  # as BERT's vocabularies spell them


class Vocabulary:
    """Words and their ids. Id 0 pads.

    Captions and prompts become ids by `located` alone. Where "[UNK]", "[CLS]" and "[SEP]" are among the words, the
    vocabulary is BERT's, and the ids are those of `tokenizers.BertWordPieceTokenizer` (from `loupe-ext[paper]`).
    Otherwise each word or mark of `phrases.tokens` has one id; a word that is not listed is "[UNK]", if that is.

    Text is read in lower case, unless a listed word has a capital letter.

    Args:
        words: distinct words, in composed form (NFC), without "[PAD]", which has id 0.
    """

    def __init__(self, words: Sequence[str]) -> None:
        words = check_names("words", words)
        if len(set(words)) != len(words):
            raise ValueError("words: expected distinct words, got a repeated one")
        if PADDING in words:
            raise ValueError(f"words: expected those behind {PADDING}, which has id 0, got it among them")
        self.words = words
        self._ids = {word: i for i, word in enumerate(self.words, start=1)}
        self.framed = {UNKNOWN, FIRST, LAST} <= self._ids.keys()
        self._lowercase = not any(re.match(r"[^\[]*[A-Z]", word) for word in self.words)

    def __len__(self) -> int:
        return len(self.words) + 1

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with those of "[CLS]" and "[SEP]" around them where the vocabulary is BERT's."""
        return [i for i, _ in self.located(text)]

    def located(self, text: str, name: str = "text") -> list[tuple[int, int]]:
        """The ids of a text, each with the character of the text that it starts at; -1 of "[CLS]".

        Raises:
            TypeError, ValueError: what is called `name` is no text, or has a word that is not listed, nor is "[UNK]".
            ImportError: the vocabulary is BERT's and `tokenizers` is not installed.
        """
        if self.framed:
            found = self._word_pieces.encode(check_text(name, text))
            starts = [-1, *(start for start, _ in found.offsets[1:-1]), len(text)]
            return [(i, start) for i, start in zip(found.ids, starts, strict=True) if i != PAD]  # "[PAD]" in a text
        located = []
        for token in tokens(text, name):
            i = self._ids.get(_spelling(token.text, self._lowercase), self._ids.get(UNKNOWN))
            if i is None:
                raise ValueError(f"{name}: expected words of the vocabulary, got {token.text!r}")
            located.append((i, token.start))
        return located

    @cached_property
    def _word_pieces(self) -> Any:
        with needs("tokenizers"):
            from tokenizers import BertWordPieceTokenizer
        return BertWordPieceTokenizer({PADDING: PAD, **self._ids}, lowercase=self._lowercase)

    @classmethod
    def of(cls, captions: Sequence[str], least: int = 1) -> "Vocabulary":
        """The words, in lower case, that captions use at least `least` times, the commonest first, and "[UNK]"."""
        captions = check_names("captions", captions)
        found = (word for i, text in enumerate(captions) for word in tokens(text, f"captions[{i}]"))
        counts = Counter(_spelling(word.text) for word in found)
        least = check_int("least", least, 0, sys.maxsize)
        common = sorted((-n, word) for word, n in counts.items() if n >= least)
        return cls([UNKNOWN, *(word for _, word in common)])

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Vocabulary":
        """BERT's `vocab.txt`, one piece per line, the same ids: the first is "[PAD]"."""
        first, *words = Path(path).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        if first != PADDING:
            raise ValueError(f"path: expected a first line {PADDING}, got {shown(first)} in {path}")
        return cls(words)

    def decode(self, ids: Sequence[int]) -> str:
        return " ".join(self.words[i - 1] for i in ids if i != PAD)


def _spelling(word: str, lowercase: bool = True) -> str:
    """The one form of a word that can be written in several ways."""
    return unicodedata.normalize("NFC", word.lower() if lowercase else word)


@dataclass(frozen=True)
class Pairs:
    """n captioned images: the fields of `Batch` for all of them, and the vocabulary.

    Attributes:
        characters: [n, P, 2] int64, the characters of its caption that each phrase is, the first and the one after the
            last; padded with 0, 0. None: the captions were not at hand.
    """

    images: Tensor
    tokens: Tensor
    spans: Tensor
    phrase_lengths: Tensor
    vocabulary: Vocabulary
    characters: Tensor | None = None

    def __post_init__(self) -> None:
        check_images(self.images)
        check_kind("vocabulary", self.vocabulary, Vocabulary, "a Vocabulary")
        for name, dims in (("tokens", "nL"), ("spans", "nP2"), ("phrase_lengths", "n"), ("characters", "nP2")):
            if name == "characters" and self.characters is None:
                continue
            value = check_ints(name, getattr(self, name), dims)
            check_same(name, value, "images", self.images, {"n": (0, 0)})
            if name == "characters":
                check_same(name, value, "spans", self.spans, {"P": (1, 1)})
        check_range("tokens", self.tokens, 0, len(self.vocabulary) - 1)
        check_range("spans", self.spans, 0, self.tokens.shape[1])
        check_range("phrase_lengths", self.phrase_lengths, 0, self.spans.shape[1])

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
            trained = fit(pairs, Config())

        Args:
            images: [n, 3, H, W] uint8. Captions: n of them, of one word or more each.
            vocabulary: None: all words of these captions, and "[UNK]" for any other.
            chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.
            longest: the ids that are kept of a caption, those of "[CLS]" and "[SEP]" among them.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; a caption has no word.
        """
        check_images(images)
        captions = check_names("captions", captions)
        if len(captions) != len(images):
            raise ValueError(f"captions: expected one per image ({len(images)}), got {len(captions)}")
        vocabulary = Vocabulary.of(captions) if vocabulary is None else vocabulary
        words, spans, lengths, characters = encode_all(
            "captions", captions, vocabulary, [chunker] * len(captions), longest
        )
        return cls(images, words, spans, lengths, vocabulary, characters)

    def __len__(self) -> int:
        return len(self.images)

    def fingerprint(self) -> dict[str, str]:
        """A line about each field, the same for the same content only: its dtype and shape, and a hash."""
        lines = {}
        for name in ("images", "tokens", "spans", "phrase_lengths"):
            value: Tensor = getattr(self, name)
            digest = hashlib.blake2b(digest_size=12)
            for rows in value.split(64):
                digest.update(rows.cpu().numpy().tobytes())
            lines[name] = f"{str(value.dtype)[6:]} {list(value.shape)} {digest.hexdigest()}"
        words = json.dumps(self.vocabulary.words).encode()
        digest = hashlib.blake2b(words, digest_size=12)
        return {**lines, "vocabulary": f"{len(self.vocabulary.words)} words {digest.hexdigest()}"}

    def batch(self, indices: Tensor | slice) -> Batch:
        """The pairs at these places."""
        return Batch(self.images[indices], self.tokens[indices], self.spans[indices], self.phrase_lengths[indices])

    def batches(self, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> "PairBatches":
        """Batches without end, for `train`; see `PairBatches`."""
        return PairBatches(self, batch_size, seed, rank, world_size)

    def caption(self, i: int) -> str:
        return self.vocabulary.decode(self.tokens[i].tolist())

    def phrases(self, i: int) -> list[str]:
        spans = self.spans[i, : self.phrase_lengths[i]].tolist()
        return [self.vocabulary.decode(self.tokens[i, start:end].tolist()) for start, end in spans]


def check_images(images: Tensor) -> None:
    check_tensor("images", images)
    if images.dim() != 4 or images.shape[1] != 3 or 0 in images.shape[2:] or images.dtype != torch.uint8:
        raise ValueError(f"images: expected uint8 of shape [n, 3, H, W], got {images.dtype} {tuple(images.shape)}")


def encode_texts(
    name: str, texts: Sequence[str], vocabulary: Vocabulary, chunker: Chunker, longest: int = 60
) -> tuple[Tensor, Tensor, Tensor]:
    """`tokens`, `spans` and `phrase_lengths` of a `Batch`, of texts that errors call `name`; see `from_captions`."""
    texts = check_names(name, texts)
    check_kind("chunker", chunker, Callable, "a callable")
    return encode_all(name, texts, vocabulary, [chunker] * len(texts), longest)[:3]


def encode_all(
    name: str, texts: Sequence[str], vocabulary: Vocabulary, chunkers: Sequence[Chunker], longest: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As `encode_texts`, with a chunker for each text; and `Pairs.characters`."""
    check_kind("vocabulary", vocabulary, Vocabulary, "a Vocabulary")
    for chunker in chunkers[:1]:
        check_kind("chunker", chunker, Callable, "a callable")
    if check_int("longest", longest, 0, sys.maxsize) <= 2 * vocabulary.framed:
        raise ValueError(f"longest: expected room for a word, got {longest}")
    read = [
        _encode(f"{name}[{i}]", text, vocabulary, chunker, longest)
        for i, (text, chunker) in enumerate(zip(texts, chunkers, strict=True))
    ]
    n, most = len(read), [max(map(len, part), default=0) for part in zip(*read, strict=True)] or [0, 0, 0]
    words, spans, characters = (
        torch.zeros(n, size, *two).long() for size, two in zip(most, ((), (2,), (2,)), strict=True)
    )
    for i, (ids, where, phrases) in enumerate(read):
        words[i, : len(ids)], spans[i, : len(where)] = torch.tensor(ids), torch.tensor(where)
        characters[i, : len(phrases)] = torch.tensor(phrases)
    return words, spans, torch.tensor([len(where) for _, where, _ in read], dtype=torch.int64), characters


def _encode(
    name: str, text: str, vocabulary: Vocabulary, chunker: Chunker, longest: int
) -> tuple[list[int], list[tuple[int, int]], list[tuple[int, int]]]:
    """The ids of a text, and its noun phrases' spans in them and characters in it; of the whole text if it has none."""
    located = vocabulary.located(text, name)
    ids, starts = [i for i, _ in located], [start for _, start in located]
    frame = int(vocabulary.framed)  # ids before and after those of the text
    last = min(len(ids), longest) - frame
    if last <= frame:
        raise ValueError(f"{name}: expected a word or more, got {text!r}")
    spans, characters = [], []
    for phrase in chunker(text):
        if not 0 <= phrase.start < phrase.end <= len(text):
            raise ValueError(f"chunker: expected phrases of the {len(text)} characters of {text!r}, got {phrase}")
        first, after = (min(bisect_left(starts, at), last) for at in (phrase.start, phrase.end))
        if first < after:  # else it is cut off, or BERT drops all its characters
            spans.append((first, after))
            characters.append((phrase.start, phrase.end))
    return ids[:last] + ids[len(ids) - frame :], spans or [(frame, last)], characters or [(0, len(text))]


class PairBatches:
    """Batches of `Pairs` without end: a fresh permutation each epoch, a function of nothing but the seed and the step.

    Args:
        batch_size: of the global batch; what fills none is left out of an epoch.
        rank, world_size: the process takes the rank-th of so many equal parts of each batch.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value; or there are too few pairs.
    """

    def __init__(self, pairs: Pairs, batch_size: int, seed: int = 0, rank: int = 0, world_size: int = 1) -> None:
        check_kind("pairs", pairs, Pairs, "Pairs")
        self.pairs, self.seed = pairs, check_int("seed", seed, 0, 2**32 - 1)
        self.batch_size = check_int("batch_size", batch_size, 1, sys.maxsize)
        self.world_size = check_int("world_size", world_size, 1, self.batch_size)
        self.rank = check_int("rank", rank, 0, self.world_size - 1)
        if self.batch_size % self.world_size:
            raise ValueError(f"batch_size: expected a multiple of world_size ({world_size}), got {batch_size}")
        if len(pairs) < self.batch_size:
            raise ValueError(f"pairs: expected at least a batch of {batch_size}, got {len(pairs)}")
        self.step = 0

    def indices(self, step: int) -> Tensor:
        """The pairs of this process in a step."""
        epoch, at = divmod(step, len(self.pairs) // self.batch_size)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(len(self.pairs), generator=generator)
        own = self.batch_size // self.world_size
        start = at * self.batch_size + self.rank * own
        return order[start : start + own]

    def __iter__(self) -> Iterator[Batch]:
        while True:
            self.step += 1
            yield self.pairs.batch(self.indices(self.step - 1))

    def fingerprint(self) -> dict[str, str]:
        return self.pairs.fingerprint()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch is."""
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        if not isinstance(state, dict) or "step" not in state:
            raise TypeError(f"state: expected one of state_dict, got {shown(state)}")
        self.step = check_int("step", state["step"], 0, sys.maxsize)
