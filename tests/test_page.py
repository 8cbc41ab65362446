"""The page of explanations: it holds all it shows, needs no network, and no text in it becomes code."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from loupe_ext.explain.page import LONGEST, write_page
from tests.explained import NASTY, dual, late, picture_players, text_players

PIL = pytest.importorskip("PIL.Image")


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.content, self.open = [], {}, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open.append((tag, dict(attributes)))

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        self.content.setdefault(attributes.get("id", tag), data)

    @property
    def data(self):
        return json.loads(self.content["data"])


def written(path, *arguments):
    write_page(path, *arguments)
    return Page(path.read_text(encoding="utf-8"))


def same(found, stored):
    """Four digits of a number, and everything else as it was."""
    if isinstance(stored, dict):
        return all(name == "picture" or same(found[name], stored[name]) for name in stored)
    if isinstance(stored, list):
        return len(found) == len(stored) and all(map(same, found, stored))
    return abs(found - stored) <= 5e-4 * abs(stored) if isinstance(stored, float) else found == stored


def test_the_page_holds_the_explanations(tmp_path):
    explanations = [late(name="one"), late(picture_players(special=2)), dual(within=True), dual()]
    page = written(tmp_path / "page.html", explanations)
    assert len(page.data["explanations"]) == 4
    assert all(same(found, x.to_dict()) for found, x in zip(page.data["explanations"], explanations, strict=True))
    assert not same(page.data["explanations"][0], late(seed=1, name="one").to_dict())
    assert page.content["title"] == "Why these 4 scores"


def test_it_needs_no_network(tmp_path):
    page = written(tmp_path / "page.html", [late(picture_players())])
    assert {"img-src data:", "default-src 'none'"} <= {
        part.strip() for tag, a in page.tags if a.get("http-equiv") for part in a["content"].split(";")
    }
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "object")]
    assert not [a for _, a in page.tags if "src" in a or "href" in a]
    assert not re.findall(r"https?://|url\(|@import", (tmp_path / "page.html").read_text())


def test_no_text_becomes_code(tmp_path):
    nasty = text_players(NASTY)
    plain = written(tmp_path / "plain.html", [late()])
    page = written(tmp_path / "nasty.html", [late(nasty, nasty, NASTY)], NASTY)
    assert [tag for tag, _ in page.tags] == [tag for tag, _ in plain.tags]
    (stored,) = page.data["explanations"]
    assert stored["name"] == stored["document"]["text"] == page.content["title"] == NASTY
    surrogate = late(name="\ud800")  # no UTF-8 has it
    assert written(tmp_path / "half.html", surrogate, "\ud800").data["explanations"][0]["name"] == "\ud800"


def test_a_picture_is_kept_once_and_no_larger_than_shown(tmp_path):
    image = picture_players()
    other = late(picture_players())
    page = written(tmp_path / "page.html", [dual(image), dual(image, text_players("grass")), other])
    assert [found.get("image", {}).get("picture") for found in page.data["explanations"]] == [0, 0, None]
    assert page.data["explanations"][2]["document"]["picture"] == 1
    shown = PIL.open(io.BytesIO(base64.b64decode(page.data["pictures"][0].partition("base64,")[2])))
    assert np.array_equal(np.array(shown.convert("RGB")), image.picture.numpy())  # so small, PNG is the smaller
    large = picture_players(2, 200)
    (found,) = written(tmp_path / "large.html", dual(large)).data["pictures"]
    assert PIL.open(io.BytesIO(base64.b64decode(found.partition("base64,")[2]))).size == (LONGEST, 13)


def test_what_is_no_number_is_none(tmp_path):
    explanation = late()
    explanation.credit[1, 1], explanation.scores[0, 0] = torch.nan, torch.inf
    (stored,) = written(tmp_path / "page.html", explanation).data["explanations"]
    assert stored["credit"][1][1] is stored["scores"][0][0] is None
    assert stored["credit"][0][1] is not None


def test_wrong_arguments_are_named(tmp_path):
    path = tmp_path / "page.html"
    for wrong in (None, "x", 3, [late(), None], {"x": late()}):
        with pytest.raises(TypeError, match="explanations: expected"):
            write_page(path, wrong)
    with pytest.raises(ValueError, match="explanations: expected at least one"):
        write_page(path, [])
    with pytest.raises(TypeError, match="title: expected a str, got int"):
        write_page(path, late(), 3)
    with pytest.raises(TypeError, match="path: expected"):
        write_page(3, late())
    assert not path.exists()


@pytest.mark.skipif(not shutil.which("chromium"), reason="needs chromium")
def test_it_draws_itself(tmp_path):
    path = tmp_path / "page.html"
    nasty = text_players(NASTY)
    write_page(path, [late(nasty, name=NASTY), late(picture_players(special=2)), dual(within=True)])
    drive = 'addEventListener("error", event => { document.title = event.message; }); cards[0].pin("b", 2);'
    with path.open("a") as file:
        file.write(f"<script>{drive} cards[2].pin('a', 7); state.special = true; paint();</script>")
    options = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    options += ("--window-size=1200,4000",)  # only what can be seen is painted
    found = subprocess.run(["chromium", *options, path.as_uri()], capture_output=True, text=True, timeout=60).stdout
    assert "<title>Why these 3 scores</title>" in found
    assert found.count('<section class="card') == 3
    assert found.count('class="card pinned"') == 3  # the two of one query together
    assert "credit of each part with “dog”" in found
    assert "<b>" not in found
    assert found.count("<canvas") == 4
