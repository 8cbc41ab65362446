"""Who plays: the parts of an image or a text, by name, and where each of them is."""

import base64
import io
import operator
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import check_flag, check_int, check_names, check_tensor, shown
from loupe_ext.extras import needs

Spans = tuple[tuple[int, int], ...]  # characters, first and one after the last
SENTENCE_END = re.compile(r"[.!?\u2026]+[\"'\u2019\u201d)\]]*(?=\s)|[\u3002\uff01\uff1f]|\n")
MARKS = "(marks)"  # the group of players that have no place


@dataclass(frozen=True, eq=False)
class Players:
    """The n players of one side.

    Attributes:
        names: of the players.
        text, spans: of a text's players, the text and per player its characters: pairs (first, one after the last),
            more than one where a player is in several pieces, none for a mark that stands for no character.
        picture, cells: of an image's players, the picture uint8 [H, W, 3] and int64 [rows, columns], the player of
            each cell of an even grid over it, -1 for none.
        special: whether each is a mark of the model's own ([CLS], padding, punctuation that it skips), no content.
            Empty: none is.

    Raises:
        TypeError, ValueError: an attribute has the wrong type or shape; a span is outside the text, a cell's player
            not there.
    """

    names: tuple[str, ...]
    text: str | None = None
    spans: tuple[Spans, ...] | None = None
    picture: Tensor | None = None
    cells: Tensor | None = None
    special: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", check_names("names", self.names))
        try:
            special = tuple(self.special)
        except TypeError:
            raise TypeError(f"special: expected a bool per player, got {shown(self.special)}") from None
        special = tuple(check_flag("special", flag) for flag in special) or (False,) * self.n
        object.__setattr__(self, "special", special)
        if len(self.special) != self.n:
            raise ValueError(f"special: expected {self.n} flags, one per player, got {len(self.special)}")
        if (self.text is None) != (self.spans is None):
            raise ValueError("spans: expected those of a text, both or neither")
        if (self.picture is None) != (self.cells is None):
            raise ValueError("cells: expected those of a picture, both or neither")
        if self.text is not None and self.spans is not None:
            self._check_spans(self.text, self.spans)
        if self.picture is not None:
            self._check_cells(self.picture, self.cells)

    def _check_spans(self, text: object, spans: object) -> None:
        if not isinstance(text, str):
            raise TypeError(f"text: expected a str, got {type(text).__name__}")
        try:
            found = tuple(tuple((operator.index(a), operator.index(b)) for a, b in of) for of in spans)  # type: ignore[attr-defined]
        except (TypeError, ValueError):
            raise TypeError(f"spans: expected pairs of characters per player, got {shown(spans)}") from None
        if len(found) != self.n:
            raise ValueError(f"spans: expected those of {self.n} players, got {len(found)}")
        for of in found:
            for start, stop in of:
                if not 0 <= start <= stop <= len(text):
                    raise ValueError(f"spans: expected characters 0 to {len(text)} of the text, got {start} to {stop}")
        object.__setattr__(self, "spans", found)

    def _check_cells(self, picture: object, cells: object) -> None:
        check_tensor("picture", picture)
        check_tensor("cells", cells)
        assert isinstance(picture, Tensor)
        assert isinstance(cells, Tensor)
        if picture.dtype != torch.uint8 or picture.dim() != 3 or picture.shape[2] != 3 or 0 in picture.shape:
            raise ValueError(f"picture: expected uint8 [H, W, 3], got {picture.dtype} {tuple(picture.shape)}")
        if cells.dtype != torch.int64 or cells.dim() != 2 or 0 in cells.shape:
            raise ValueError(f"cells: expected int64 [rows, columns], got {cells.dtype} {tuple(cells.shape)}")
        if not -1 <= cells.min() <= cells.max() < self.n:
            got = f"{cells.min()} to {cells.max()}"
            raise ValueError(f"cells: expected players 0 to {self.n - 1}, or -1 for none, got {got}")
        object.__setattr__(self, "picture", picture.cpu())
        object.__setattr__(self, "cells", cells.cpu())

    @property
    def n(self) -> int:
        return len(self.names)

    def grouped(self, groups: Sequence[int], names: Sequence[str] | None = None) -> "Players":
        """The same with players put together: `groups[i]`, from 0 on, is the new player that player i becomes part of.

        A group is special where all its players are. `names` of the groups; default: its players' names joined.
        """
        groups, count = check_groups("groups", groups, self.n)
        members: list[list[int]] = [[] for _ in range(count)]
        for i, group in enumerate(groups):
            members[group].append(i)
        given = None if names is None else check_names("names", names, count)
        spans = self.spans
        cells = self.cells
        if cells is not None:
            cells = torch.tensor([*groups, -1])[cells]  # -1, none, is the last
        return Players(
            given or tuple(" ".join(self.names[i] for i in of) for of in members),
            self.text,
            None if spans is None else tuple(tuple(span for i in of for span in spans[i]) for of in members),
            self.picture,
            cells,
            tuple(all(self.special[i] for i in of) for of in members),
        )

    def words(self) -> tuple[list[int], list[str]]:
        """Groups for `grouped`, and their names: the players that begin in the same word, which is letters and digits
        in a row; any other player is a group of its own.

        Raises:
            ValueError: they are not players of a text.
        """
        text, starts = self._starts()
        words = list(re.finditer(r"\w+", text))
        ends = [word.end() for word in words]
        keys, names = [], {}
        for i, start in enumerate(starts):
            at = len(words) if start is None else bisect_right(ends, start)
            inside = at < len(words) and start is not None and words[at].start() <= start
            keys.append(key := at if inside else -1 - i)
            names[key] = words[at].group() if inside else self.names[i]
        return _numbered(keys, names)

    def sentences(self) -> tuple[list[int], list[str]]:
        """The same by sentences: a full stop, question or exclamation mark with a space behind it ends one, or a new
        line. Players that stand for no character are one group, "(marks)".
        """
        text, starts = self._starts()
        ends = [*(end.end() for end in SENTENCE_END.finditer(text)), len(text)]
        keys = [-1 if start is None else bisect_right(ends, start) for start in starts]
        return _numbered(keys, {-1: MARKS} | {i: text[a:b].strip() for i, (a, b) in enumerate(pairwise([0, *ends]))})

    def regions(self, rows: int, columns: int) -> tuple[list[int], list[str]]:
        """The same by the fields of a grid over the picture: the players whose cells have their middle in the same one.
        Players without cells are one group, "(marks)".

        Raises:
            TypeError, ValueError: an argument has the wrong type or value; they are not players of a picture.
        """
        grid = check_int("rows", rows, 1, 2**15), check_int("columns", columns, 1, 2**15)
        if self.cells is None:
            raise ValueError("players: expected those of a picture, got players without one")
        keys = [-1] * self.n
        for player in self.cells.unique().clamp(min=0).tolist():
            middle = (self.cells == player).nonzero().double().add(0.5).mean(0) / torch.tensor(self.cells.shape)
            if not middle.isnan().any():
                row, column = (middle * torch.tensor(grid)).long().tolist()
                keys[player] = row * grid[1] + column
        names = {key: f"row {key // grid[1] + 1}, column {key % grid[1] + 1}" for key in keys}
        return _numbered(keys, names | {-1: MARKS})

    def _starts(self) -> tuple[str, list[int | None]]:
        """The text, and of each player its first character that is no space."""
        if self.text is None or self.spans is None:
            raise ValueError("players: expected those of a text, got players without one")
        text = self.text
        seen = ([at for start, stop in of for at in range(start, stop) if not text[at].isspace()] for of in self.spans)
        return text, [of[0] if of else None for of in seen]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings; the picture as PNG in base64."""
        return {
            "names": list(self.names),
            "text": self.text,
            "spans": None if self.spans is None else [[list(span) for span in of] for of in self.spans],
            "picture": None if self.picture is None else base64.b64encode(png(self.picture)).decode(),
            "cells": None if self.cells is None else self.cells.tolist(),
            "special": list(self.special),
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> "Players":
        """The reverse of `to_dict`."""
        picture, cells = stored["picture"], stored["cells"]
        return cls(
            tuple(stored["names"]),
            stored["text"],
            stored["spans"],
            None if picture is None else _pixels(base64.b64decode(picture)),
            None if cells is None else torch.tensor(cells, dtype=torch.int64),
            tuple(stored["special"]),
        )


def _numbered(keys: list[int], names: dict[int, str]) -> tuple[list[int], list[str]]:
    """Groups by their keys, numbered as they come, and their names."""
    found: dict[int, int] = {}
    groups = [found.setdefault(key, len(found)) for key in keys]
    return groups, [names[key] for key in found]


def check_groups(name: str, groups: object, n: int) -> tuple[list[int], int]:
    """Per player of n the group it is in, numbered from 0 without a gap, and how many groups there are."""
    if isinstance(groups, Tensor):
        groups = groups.tolist()
    if (
        isinstance(groups, str)
        or not isinstance(groups, Sequence)
        or any(isinstance(g, bool) or not isinstance(g, int) for g in groups)
    ):
        raise TypeError(f"{name}: expected a sequence of int, got {shown(groups)}")
    if len(groups) != n:
        raise ValueError(f"{name}: expected {n} numbers, one per player, got {len(groups)}")
    if set(groups) != set(range(len(set(groups)))):
        raise ValueError(f"{name}: expected groups numbered from 0 without a gap, got {shown(sorted(set(groups)))}")
    return list(groups), len(set(groups))


def png(picture: Tensor) -> bytes:
    """A picture uint8 [H, W, 3] as a PNG file."""
    with needs("pillow"):
        from PIL import Image
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, "PNG")
    return file.getvalue()


def _pixels(file: bytes) -> Tensor:
    with needs("pillow"):
        import numpy as np
        from PIL import Image
    try:
        return torch.from_numpy(np.array(Image.open(io.BytesIO(file)).convert("RGB")))
    except SyntaxError as error:  # what Pillow raises of a broken chunk
        raise ValueError(f"picture: expected a PNG file, got a broken one ({error})") from error
