"""What explanations hold: players and their groups, masked encoders, token embeddings; kept and read again."""

import base64
import json
import re
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch

from loupe_ext.explain import (
    DualEncoderExplanation,
    LateInteractionExplanation,
    MaskedEncoder,
    Players,
    TokenEmbeddings,
    explain_dual_encoder,
    explain_late_interaction,
)

TEXT = "The café's bridge. Why?  It is new…\n好的。新的"
PIECES = (
    "[CLS]",
    "The",
    " ca",
    "fé",
    "'",
    "s",
    " bridge",
    ".",
    " Why",
    "?",
    "It",
    "is",
    "new",
    "…",
    "好",
    "的",
    "。",
    "新",
    "[SEP]",
)


def text_players():
    spans, at = [], 0
    for piece in PIECES:
        if piece[0] == "[":
            spans.append(())
            continue
        start = TEXT.index(piece, at)
        at = start + len(piece)
        spans.append(((start, at),))
    return Players(PIECES, TEXT, tuple(spans), special=tuple(p in ("[CLS]", "[SEP]", ".", "?") for p in PIECES))


def picture_players():
    cells = torch.tensor([[0, 0, 1], [2, -1, 1], [2, 3, 4], [2, 3, 4]])
    picture = torch.arange(4 * 6 * 3, dtype=torch.uint8).view(4, 6, 3)
    return Players((*"abcde", "mark"), picture=picture, cells=cells, special=(False,) * 5 + (True,))


def late(players=None, dtype=torch.float64, N=2):
    players = players or text_players()
    generator = torch.Generator().manual_seed(players.n)
    make = lambda n: torch.randn(n, 4, generator=generator, dtype=dtype)  # noqa: E731
    query = Players(tuple("qr"[:N]), special=(False, True)[:N])
    return explain_late_interaction(TokenEmbeddings(make(N), query), TokenEmbeddings(make(players.n), players, "doc"))


def dual(**more):
    m, n = 6, 19
    sizes = {"pairs": (m, n), "image_values": (m,), "text_values": (n,)} | dict.fromkeys(more, (m, m))
    found = {name: torch.rand(size, dtype=torch.float64) for name, size in sizes.items()}
    errors = {name.removesuffix("s") + "_errors": torch.rand_like(x) for name, x in found.items()}
    return DualEncoderExplanation(picture_players(), text_players(), **found, **errors, score=1.5, baseline=0.1)


def same(a, b):
    assert a.to_dict() == b.to_dict() or json.dumps(a.to_dict()) == json.dumps(b.to_dict())  # NaN is not itself


@pytest.mark.parametrize("make", [late, lambda: late(picture_players()), lambda: late(Players(("x",))), dual])
def test_explanations_are_read_as_they_were_written(make, tmp_path):
    found = make()
    found.save(tmp_path / "found.json")
    again = type(found).load(tmp_path / "found.json")
    same(found, again)
    for name, value in vars(found).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(again, name)), name
            assert value.dtype == getattr(again, name).dtype
        elif isinstance(value, Players):
            other = getattr(again, name)
            assert (value.names, value.text, value.spans, value.special) == (
                other.names,
                other.text,
                other.spans,
                other.special,
            )
            for a, b in ((value.picture, other.picture), (value.cells, other.cells)):
                assert (a is b is None) or torch.equal(a, b)
        else:
            assert value == getattr(again, name), name


def test_nan_and_nothing_are_kept(tmp_path):
    scores = torch.tensor([[torch.nan], [1.0]])
    found = explain_late_interaction(TokenEmbeddings(torch.ones(1, 1)), TokenEmbeddings(scores), top_pairs=0)
    found.save(tmp_path / "x.json")
    again = LateInteractionExplanation.load(tmp_path / "x.json")
    assert again.credit.isnan().all()
    assert again.score != again.score
    assert again.pairs.shape == (0, 0)
    assert again.pair_tokens.dtype == torch.int64
    within = dual(image_pairs=True)
    within.save(tmp_path / "y.json")
    again = DualEncoderExplanation.load(tmp_path / "y.json")
    assert torch.equal(again.image_pair_errors, within.image_pair_errors)
    assert again.text_pairs is None


