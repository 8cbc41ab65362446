"""The examples, each run as a script on a small model of random weights and a generated folder of pictures."""

import json
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


def test_loop_open_clip(run, pictures, tmp_path):
    pytest.importorskip("open_clip")
    from tests.test_open_clip import TEXT, VISION

    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    arguments = (pictures, "--batch-size", 2, "--device", "cpu")
    lines = run(
        "loop_open_clip.py", f"local-dir:{tmp_path}", *arguments, "--steps", 3, "--out", tmp_path / "model.pth"
    ).splitlines()
    assert [line.split(" loss")[0] for line in lines] == ["step 1", "step 3"]
    before = torch.load(tmp_path / "model.pth")
    run("loop_open_clip.py", f"local-dir:{tmp_path}", *arguments, "--steps", 1, "--out", tmp_path / "again.pt")
    after = torch.load(tmp_path / "again.pt")
    assert before.keys() == after.keys()
    differences = [(before[name] - after[name]).abs().max().item() for name in before]
    assert 0 < max(differences) < 1e-4  # it went on from what it had saved, by a step of 1e-5


def test_trainer_huggingface(run, pictures, tmp_path):
    pytest.importorskip("accelerate")
    from transformers import CLIPModel

    clip_folder(tmp_path / "model")
    arguments = (tmp_path / "model", pictures, "--steps", 3, "--batch-size", 2, "--out", tmp_path / "out")
    assert "'train_loss': " in run("trainer_huggingface.py", *arguments)
    before, after = (CLIPModel.from_pretrained(tmp_path / folder).state_dict() for folder in ("model", "out"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_own_encoder(run, pictures, tmp_path):
    arguments = (pictures, "--batch-size", 2, "--device", "cpu", "--out", tmp_path / "run", "--steps", 11)
    lines = run("own_encoder.py", *arguments).splitlines()
    assert [line.split(",")[0] for line in lines] == ["Progress(step=10", "Progress(step=11"]
    assert {"model.safetensors", "metrics.jsonl", "state.safetensors"} <= {x.name for x in (tmp_path / "run").iterdir()}
    assert run("own_encoder.py", *arguments) == ""  # there is nothing left to do
