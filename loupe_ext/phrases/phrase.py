"""Words of a text, and the phrases that they make."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass

# Letters and digits of any script, with accents, joined by hyphens or apostrophes; numbers; a mark of any other kind.
_TOKEN = re.compile(r"\d+(?:[.,]\d+)+|[\w\u0300-\u036f]+(?:['\u2019-][\w\u0300-\u036f]+)*|[^\w\s]")


@dataclass(frozen=True)
class Token:
    """A word, or a punctuation mark, of a text: `text[start:end]`."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Phrase:
    """A noun phrase of a text: its characters `text[start:end]`, which are its words `tokens(text)[first:after]`."""

    text: str
    start: int
    end: int
    first: int
    after: int


Chunker = Callable[[str], list[Phrase]]
"""From a text to its noun phrases, in order and apart from each other."""


def check_text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected str, got {type(value).__name__}")
    return value


def tokens(text: str) -> list[Token]:
    """The words and punctuation marks of a text. A word keeps its hyphens and apostrophes ("black-and-white", "cat's").

    Raises:
        TypeError: `text` is not a string.
    """
    return [Token(found[0], found.start(), found.end()) for found in _TOKEN.finditer(check_text("text", text))]


def phrase_at(text: str, words: list[Token], start: int, end: int) -> Phrase | None:
    """The phrase of the words of `text` that characters `start` to `end` touch; None where they touch none."""
    first = bisect_right(words, start, key=lambda word: word.end)
    after = bisect_left(words, end, key=lambda word: word.start)
    if start >= end or first >= after:
        return None
    return Phrase(
        text[words[first].start : words[after - 1].end], words[first].start, words[after - 1].end, first, after
    )