@pytest.mark.parametrize("number", [np.float32(0.25), Fraction(1, 4)])
def test_numbers_of_every_kind_are_kept(number, tmp_path):
    changed = replace(late(), score=number, p=number)
    changed.save(tmp_path / "x.json")
    changed.to_html(tmp_path / "x.html")
    again = LateInteractionExplanation.load(tmp_path / "x.json")
    assert (again.score, again.p) == (0.25, 0.25)
    image = MaskedEncoder(lambda masks: masks.double(), 2)
    explain_dual_encoder(image, image, p=number).save(tmp_path / "x.json")
    assert DualEncoderExplanation.load(tmp_path / "x.json").p == 0.25


def damaged(stored):
    """Of a stored explanation, what no explanation is."""
    yield "not JSON", "{"
    yield "a list", []
    yield "another kind", {**stored, "kind": "x"}
    for name, value in stored.items():
        yield f"no {name}", {k: v for k, v in stored.items() if k != name}
        for wrong in (None, "x", [1, "x"], {}, [[10**400]], {"names": ["a"]}):
            if not (value == wrong or (wrong == "x" and name == "name")):
                yield f"{name} {wrong}"[:40], {**stored, name: wrong}
    for side in ("document", "query"):
        for name, value in stored[side].items():
            for wrong in ("x", -1, [[[0, 10**6]]], [[9]]):
                if value != wrong:
                    yield f"{side} {name} {wrong}"[:40], {**stored, side: {**stored[side], name: wrong}}


def test_damaged_files_are_refused(tmp_path):
    stored = late(picture_players()).to_dict()
    path, tried = tmp_path / "x.json", 0
    for said, value in damaged(stored):
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        with pytest.raises(ValueError, match=r"path: expected a saved explanation, got .*x\.json"):
            pytest.fail(f"{said} was taken: {LateInteractionExplanation.load(path)}")
        tried += 1
    assert tried > 100
    png = bytearray(base64.b64decode(stored["document"]["picture"]))
    at = png.index(b"IDAT")
    png[at - 4 : at] = (8).to_bytes(4, "big")  # what follows is then no chunk
    stored["document"]["picture"] = base64.b64encode(png).decode()
    path.write_text(json.dumps(stored))
    with pytest.raises(ValueError, match="path: expected a saved explanation"):
        LateInteractionExplanation.load(path)
    for name in ("method", "image_passes", "text_passes"):
        path.write_text(json.dumps({**dual().to_dict(), name: None}))
        with pytest.raises(ValueError, match=f"path: expected a saved explanation, .*{name}: expected"):
            DualEncoderExplanation.load(path)
    with pytest.raises(FileNotFoundError):
        LateInteractionExplanation.load(tmp_path / "none.json")
    path.write_text(json.dumps(dual().to_dict()))
    with pytest.raises(ValueError, match="expected late interaction, got dual encoder"):
        LateInteractionExplanation.load(path)


def test_groups_add_credit_and_keep_the_score():
    found = late()
    groups = [0] * 5 + [1] * 7 + [2] * 7
    grouped = found.grouped(groups, ["a", "b", "c"])
    assert grouped.document.names == ("a", "b", "c")
    for name in ("credit", "winners"):
        parts = torch.stack([x.sum(0) for x in getattr(found, name).split([5, 7, 7])])
        torch.testing.assert_close(getattr(grouped, name), parts, rtol=0, atol=1e-12)
    scores = torch.stack([x.amax(0) for x in found.scores.split([5, 7, 7])])
    assert torch.equal(grouped.scores, scores)
    assert torch.equal(scores.amax(0), grouped.winners.sum(0))
    assert grouped.score == found.score
    # The groups' interactions are those of a document whose tokens they are.
    query = TokenEmbeddings(torch.eye(2, dtype=torch.float64))
    alone = explain_late_interaction(query, TokenEmbeddings(scores))
    a, b = (x.pairs[x.pair_tokens.argsort()][:, x.pair_tokens.argsort()] for x in (grouped, alone))
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert found.grouped(range(19)).credit.equal(found.credit)


