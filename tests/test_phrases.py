"""Noun phrases by rules and by spaCy, and pairs from raw captions."""

import random
import re
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from loupe_ext import data
from loupe_ext.data import Pairs, Vocabulary
from loupe_ext.phrases import SpacyChunker, chunk, phrase_at, tokens
from loupe_ext.train import Config, fit, from_pretrained

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

    def test_what_is_not_seen_makes_no_word_and_parts_none(self):
        text = "\x00The\u200b foot\u00adball\ufffd \ue000 \u200bdog\u200d's \u2764\ufe0f\U000e0001"
        assert [token.text for token in tokens(text)] == ["The", "football", "dog's", "\u2764"]
        assert [text[token.start] for token in tokens(text)] == ["T", "f", "d", "\u2764"]
        assert Vocabulary.of([text]).encode(text) == Vocabulary.of([text]).encode("the football dog's \u2764")

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
        pairs = data.load(name, split, 300 if name != "pictograms" else 150).pairs
        for i in range(len(pairs)):
            want = pairs.spans[i, : pairs.phrase_lengths[i]].tolist()
            found = [phrase for phrase in chunk(pairs.caption(i)) if phrase.text not in ("a picture", "the picture")]
            assert [[phrase.first, phrase.after] for phrase in found] == want

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
            ("the dogs' bowls and two boys\u2019 red hats", ["the dogs' bowls", "two boys\u2019 red hats"]),
            ("in 'the dogs' bowls are seen", ["the dogs", "bowls"]),  # the end of a quotation
            ("a cat to the left of the left dog", ["a cat", "the left dog"]),
            ("a tree in the middle of a field on the right of a lake", ["a tree", "a field", "a lake"]),
            ("a bird at the top of the back of that bus", ["a bird", "the back", "that bus"]),
            ("a pair of shoes, hundreds of people", ["a pair of shoes", "hundreds of people"]),
            ("a carpentry saw, a man saw a dog, the saw", ["a carpentry saw", "a man", "a dog", "the saw"]),
            ("leafy green", ["leafy green"]),
            (
                "the larger pair of gloves, an orange pair of socks",
                ["the larger pair of gloves", "an orange pair of socks"],
            ),
            ("a red high heel and the larger roller skate", ["a red high heel", "the larger roller skate"]),
            ("a small moped, a peach", ["a small moped", "a peach"]),
            ("a sage green dress", ["a sage green dress"]),
            ("ice skates and two roller skates, a girl skates", ["ice skates", "two roller skates", "a girl"]),
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
        [
            "the ",
            "1 ",
            "red, ",
            "cat's ",
            "red ",
            "dog ",
            "very ",
            "dog sit ",
            "and a ",
            "men's the ",
            "x",
            "a-",
            "!",
            "the dogs' ",
            "' ",
        ],
    )
    def test_time_is_linear_in_the_length(self, unit):
        def seconds(n: int) -> float:
            start = time.process_time()
            chunk(unit * n)
            return time.process_time() - start

        assert min(seconds(8000) for _ in range(3)) < 32 * max(1e-3, min(seconds(1000) for _ in range(3)))

    def test_a_lone_surrogate(self):
        with pytest.raises(ValueError, match="text: expected Unicode text, got a lone surrogate at 6"):
            chunk("a dog \ud800")

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
        assert torch.equal(got.tokens, want.tokens[:, : got.tokens.shape[1]])
        assert torch.equal(got.spans, want.spans)
        assert torch.equal(got.phrase_lengths, want.phrase_lengths)

    def test_a_vocabulary_of_words_knows_the_unknown(self):
        seen = Vocabulary.of(["a dog", "a cat", "a dog runs"], least=2)
        assert seen.words == ("[UNK]", "a", "dog")
        pairs = Pairs.from_captions(self.images(1), ["a zebra"], seen)
        assert pairs.caption(0) == "a [UNK]"
        with pytest.raises(ValueError, match=r"captions\[0\]: expected words of the vocabulary, got 'zebra'"):
            Pairs.from_captions(self.images(1), ["a zebra"], Vocabulary(["a"]))

    def test_a_long_caption_is_cut_and_phrases_with_it(self):
        pairs = Pairs.from_captions(self.images(2), ["the cat on a mat " * 1000, "of " * 70 + "a cat"], longest=8)
        assert pairs.tokens.shape == (2, 8)
        assert pairs.phrases(0) == ["the cat", "a mat", "the cat"]
        assert pairs.phrases(1) == [" ".join(["of"] * 8)]
        assert Pairs.from_captions(self.images(1), ["the cat on a mat " * 1000]).tokens.shape == (1, 60)

    def test_a_checkpoint_keeps_them_and_they_train(self, tmp_path):
        captions = ["A dog chases two cats.", "the red door of a house", "snow!", "\U0001f600 a caf\u00e9 at 5"] * 2
        pairs = Pairs.from_captions(torch.randint(256, (8, 3, 16, 16), dtype=torch.uint8), captions)
        config = Config().but(width=8, dim=8, batch_size=4, train_size=8, steps=2, proposals=4, precision="float32")
        history = fit(pairs, config, path=tmp_path / "run").history
        assert history["loss"].isfinite().all()
        assert from_pretrained(tmp_path / "run").vocabulary.words == pairs.vocabulary.words

    @pytest.mark.parametrize(
        ("captions", "options", "error", "message"),
        [
            ("ab", {}, TypeError, "captions: expected a sequence of str"),
            (["a", 3], {}, TypeError, "captions: expected a sequence of str"),
            (["a"], {}, ValueError, r"captions: expected one per image \(2\), got 1"),
            (["a", "  "], {}, ValueError, r"captions\[1\]: expected a word or more, got '  '"),
            (["a", "b"], {"longest": 0}, ValueError, "longest: expected room for a word, got 0"),
            (["a", "b"], {"longest": 2.5}, TypeError, "longest: expected an int, got float"),
            (["a", "b\ud800"], {}, ValueError, r"captions\[1\]: expected Unicode text, got a lone surrogate at 1"),
        ],
    )
    def test_bad_captions(self, captions, options, error, message):
        with pytest.raises(error, match=message):
            Pairs.from_captions(self.images(2), captions, **options)

    def test_a_chunker_that_invents_words(self):
        def invents(text):
            return [phrase_at("a b c", tokens("a b c"), 0, 5)]

        with pytest.raises(ValueError, match="chunker: expected phrases of the 3 characters of 'a b'"):
            Pairs.from_captions(self.images(1), ["a b"], chunker=invents)

    def test_none_at_all(self):
        assert len(Pairs.from_captions(self.images(0), [])) == 0


