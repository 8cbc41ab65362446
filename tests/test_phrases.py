"""Noun phrases by rules and by spaCy, and pairs from raw captions."""

import re
import time
from pathlib import Path

import pytest
import torch

from loupe_ext import data
from loupe_ext.data import Pairs, Vocabulary
from loupe_ext.phrases import SpacyChunker, chunk, phrase_at, tokens
from loupe_ext.train import Config, train

MARKED = [
    line
    for line in (Path(__file__).parent / "data/phrases.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]


def unmarked(line: str) -> tuple[str, list[tuple[int, int]]]:
    """A caption without its brackets, and the characters that were in them."""
    text, spans = "", []
    for part in re.split(r"(\[[^]]*\])", line):
        inside = part.strip("[]") if part.startswith("[") else part
        if inside is not part:
            spans.append((len(text), len(text) + len(inside)))
        text += inside
    return text, spans


def found(text: str) -> list[str]:
    return [phrase.text for phrase in chunk(text)]


class TestTokens:
    @pytest.mark.parametrize(
        ("text", "want"),
        [
            ("a cat's tail, twice", ["a", "cat's", "tail", ",", "twice"]),
            ("black-and-white film (1950s)", ["black-and-white", "film", "(", "1950s", ")"]),
            ("2,000 m at 3.5 %.", ["2,000", "m", "at", "3.5", "%", "."]),
            ("cafe\u0301 na\u00efve 狗", ["cafe\u0301", "na\u00efve", "狗"]),
            ("-- 'tis \u2019s -", ["-", "-", "'", "tis", "\u2019", "s", "-"]),
            ("\u00a0 \t\n", []),
        ],
    )
    def test_words_and_marks(self, text, want):
        assert [token.text for token in tokens(text)] == want
        assert all(text[token.start : token.end] == token.text for token in tokens(text))

    def test_phrase_at_takes_the_words_that_its_characters_touch(self):
        text = "  a red dog , a cat"
        words = tokens(text)
        for start in range(len(text)):
            for end in range(start, len(text) + 1):
                touched = [
                    i for i, word in enumerate(words) if set(range(word.start, word.end)) & set(range(start, end))
                ]
                phrase = phrase_at(text, words, start, end)
                assert (phrase is None) == (not touched)
                if phrase is not None:
                    assert list(range(phrase.first, phrase.after)) == touched
                    assert phrase.text == text[phrase.start : phrase.end]


class TestRules:
    @pytest.mark.parametrize(("first", "least"), [(0, 0.95), (40, 0.9)])
    def test_precision_and_recall_on_marked_captions(self, first, least):
        right = wrong = missed = 0
        for line in MARKED[first : first + 40]:
            text, want = unmarked(line)
            got = {(phrase.start, phrase.end) for phrase in chunk(text)}
            right += len(got & set(want))
            wrong += len(got - set(want))
            missed += len(set(want) - got)
        assert right / (right + wrong) >= least
        assert right / (right + missed) >= least

    @pytest.mark.parametrize("name", data.DATASETS)
    @pytest.mark.parametrize("split", data.SPLITS)
    def test_scenes_captions_give_their_spans_exactly(self, name, split):
        if name == "digits":
            pytest.importorskip("sklearn")
        pairs = data.load(name, split, 300).pairs
        for i in range(len(pairs)):
            want = pairs.spans[i, : pairs.phrase_lengths[i]].tolist()
            assert [[phrase.first, phrase.after] for phrase in chunk(pairs.caption(i))] == want

    def test_phrases_are_apart_in_order_and_made_of_whole_words(self):
        for line in MARKED:
            text, _ = unmarked(line)
            words, end = tokens(text), 0
            for phrase in chunk(text):
                assert phrase.first >= end
                end = phrase.after
                assert (phrase.start, phrase.end) == (words[phrase.first].start, words[phrase.after - 1].end)
                assert phrase.text == text[phrase.start : phrase.end]

    @pytest.mark.parametrize(
        ("text", "want"),
        [
            ("two men stand by a fruit stand", ["two men", "a fruit stand"]),
            ("a smiling woman smiling", ["a smiling woman"]),
            ("a parked car is parked", ["a parked car"]),
            ("a man and woman sit", ["a man", "woman"]),
            ("the back of that bus that stops", ["the back", "that bus"]),
            ("a light blue shirt on a dish full of soup", ["a light blue shirt", "a dish", "soup"]),
            ("The man\u2019s two dogs", ["The man\u2019s two dogs"]),
            ("workers repair the road to build a bridge", ["workers", "the road", "a bridge"]),
            ("he gives it to her, in front of them", []),
            ("lots of people in the 19th century", ["lots of people", "the 19th century"]),
        ],
    )
    def test_words_go_by_their_neighbours(self, text, want):
        assert found(text) == want

    @pytest.mark.parametrize(
        "text", ["", "  ", "!!!", ", , and", "the", "very", "- -- '", "\u200d\ufe0f", "is of to the"]
    )
    def test_nothing_is_found_where_nothing_is(self, text):
        assert chunk(text) == []

    def test_other_scripts_and_pictures(self):
        assert found("a caf\u00e9 \U0001f469\u200d\U0001f680 and 狗") == ["a caf\u00e9", "狗"]

    @pytest.mark.parametrize(
        "unit",
        ["the ", "1 ", "red, ", "cat's ", "red ", "dog ", "very ", "dog sit ", "and a ", "men's the ", "x", "a-", "!"],
    )
    def test_time_is_linear_in_the_length(self, unit):
        def seconds(n: int) -> float:
            start = time.process_time()
            chunk(unit * n)
            return time.process_time() - start

        assert min(seconds(8000) for _ in range(3)) < 32 * max(1e-3, min(seconds(1000) for _ in range(3)))

    @pytest.mark.parametrize("value", [None, 3, b"a dog", ["a dog"]])
    def test_what_is_no_text(self, value):
        with pytest.raises(TypeError, match=f"text: expected str, got {type(value).__name__}"):
            chunk(value)


# Of a pipeline built by hand: what its "parser" knows of words, their tag, head and relation.
HEADS = {
    "She": ("PRON", "sees", "nsubj"),
    "a": ("DET", "cat", "det"),
    "black": ("ADJ", "cat", "amod"),
    "-": ("PUNCT", "cat", "punct"),
    "and": ("CCONJ", "cat", "cc"),
    "white": ("ADJ", "cat", "amod"),
    "cat": ("NOUN", "sees", "dobj"),
    "in": ("ADP", "cat", "prep"),
    "the": ("DET", "car", "det"),
    "old": ("ADJ", "car", "amod"),
    "car": ("NOUN", "in", "pobj"),
}


@pytest.fixture(scope="module")
def nlp():
    spacy = pytest.importorskip("spacy", reason="the extra `phrases` is not installed")

    @spacy.Language.component("parse_by_hand")
    def parse_by_hand(doc):
        at = {token.text: token for token in doc}
        for token in doc:
            token.pos_, head, token.dep_ = HEADS.get(token.text, ("VERB", "", "ROOT"))
            token.head = at.get(head, token)
        return doc

    nlp = spacy.blank("en")
    nlp.add_pipe("parse_by_hand")
    return nlp


class TestSpacy:
    def test_noun_chunks_become_phrases_of_our_words_and_pronouns_none(self, nlp):
        text = "She sees a black-and-white cat in the old car."
        got = SpacyChunker(nlp)(text)
        assert [phrase.text for phrase in got] == ["a black-and-white cat", "the old car"]
        assert [(phrase.first, phrase.after) for phrase in got] == [(2, 5), (6, 9)]
        assert all(text[phrase.start : phrase.end] == phrase.text for phrase in got)

    def test_nothing_to_parse(self, nlp):
        assert SpacyChunker(nlp)("  ") == []

    def test_a_pipeline_that_does_not_parse(self, nlp):
        import spacy

        with pytest.raises(ValueError, match="nlp: expected a pipeline that parses"):
            SpacyChunker(spacy.blank("en"))("a cat")
        with pytest.raises(OSError, match="no_such_pipeline"):
            SpacyChunker("no_such_pipeline")

    def test_a_language_without_noun_chunks(self, nlp):
        import spacy

        other = spacy.blank("xx")
        other.add_pipe("parse_by_hand")
        with pytest.raises(ValueError, match="nlp: expected a language with noun chunks, got 'xx'"):
            SpacyChunker(other)("a cat")

    def test_what_is_no_text(self, nlp):
        with pytest.raises(TypeError, match="text: expected str, got int"):
            SpacyChunker(nlp)(3)

    def test_pairs_take_it(self, nlp):
        images = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
        assert Pairs.from_captions(images, ["a cat in the car"], chunker=SpacyChunker(nlp)).phrases(0) == [
            "a cat",
            "the car",
        ]


class TestPairs:
    images = staticmethod(lambda n: torch.zeros(n, 3, 8, 8, dtype=torch.uint8))

    def test_words_and_phrases_of_raw_captions(self):
        captions = ["A dog chases two cats.", "The door", "running Fast"]
        pairs = Pairs.from_captions(self.images(3), captions)
        assert [pairs.caption(i) for i in range(3)] == ["a dog chases two cats .", "the door", "running fast"]
        assert pairs.phrases(0) == ["a dog", "two cats"]
        assert pairs.phrases(2) == ["running fast"]  # no noun phrase: the whole
        assert pairs.phrase_lengths.tolist() == [2, 1, 1]

    def test_scenes_captions_give_the_scenes_pairs(self):
        want = data.load("scenes", "train", 50).pairs
        got = Pairs.from_captions(want.images, [want.caption(i) for i in range(50)], want.vocabulary)
        assert torch.equal(got.words, want.words[:, : got.words.shape[1]])
        assert torch.equal(got.spans, want.spans)
        assert torch.equal(got.phrase_lengths, want.phrase_lengths)

    def test_a_vocabulary_of_words_knows_the_unknown(self):
        seen = Vocabulary.of(["a dog", "a cat", "a dog runs"], least=2)
        assert seen.words == ("[UNK]", "a", "dog")
        pairs = Pairs.from_captions(self.images(1), ["a zebra"], seen)
        assert pairs.caption(0) == "a [UNK]"
        with pytest.raises(ValueError, match="text: expected words of the vocabulary, got 'zebra'"):
            Pairs.from_captions(self.images(1), ["a zebra"], Vocabulary(["a"]))

    def test_word_pieces_as_in_bert(self, tmp_path):
        listed = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "zeb", "##ra", "##r", "-", "cafe", "##s", "like"]
        (tmp_path / "vocab.txt").write_text("\n".join(listed))
        vocabulary = Vocabulary.read(str(tmp_path / "vocab.txt"))
        assert [vocabulary.pieces(word)[0] for word in listed[1:]] == list(range(1, len(listed)))
        pairs = Pairs.from_captions(self.images(1), ["a zebra-like Caf\u00e9s xyz"], vocabulary)
        assert pairs.caption(0) == "[CLS] a zeb ##ra - like cafe ##s [UNK] [SEP]"
        assert pairs.phrases(0) == ["a zeb ##ra - like cafe ##s [UNK]"]
        short = Pairs.from_captions(self.images(1), ["a zebra-like Caf\u00e9s xyz"], vocabulary, longest=5)
        assert short.caption(0) == "[CLS] a zeb ##ra [SEP]"
        (tmp_path / "other").write_text("a\nb")
        with pytest.raises(ValueError, match=r"path: expected a first line \[PAD\], got 'a'"):
            Vocabulary.read(tmp_path / "other")

    def test_a_long_caption_is_cut_and_phrases_with_it(self):
        pairs = Pairs.from_captions(self.images(2), ["the cat on a mat " * 1000, "of " * 70 + "a cat"], longest=8)
        assert pairs.words.shape == (2, 8)
        assert pairs.phrases(0) == ["the cat", "a mat", "the cat"]
        assert pairs.phrases(1) == [" ".join(["of"] * 8)]
        assert Pairs.from_captions(self.images(1), ["the cat on a mat " * 1000]).words.shape == (1, 60)

    def test_a_checkpoint_keeps_them_and_they_train(self, tmp_path):
        captions = ["A dog chases two cats.", "the red door of a house", "snow!", "\U0001f600 a caf\u00e9 at 5"] * 2
        pairs = Pairs.from_captions(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), captions)
        config = Config(width=8, dim=8, batch=4, train_size=len(pairs), steps=2, proposals=4, precision="float32")
        history = train(pairs, config, path=tmp_path / "run").history
        assert history["loss"].isfinite().all()

    @pytest.mark.parametrize(
        ("captions", "options", "error", "message"),
        [
            ("ab", {}, TypeError, "captions: expected a sequence of str"),
            (["a", 3], {}, TypeError, "captions: expected a sequence of str"),
            (["a"], {}, ValueError, r"captions: expected one an image \(2\), got 1"),
            (["a", "  "], {}, ValueError, r"captions\[1\]: expected a word or more, got '  '"),
            (["a", "b"], {"longest": 0}, ValueError, "longest: expected room for a word, got 0"),
        ],
    )
    def test_bad_captions(self, captions, options, error, message):
        with pytest.raises(error, match=message):
            Pairs.from_captions(self.images(2), captions, **options)

    def test_a_chunker_that_invents_words(self):
        def invents(text):
            return [phrase_at("a b c", tokens("a b c"), 0, 5)]

        with pytest.raises(ValueError, match="chunker: expected phrases of the 2 words of 'a b'"):
            Pairs.from_captions(self.images(1), ["a b"], chunker=invents)

    def test_none_at_all(self):
        assert len(Pairs.from_captions(self.images(0), [])) == 0