def test_groups_of_half_scores():
    found = explain_late_interaction(TokenEmbeddings(torch.eye(3)[:2]), TokenEmbeddings(torch.eye(3)))
    half = replace(found, **{name: getattr(found, name).bfloat16() for name in ("scores", "credit", "winners")})
    assert torch.equal(half.grouped([0, 1, 1]).pairs, found.grouped([0, 1, 1]).pairs)


def test_groups_of_a_text():
    found = late()
    words = found.by_words()
    expected = [
        "[CLS]",
        "The",
        "café",
        "'",
        "s",
        "bridge",
        ".",
        "Why",
        "?",
        "It",
        "is",
        "new",
        "…",
        "好的",
        "。",
        "新的",
        "[SEP]",
    ]
    assert list(words.document.names) == expected
    assert sum(words.document.special) == 4
    sentences = found.by_sentences()
    assert list(sentences.document.names) == ["(marks)", "The café's bridge.", "Why?", "It is new…", "好的。", "新的"]
    assert sentences.document.special == (True,) + (False,) * 5
    assert sentences.credit.sum().item() == pytest.approx(found.score, abs=1e-12)
    assert 0 not in sentences.pair_tokens
    with pytest.raises(ValueError, match="players: expected those of a picture"):
        found.by_regions(2, 2)


def test_regions_of_a_picture():
    players = picture_players()
    groups, names = players.regions(2, 2)
    assert names == ["row 1, column 1", "row 1, column 2", "row 2, column 1", "row 2, column 2", "(marks)"]
    assert groups == [0, 1, 2, 3, 3, 4]
    grouped = late(players).by_regions(2, 2)
    assert grouped.document.cells.tolist() == [[0, 0, 1], [2, -1, 1], [2, 3, 3], [2, 3, 3]]
    with pytest.raises(ValueError, match="players: expected those of a text"):
        players.words()
    with pytest.raises(TypeError, match="rows: expected an int, got float"):
        players.regions(1.5, 2)


def test_marks_have_their_credit_apart():
    found = late()
    special = torch.tensor(found.document.special)
    expected = [[found.credit[special == i][:, j].sum().item() for j in (0, 1)] for i in (False, True)]
    torch.testing.assert_close(found.by_special(), torch.tensor(expected, dtype=torch.float64))
    assert found.content_score == pytest.approx(expected[0][0])
    assert found.by_special().sum().item() == pytest.approx(found.score, abs=1e-12)


def test_top_is_largest_first_and_nan_last():
    found = late()
    top = found.top(5)
    assert [abs(credit) for _, _, credit in top] == found.credit.flatten().abs().sort(descending=True).values[
        :5
    ].tolist()
    assert len(found.top(10**6)) == found.credit.numel()
    pairs = dual()
    pairs.pairs[2, 3] = torch.nan
    every = pairs.top(10**6)
    assert every[-1][:2] == ("c", PIECES[3])
    assert every[0][2] == pairs.pairs.nan_to_num().max().item()
    with pytest.raises(ValueError, match="k: expected 0"):
        found.top(-1)


