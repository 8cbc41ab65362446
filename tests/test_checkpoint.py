"""Checkpoints: what they keep, and what is refused."""

import dataclasses
import functools
import math
import tempfile
import typing
from pathlib import Path

import pytest
import torch

from loupe_ext.data import Vocabulary
from loupe_ext.train import Task, Trained, checkpoint, loop, train
from tests.training import SMALL, assert_identical, interrupt_at, scenes, trained

BRIEF = SMALL.but(steps=2)


@functools.cache
def stored() -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of a finished checkpoint of `BRIEF`."""
    safetensors = pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        trained(BRIEF, path=f"{folder}/model")  # a path may be a str
        with safetensors.safe_open(f"{folder}/model", "pt") as file:
            return file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write_spoilt(path: Path, **changes: typing.Any) -> None:
    """The stored checkpoint with other metadata and tensors, by name; None leaves one out."""
    from safetensors.torch import save_file

    metadata, tensors = ({**part} for part in stored())
    for name, value in changes.items():
        of_metadata = name in ("format", "config", "vocabulary", "step", "data")
        typing.cast(dict[str, typing.Any], metadata if of_metadata else tensors)[name] = value
    tensors, metadata = ({n: x for n, x in part.items() if x is not None} for part in (tensors, metadata))
    save_file(tensors, path, metadata)


def assert_one_line(error: BaseException, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500


PROJECTION = "encoder.image_projection.bias"
WEIGHT, MOMENT, COUNT = f"model.{PROJECTION}", f"optimizer.{PROJECTION}:exp_avg", f"optimizer.{PROJECTION}:step"


class TestCheckpoint:
    @pytest.mark.parametrize("change", [{"lr": 1e-3}, {"seed": 1}, {"name": "other"}, {"clip": 2.0, "beta1": 0.5}])
    def test_of_another_configuration_is_refused_naming_the_fields(self, change, tmp_path):
        write_spoilt(tmp_path / "model")
        with pytest.raises(ValueError, match="expected") as caught:
            trained(BRIEF.but(**change), path=tmp_path / "model")
        as_in = f"as in {tmp_path / 'model'}"
        want = [f"{name}: expected {getattr(BRIEF, name)!r} {as_in}, got {new!r}" for name, new in change.items()]
        assert sorted(str(caught.value).split("; ")) == sorted(want)

    @pytest.mark.parametrize("step", ["1", "2"])
    @pytest.mark.parametrize("name", ["images", "words", "spans", "phrase_lengths", "vocabulary"])
    def test_of_other_data_is_refused_naming_what_differs(self, name, step, tmp_path):
        write_spoilt(tmp_path / "model", step=step)
        own = scenes().pairs
        value: typing.Any = getattr(own, name)
        other = Vocabulary(own.vocabulary.words[::-1]) if name == "vocabulary" else value.flip(0)
        with pytest.raises(ValueError, match=f"^{name}: expected .* as in .*model, got ") as caught:
            train(dataclasses.replace(own, **{name: other}), BRIEF, path=tmp_path / "model")
        assert ";" not in str(caught.value)

    def test_equal_data_are_the_same_however_they_lie_in_memory(self):
        own = scenes().pairs
        lies = own.images.to(memory_format=torch.channels_last)
        assert dataclasses.replace(own, images=lies).fingerprint() == own.fingerprint()
        spot = own.images.clone()
        spot[-1, -1, -1, -1] ^= 1
        assert dataclasses.replace(own, images=spot).fingerprint() != own.fingerprint()

    def test_of_other_steps_is_gone_on_from_when_asked(self, tmp_path, monkeypatch):
        path = tmp_path / "model"
        write_spoilt(path)
        message = r"steps: expected 2 as in .*model, got 7 \(extend=True goes on with more steps\)"
        with pytest.raises(ValueError, match=message):
            trained(path=path)
        with pytest.raises(KeyboardInterrupt):
            trained(path=path, extend=True, save_every=1, report=interrupt_at(4))
        extended = trained(path=path)  # by now it is a checkpoint of 7 steps
        rate = loop.learning_rate
        monkeypatch.setattr(loop, "learning_rate", lambda step, c: rate(step, c.but(steps=2) if step < 2 else c))
        assert_identical(trained(), extended)
        with pytest.raises(ValueError, match=r"steps: expected 7 as in .*model, got 2$"):
            trained(BRIEF, path=path, extend=True)

    def test_gives_the_trained_model_back(self, tmp_path):
        run = trained(path=tmp_path / "model")
        found = checkpoint.load(tmp_path / "model")
        assert found.config == SMALL
        assert found.vocabulary.words == scenes().pairs.vocabulary.words
        assert_identical(run, Trained(found.task(), found.history, 0))
        assert not found.task().training

    @pytest.mark.parametrize("name", ["os.fsync", "os.replace"])
    def test_a_save_that_fails_leaves_the_old_file_whole_and_nothing_else(self, name, tmp_path, monkeypatch):
        def fail(*_):
            raise KeyboardInterrupt

        path, task = tmp_path / "model", Task(SMALL, 9)
        vocabulary = Vocabulary(list("abcdefgh"))
        checkpoint.save(path, task, vocabulary, 1, {})
        before = path.read_bytes()
        monkeypatch.setattr(name, fail)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, task, vocabulary, 2, {})
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        assert checkpoint.load(path).step == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": None}, "expected a checkpoint of format loupe-2, got None"),
            ({"format": "x" * 10_000}, "expected a checkpoint of format loupe-2, got 'xxx"),
            ({"config": None}, "config: expected it in the file's metadata, got none"),
            ({"vocabulary": None}, "vocabulary: expected it"),
            ({"step": None}, "step: expected it"),
            *(({"step": x}, "step: expected 0 to 2, got") for x in ("-1", "3", "nan", "1.5", " 1", "٢", "9" * 5000)),
            ({"config": "steps: [["}, "steps: expected a single plain value, got list"),
            ({"config": "steps: @"}, "config: expected YAML"),
            ({"config": "widht: 3"}, r"config: expected names of Config's fields, got widht \(nearest: width\)"),
            ({"config": "clip: -1"}, "clip: expected a finite number above 0"),
            ({"vocabulary": "nonsense"}, "vocabulary: expected JSON"),
            ({"vocabulary": "[" * 100_000}, "vocabulary: expected JSON"),
            ({"vocabulary": '"abc"'}, "vocabulary: expected a list of words"),
            ({"vocabulary": '["a", 1]'}, "vocabulary: expected a list of words"),
            ({"vocabulary": '["a", "a"]'}, "words: expected distinct words"),
            ({"data": "[]"}, "data: expected a line for each field"),
            ({"data": '{"steps": "3"}'}, "data: expected a line for each field"),
            ({"history.loss": torch.zeros(3)}, r"'loss': expected a number a step, torch.float32 \[2\]"),
            ({"history.cmc": torch.zeros(2).double()}, "'cmc': expected a number a step"),
            ({"seconds": torch.zeros(2, 1)}, "'seconds': expected a number a step"),
        ],
    )
    def test_of_a_stranger(self, changes, message, tmp_path):
        write_spoilt(tmp_path / "model", **changes)
        with pytest.raises(ValueError, match=message) as caught:
            checkpoint.load(str(tmp_path / "model"))
        assert_one_line(caught.value, tmp_path / "model")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({WEIGHT: None}, f"path: expected torch.float32 .* for the tensor '{WEIGHT}', got none"),
            ({WEIGHT: torch.zeros(17)}, rf"expected torch.float32 \[16\] for .*'{WEIGHT}', got torch.float32 \[17\]"),
            ({WEIGHT: torch.zeros(16).half()}, rf"expected .* for .*'{WEIGHT}', got torch.float16 \[16\]"),
            ({"model.other": torch.zeros(1)}, "expected none for the tensor 'model.other', got torch.float32"),
            ({"vocabulary": '["a"]'}, "expected torch.float32 .* for the tensor 'model.encoder.text.embed.weight'"),
            ({"config": BRIEF.but(width=65_536, dim=65_536).to_yaml()}, "path: expected torch.float32"),  # 40 GB
        ],
    )
    def test_whose_tensors_are_of_another_model(self, changes, message, tmp_path):
        write_spoilt(tmp_path / "model", **changes)
        with pytest.raises(ValueError, match=message) as caught:
            checkpoint.load(tmp_path / "model").task()
        assert_one_line(caught.value, tmp_path / "model")

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({MOMENT: None}, f"expected torch.float32 .* for the tensor '{MOMENT}', got none"),
            ({COUNT: None}, f"expected torch.float32 .* for the tensor '{COUNT}', got none"),
            ({MOMENT: torch.zeros(17)}, f"expected torch.float32 .* for the tensor '{MOMENT}', got"),
            *(({COUNT: torch.tensor(x)}, f"expected 0 to 2 for '{COUNT}', got") for x in (3.0, -1.0, 0.5, math.nan)),
            ({"data": None, "format": "loupe-1"}, "expected a checkpoint that says what data it was trained on"),
            ({"history.loss": None}, "expected a checkpoint with the history of the loss"),
            ({WEIGHT: torch.zeros(17)}, "path: expected torch.float32"),
        ],
    )
    def test_that_nobody_can_go_on_from(self, changes, message, tmp_path):
        write_spoilt(tmp_path / "model", **changes)
        with pytest.raises(ValueError, match=message) as caught:
            trained(BRIEF, path=tmp_path / "model")
        assert_one_line(caught.value, tmp_path / "model")

    def test_without_its_optimiser_or_of_the_older_format_can_be_evaluated_only(self, tmp_path):
        path, optimiser = tmp_path / "model", [name for name in stored()[1] if name.startswith("optimizer.")]
        write_spoilt(path, format="loupe-1", data=None)
        assert checkpoint.load(path).task() is not None
        write_spoilt(path, **dict.fromkeys(optimiser))
        assert checkpoint.load(path).task() is not None
        with pytest.raises(ValueError, match="path: expected a checkpoint with the optimiser's state, got none in"):
            trained(BRIEF, path=path)

    def test_that_is_no_such_file(self, tmp_path):
        write_spoilt(tmp_path / "model")
        (tmp_path / "cut").write_bytes((tmp_path / "model").read_bytes()[:-2])
        (tmp_path / "empty").write_bytes(b"")
        (tmp_path / "text").write_text("hello")
        (tmp_path / "folder").mkdir()
        for name, error in (
            ("cut", ValueError),
            ("empty", ValueError),
            ("text", ValueError),
            ("folder", OSError),
            ("absent", FileNotFoundError),
            ("text/absent", OSError),
        ):
            with pytest.raises(error, match="path: expected a ") as caught:
                checkpoint.load(tmp_path / name)
            assert_one_line(caught.value, tmp_path / name)
        with pytest.raises(TypeError, match=r"path: expected a str or os.PathLike, got int"):
            checkpoint.load(3)
