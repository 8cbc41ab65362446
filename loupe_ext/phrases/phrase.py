"""Words of a text, and the phrases that they make."""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

# What stands in words and is not seen: controls, soft hyphens, joiners, variation selectors, private use, U+FFFD.
_UNSEEN = (
    r"\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ue000-\uf8ff"
    r"\ufe00-\ufe0f\ufeff\ufff9-\ufffb\ufffd\U000e0000-\U0010ffff"
)
_LETTERS = rf"[\w\u0300-\u036f][\w\u0300-\u036f{_UNSEEN}]*"
# Letters and digits of any script, with accents, joined by hyphens or apostrophes; numbers; a mark of any other kind.
_TOKEN = re.compile(rf"\d+(?:[.,]\d+)+|{_LETTERS}(?:['\u2019-]{_LETTERS})*|[^\w\s{_UNSEEN}]")
_DROPPED = re.compile(f"[{_UNSEEN}]+")


class Token(NamedTuple):
    """A word, or a punctuation mark, of a text: `text[start:end]`, without the characters in it that are not seen."""

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
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: expected Unicode text, got a lone surrogate at {error.start}") from None
    return value


def tokens(text: str, name: str = "text") -> list[Token]:
    """The words and punctuation marks of a text. A word keeps its hyphens and apostrophes ("black-and-white", "cat's").

    Raises:
        TypeError: what is called `name` is not a string. ValueError: it has a lone surrogate.
    """
    found = [Token(word[0], *word.span()) for word in _TOKEN.finditer(check_text(name, text))]
    if not _DROPPED.search(text):
        return found
    return [Token(_DROPPED.sub("", word.text), word.start, word.end) for word in found]


def phrase_at(text: str, words: list[Token], start: int, end: int) -> Phrase | None:
    """The phrase of the words of `text` that characters `start` to `end` touch; None where they touch none."""
    first = bisect_right(words, start, key=lambda word: word.end)
    after = bisect_left(words, end, key=lambda word: word.start)
    if start >= end or first >= after:
        return None
    return Phrase(
        text[words[first].start : words[after - 1].end], words[first].start, words[after - 1].end, first, after
    )