WRONG_PLAYERS = {
    "names: expected a sequence of str, got 'ab'": {"names": "ab"},
    "special: expected 2 flags, one per player, got 1": {"special": (True,)},
    "spans: expected those of a text, both or neither": {"text": "ab"},
    "text: expected a str, got int": {"text": 3, "spans": ((), ())},
    "spans: expected pairs of characters per player, got": {"text": "ab", "spans": (1, 2)},
    "special: expected a bool per player, got None": {"special": None},
    "special: expected a bool, got str": {"special": ("no", "no")},
    "spans: expected pairs of characters per player, got [[(0, 1.5)], []]": {"text": "ab", "spans": [[(0, 1.5)], []]},
    "spans: expected pairs of characters per player, got [[(0, inf)], []]": {
        "text": "ab",
        "spans": [[(0, float("inf"))], []],
    },
    "spans: expected those of 2 players, got 1": {"text": "ab", "spans": (((0, 1),),)},
    "spans: expected characters 0 to 2 of the text, got 1 to 3": {"text": "ab", "spans": ((), ((1, 3),))},
    "spans: expected characters 0 to 2 of the text, got 2 to 1": {"text": "ab", "spans": ((), ((2, 1),))},
    "cells: expected those of a picture, both or neither": {"cells": torch.zeros(1, 1, dtype=torch.int64)},
    "picture: expected uint8": {"picture": torch.ones(3, 3, 3), "cells": torch.zeros(1, 1, dtype=torch.int64)},
    "cells: expected int64": {"picture": torch.ones(3, 3, 3, dtype=torch.uint8), "cells": torch.zeros(1, 1)},
    "cells: expected players 0 to 1, or -1 for none, got 0 to 2": {
        "picture": torch.ones(3, 3, 3, dtype=torch.uint8),
        "cells": torch.tensor([[0, 2]]),
    },
}


@pytest.mark.parametrize("message", WRONG_PLAYERS)
def test_wrong_players_are_named(message):
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        Players(**({"names": ("a", "b")} | WRONG_PLAYERS[message]))


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("01", "groups: expected a sequence of int"),
        ([0, 1.0], "groups: expected a sequence of int"),
        ([True, False], "groups: expected a sequence of int"),
        (3, "groups: expected a sequence of int"),
        ([0], "groups: expected 2 numbers, one per player, got 1"),
        ([0, 2], "groups: expected groups numbered from 0 without a gap"),
        ([-1, 0], "groups: expected groups numbered from 0 without a gap"),
        (torch.zeros(2, 2, dtype=torch.int64), "groups: expected a sequence of int"),
        (torch.tensor(1), "groups: expected a sequence of int"),
    ],
)
def test_wrong_groups_are_named(groups, message):
    players = Players(("a", "b"))
    with pytest.raises((TypeError, ValueError), match=message):
        players.grouped(groups)
    assert players.grouped(torch.tensor([0, 0])).names == ("a b",)
    with pytest.raises(ValueError, match="names: expected 1 names, got 2"):
        players.grouped([0, 0], ["a", "b"])


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda masks: masks, "dtype"),
        (lambda masks: None, "expected a torch.Tensor"),
        (lambda masks: torch.ones(len(masks)), r"expected shape \[K, d\]"),
        (lambda masks: torch.ones(1, 2), "expected 3 embeddings, one per mask, got 1"),
        (lambda masks: torch.ones(3, 2, device="meta"), "expected embeddings with values, got a tensor on meta"),
    ],
)
def test_wrong_results_of_an_encoder_are_named(result, message):
    encoder = MaskedEncoder(result, ["a", "b"])
    assert encoder.n == 2
    with pytest.raises((TypeError, ValueError), match=f"function's result: .*{message}"):
        encoder(torch.ones(3, 2, dtype=torch.bool))


@pytest.mark.parametrize("masks", [None, "x", torch.ones(3, 2), torch.ones(3, 3).bool(), torch.ones(0, 2).bool()])
def test_wrong_masks_are_named(masks):
    with pytest.raises((TypeError, ValueError), match="masks: expected"):
        MaskedEncoder(lambda masks: pytest.fail("it was called"), 2)(masks)


def test_encoders_give_floats_without_a_graph():
    weight = torch.ones(2, 4, requires_grad=True)
    assert not MaskedEncoder(lambda masks: weight[: len(masks)], 2)(torch.eye(2).bool()).requires_grad
    for dtype, expected in ((torch.float16, torch.float32), (torch.float64, torch.float64)):
        found = MaskedEncoder(lambda masks, dtype=dtype: (masks.float() @ weight).to(dtype), 2)(torch.eye(2).bool())
        assert found.dtype == expected
        assert not found.requires_grad
    with pytest.raises(TypeError, match="function: expected a callable, got int"):
        MaskedEncoder(3, 2)
