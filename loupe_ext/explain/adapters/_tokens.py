"""What the adapters of late interaction share: tokens by name, and where in the text or the picture each of them is."""

import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from loupe_ext._checks import check_names
from loupe_ext.explain.encoders import TokenEmbeddings
from loupe_ext.explain.players import Players
from loupe_ext.phrases.phrase import check_text


@dataclass
class Row:
    """One text or picture as a model encodes it, T tokens."""

    ids: Tensor  # int64 [T]
    scored: Tensor  # bool [T]: neither padding nor what the model skips
    embeddings: Tensor  # [T, d]


class TokenModel(ABC):
    """A model of late interaction, which makes `TokenEmbeddings` of the tokens that it scores.

    Special among them are its marks ([CLS], prefixes, prompts, query expansion) and punctuation.
    """

    tokenizer: Any
    takes: ClassVar[str] = "a str"  # as a document

    @abstractmethod
    def _encode(self, contents: list[Any], is_query: bool) -> list[Row]:
        """Of contents that were checked, in their order."""

    def _prefix(self, is_query: bool) -> str:
        """What the model puts before a text as text."""
        return ""

    def _patches(self, picture: Any, ids: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        """Of a picture's tokens, bool [T] those of a patch, and the rows and columns of these if they are a grid."""
        raise NotImplementedError

    def query(self, text: str) -> TokenEmbeddings:
        """The tokens of a query.

        Raises:
            TypeError, ValueError: the text is no str, or has a lone surrogate.
        """
        check_text("text", text)
        return self._made(text, self._encode([text], True)[0], True, "")

    def document(self, content: Any, name: str = "") -> TokenEmbeddings:
        """The tokens of a document, and its name in the explanation.

        Raises:
            TypeError, ValueError: the content is nothing that the model takes, or has no token that is scored.
        """
        return self.documents([content], [name])[0]

    def documents(self, contents: Sequence[Any], names: Sequence[str] | None = None) -> list[TokenEmbeddings]:
        """The same of several documents, which are encoded in batches."""
        if isinstance(contents, str) or not isinstance(contents, Sequence):
            raise TypeError(f"contents: expected a sequence of documents, got {type(contents).__name__}")
        given = check_names("names", [""] * len(contents) if names is None else names, len(contents))
        for content in contents:
            if not (isinstance(content, str) or ("picture" in self.takes and is_picture(content))):
                raise TypeError(f"document: expected {self.takes}, got {type(content).__name__}")
            if isinstance(content, str):
                check_text("document", content)
        rows = self._encode(list(contents), False) if contents else []
        return [self._made(one, row, False, name) for one, row, name in zip(contents, rows, given, strict=True)]

    def _made(self, content: Any, row: Row, is_query: bool, name: str) -> TokenEmbeddings:
        at = row.scored.nonzero().flatten()
        if not len(at):
            raise ValueError("document: expected a token that the model scores, got none")
        ids = row.ids.tolist()
        players = self._of_text(content, ids, is_query) if isinstance(content, str) else self._of_picture(content, ids)
        return TokenEmbeddings(row.embeddings[at].clone(), chosen(players, at.tolist()), name)

    def _of_text(self, text: str, ids: list[int], is_query: bool) -> Players:
        names = tuple(self._name(i) for i in ids)
        places = located(self.tokenizer, text, ids, self._prefix(is_query))
        if places is None:
            marks = set(self.tokenizer.all_special_ids)
            special = tuple(i in marks or is_punctuation(name) for i, name in zip(ids, names, strict=True))
            return Players(names, special=special)
        spans = tuple(() if place is None else (trimmed(text, *place),) for place in places)
        names = tuple((of and text[slice(*of[0])]) or name for of, name in zip(spans, names, strict=True))
        special = tuple(place is None or is_punctuation(name) for place, name in zip(places, names, strict=True))
        return Players(names, text, spans, special=special)

    def _of_picture(self, picture: Any, ids: list[int]) -> Players:
        patches, grid = self._patches(picture, torch.tensor(ids))
        at = patches.nonzero().flatten()
        names = [self._name(i) for i in ids]
        for k, i in enumerate(at.tolist()):
            names[i] = f"patch {k // grid[1]},{k % grid[1]}" if grid else f"patch {k}"
        special = tuple((~patches).tolist())
        if grid is None:
            return Players(tuple(names), special=special)
        pixels = torch.from_numpy(np.array(picture.convert("RGB")))
        return Players(tuple(names), picture=pixels, cells=at.view(grid), special=special)

    def _name(self, token: int) -> str:
        return self.tokenizer.decode([token]).strip() or str(self.tokenizer.convert_ids_to_tokens(token))


def trimmed(text: str, start: int, stop: int) -> tuple[int, int]:
    """Without spaces at its ends, which some tokenizers count to the word."""
    stop -= len(text[start:stop]) - len(text[start:stop].rstrip())
    return stop - len(text[start:stop].lstrip()), stop


def is_picture(content: object) -> bool:
    try:
        from PIL import Image
    except ImportError:
        return False
    return isinstance(content, Image.Image)


def is_punctuation(name: str) -> bool:
    return all(unicodedata.category(character)[0] in "PZC" for character in name)


def chosen(players: Players, at: list[int]) -> Players:
    """Some of the players, in this order."""
    spans, cells = players.spans, players.cells
    if cells is not None:
        number = torch.full((players.n + 1,), -1)
        number[at] = torch.arange(len(at))
        cells = number[cells]
    return Players(
        tuple(players.names[i] for i in at),
        players.text,
        None if spans is None else tuple(spans[i] for i in at),
        players.picture,
        cells,
        tuple(players.special[i] for i in at),
    )


def located(tokenizer: Any, text: str, ids: list[int], prefix: str) -> list[tuple[int, int] | None] | None:
    """The characters of the text that each token stands for, None for one of the model's own; None if unknown.

    The tokens of the text are the run among `ids` that the tokenizer makes of it, alone or behind what may come before
    it: the longest run, as texts are cut.
    """
    best: tuple[int, int, list[tuple[int, int]]] = 0, 0, []
    for before in dict.fromkeys((prefix, "", " ", "\n")):
        try:
            found = tokenizer(before + text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except (NotImplementedError, ValueError):  # a tokenizer in Python knows no places
            return None
        places = [(max(0, start - len(before)), stop - len(before)) for start, stop in found["offset_mapping"]]
        pieces = [(i, place) for i, place in zip(found["input_ids"], places, strict=True) if place[1] > 0]
        if not pieces:
            return [None] * len(ids)
        start, count = run(ids, [i for i, _ in pieces])
        if count > best[1]:
            best = start, count, [place for _, place in pieces]
        if count == len(pieces):
            break
    start, count, places = best
    return [None] * start + places[:count] + [None] * (len(ids) - start - count) if count else None


def run(ids: list[int], pieces: list[int]) -> tuple[int, int]:
    """Where among `ids` the longest run is that `pieces` begin with, and its length."""
    best = 0, 0
    for at in (i for i, first in enumerate(ids) if first == pieces[0]):
        same = takewhile(lambda pair: pair[0] == pair[1], zip(ids[at:], pieces, strict=False))
        best = max(best, (at, sum(1 for _ in same)), key=lambda found: found[1])
    return best
