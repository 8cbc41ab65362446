"""The examples, each run as a script on a small model of random weights and a generated folder of pictures."""

import runpy
import sys
from pathlib import Path

import pytest
import torch

Image = pytest.importorskip("PIL.Image")

EXAMPLES = Path(__file__).parent.parent / "examples"
CAPTIONS = ["a red door", "the small dog", "two cats", "A small dog chases two cats."]


@pytest.fixture
def pictures(tmp_path):
    """A file of paths and captions."""
    for i, colour in enumerate(("red", "green", "blue", "white")):
        Image.new("RGB", (40, 36), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "pictures.csv").write_text("".join(f"{i}.png,{text}\n" for i, text in enumerate(CAPTIONS)))
    return tmp_path / "pictures.csv"


@pytest.fixture
def run(monkeypatch, capsys):
    def run(name, *arguments):
        """What the example of this name prints."""
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def clip_folder(path):
    """A CLIP and its processor, as `save_pretrained` writes them."""
    pytest.importorskip("transformers")
    from transformers import CLIPImageProcessor, CLIPModel, CLIPProcessor

    from tests.test_clip import MODELS, tokenizer

    crop = {"height": 32, "width": 32}
    CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop), tokenizer()).save_pretrained(path)
    CLIPModel(MODELS["clip"].config).save_pretrained(path)


def test_examples_are_short():
    assert {path.name: n for path in EXAMPLES.glob("*.py") if (n := len(path.read_text().splitlines())) >= 80} == {}


def test_loop_transformers(run, pictures, tmp_path):
    from transformers import CLIPModel

    clip_folder(tmp_path / "model")
    lines = run(
        "loop_transformers.py",
        *(tmp_path / "model", pictures, "--steps", 3, "--batch-size", 2, "--device", "cpu", "--out", tmp_path / "out"),
    ).splitlines()
    assert [line.split(" loss")[0] for line in lines] == ["step 1", "step 3"]  # over the end of an epoch
    before, after = (CLIPModel.from_pretrained(tmp_path / folder).state_dict() for folder in ("model", "out"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
