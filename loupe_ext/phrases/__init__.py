"""Noun phrases of raw captions, behind one interface: any function from a text to its phrases will do."""

from loupe_ext.phrases.phrase import Chunker, Phrase, phrase_at, tokens
from loupe_ext.phrases.rules import chunk
from loupe_ext.phrases.spacy import SpacyChunker

__all__ = ["Chunker", "Phrase", "SpacyChunker", "chunk", "phrase_at", "tokens"]