def written(path: Path, *words: str) -> Vocabulary:
    """A vocabulary of BERT's kind, through its file."""
    pytest.importorskip("tokenizers", reason="the extra `paper` is not installed")
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *words]) + "\n", encoding="utf-8")
    return Vocabulary.read(path)


class TestVocabulary:
    @pytest.mark.parametrize("capitals", [(), ("A", "##B")])
    def test_ids_are_those_of_tokenizers(self, tmp_path, capitals):
        letters = [c for c in "abcdefghijklmnopqrstuvwxyz0123456789\u6771\u4eac\u00e9\u00df\u0131\u03c3\u302e"]
        vocabulary = written(
            tmp_path / "vocab.txt", *letters, *(f"##{c}" for c in letters), "the", *"[].,'-!$+~", "[MASK]", *capitals
        )
        from tokenizers import BertWordPieceTokenizer

        want = BertWordPieceTokenizer(str(tmp_path / "vocab.txt"), lowercase=not capitals)
        rng = random.Random(0)
        kinds = [
            lambda: rng.choice("abcABC the\u00c9\u0130\u6771\u4eac\u3000\ufffd\u200d\u00ad\ue000\u302e\u2028"),
            lambda: chr(rng.randrange(128)),
            lambda: chr(rng.randrange(0x300, 0x370)),
            lambda: chr(rng.randrange(0x3400)),
            lambda: chr((rng.randrange(0x110000 - 0x800) + 0xE000) % 0x110000),  # no surrogates
            lambda: rng.choice(["[CLS]", "[MASK]", "e\u0301", "x" * 100, "x" * 101, "\U0001f469\u200d\U0001f680"]),
        ]
        for _ in range(10_000):
            text = "".join(rng.choice(kinds)() for _ in range(rng.randrange(12)))
            located = vocabulary.located(text)
            assert [i for i, _ in located] == want.encode(text).ids, ascii(text)
            assert all(a <= b for (_, a), (_, b) in pairwise(located)), ascii(text)

    def test_word_pieces(self, tmp_path):
        vocabulary = written(
            tmp_path / "v", "a", "zeb", "##ra", "-", "cafe", "##s", "like", "\u6771", "\u4eac", "##\u4eac"
        )
        for text, want in [
            ("a zebra-like Caf\u00e9s xyz", "[CLS] a zeb ##ra - like cafe ##s [UNK] [SEP]"),
            ("Cafe\u0301s", "[CLS] cafe ##s [SEP]"),
            ("\u6771\u4eac", "[CLS] \u6771 \u4eac [SEP]"),
            ("a\x00 \ufffd\u200d\ue000\x01 a\u3000a", "[CLS] a a a [SEP]"),
            ("[PAD] a", "[CLS] a [SEP]"),
            ("", "[CLS] [SEP]"),
        ]:
            assert vocabulary.decode(vocabulary.encode(text)) == want

    def test_a_file_of_words(self, tmp_path):
        words = written(tmp_path / "v", "a", "b\u2028c", "\x85", "##d").words  # lines end with \n alone
        assert words == ("[UNK]", "[CLS]", "[SEP]", "a", "b\u2028c", "\x85", "##d")
        (tmp_path / "w").write_bytes(b"[PAD]\r\na\r\nb")
        assert Vocabulary.read(str(tmp_path / "w")).words == ("a", "b")
        for content in ("a\nb", ""):
            (tmp_path / "w").write_text(content)
            with pytest.raises(ValueError, match=rf"path: expected a first line \[PAD\], got '{content[:1]}'"):
                Vocabulary.read(tmp_path / "w")
        with pytest.raises(ValueError, match=r"words: expected those behind \[PAD\]"):  # all ids would be one too high
            Vocabulary(["[PAD]", *words])

    def test_without_tokenizers(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "tokenizers", None)
        assert Vocabulary(["[UNK]", "a"]).encode("A dog") == [2, 1]
        with pytest.raises(ImportError, match=r"tokenizers is needed here: pip install 'loupe-ext\[paper\]'"):
            Vocabulary(["[UNK]", "[CLS]", "[SEP]"]).encode("a dog")

    def test_one_word_however_it_is_written(self):
        vocabulary = Vocabulary.of(["a cafe\u0301"])
        assert vocabulary.encode("A CAF\u00c9") == vocabulary.encode("a cafe\u0301") == vocabulary.encode("a caf\u00e9")
        assert len(vocabulary) == 4
        assert Vocabulary(["Dog", "dog"]).encode("dog Dog") == [2, 1]

    def test_of_no_captions(self):
        with pytest.raises(TypeError, match="captions: expected a sequence of str"):
            Vocabulary.of("a dog")

    def test_phrases_of_word_pieces(self, tmp_path):
        vocabulary = written(tmp_path / "v", "the", "zeb", "##ra", "##s", "of", "a", "cat", "x", "##y", ".")

        def phrases(text, longest=60):
            pairs = Pairs.from_captions(torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [text], vocabulary, longest=longest)
            return pairs.phrases(0)

        assert phrases("The zebras of a cat.") == ["the zeb ##ra ##s", "a cat"]
        assert phrases("The zebras of a cat.", longest=5) == ["the zeb ##ra"]
        assert phrases("\x00The\u200b \u200bzeb\u00adras\ufffd of a\x00 \ufffd cat") == ["the zeb ##ra ##s", "a cat"]
        assert phrases("\U000e0001 cat") == ["cat"]
        assert phrases("x\u200dy of a cat") == ["x ##y", "a cat"]  # BERT's one word is two of ours: the first has it
        assert phrases("of the") == ["of the"]
        for nothing in ("\u200d", "\x00", "[PAD]"):
            with pytest.raises(ValueError, match=r"captions\[0\]: expected a word or more"):
                phrases(nothing)
        with pytest.raises(ValueError, match="longest: expected room for a word, got 2"):
            phrases("a cat", longest=2)
