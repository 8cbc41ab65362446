"""Noun phrases by a spaCy pipeline, for those who have one of its models; `pip install 'loupe-ext[phrases]'`."""

from typing import Any

from loupe_ext.extras import needs
from loupe_ext.phrases.phrase import Phrase, check_text, phrase_at, tokens


class SpacyChunker:
    """A chunker of the noun chunks of a spaCy pipeline that tags and parses, without those that a pronoun heads.

    Args:
        nlp: the pipeline, or the name of one that is installed, such as "en_core_web_sm".

    Raises:
        ImportError: spaCy is not installed. OSError: no pipeline of that name is. ValueError, at a call: the pipeline
            does not parse, spaCy knows no noun chunks of its language, or the text has a lone surrogate. TypeError, at
            a call: the text is no string.
    """

    def __init__(self, nlp: Any) -> None:
        if isinstance(nlp, str):
            with needs("spacy"):
                import spacy
            nlp = spacy.load(nlp)
        self.nlp = nlp

    def __call__(self, text: str) -> list[Phrase]:
        words = tokens(check_text("text", text))
        if not words:
            return []
        doc = self.nlp(text)
        if not doc.has_annotation("DEP"):
            raise ValueError(f"nlp: expected a pipeline that parses, got one of {', '.join(self.nlp.pipe_names)}")
        try:
            chunks = list(doc.noun_chunks)
        except NotImplementedError as error:
            raise ValueError(f"nlp: expected a language with noun chunks, got {self.nlp.lang!r}") from error
        found = []
        for chunk in chunks:
            phrase = phrase_at(text, words, chunk.start_char, chunk.end_char)
            if phrase is not None and chunk.root.pos_ != "PRON":
                found.append(phrase)
        return found
