"""Checkpoints: what they keep, and what is refused."""

import dataclasses
import functools
import json
import math
import shutil
import tempfile
import typing
from pathlib import Path

import pytest
import torch

from loupe_ext.data import Vocabulary
from loupe_ext.train import build, checkpoint, fit, from_pretrained, loop, push_to_hub, save_pretrained
from loupe_ext.train.pretrained import CONFIG, WEIGHTS, WORDS
from tests.training import SMALL, interrupt_at, scenes, trained

BRIEF = SMALL.but(steps=2)


@functools.cache
def stored() -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Metadata and tensors of the state of a finished run of `BRIEF`."""
    safetensors = pytest.importorskip("safetensors")
    with tempfile.TemporaryDirectory() as folder:
        trained(BRIEF, path=f"{folder}/run")  # a path may be a str
        with safetensors.safe_open(f"{folder}/run/{checkpoint.STATE}", "pt") as file:
            return file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def write_spoilt(folder: Path, **changes: typing.Any) -> None:
    """The stored state with other metadata and tensors, by name; None leaves one out."""
    from safetensors.torch import save_file

    metadata, tensors = ({**part} for part in stored())
    for name, value in changes.items():
        of_metadata = name in ("format", "settings", "position", "step", "data")
        typing.cast(dict[str, typing.Any], metadata if of_metadata else tensors)[name] = value
    tensors, metadata = ({n: x for n, x in part.items() if x is not None} for part in (tensors, metadata))
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / checkpoint.STATE, metadata)


def assert_one_line(error: BaseException, path: Path) -> None:
    assert str(path) in str(error)
    assert "\n" not in str(error)
    assert len(str(error)) < 500


WEIGHT = "model.image_projection.bias"
MOMENT, COUNT = f"optimizer.{WEIGHT}:exp_avg", f"optimizer.{WEIGHT}:step"


class TestState:
    @pytest.mark.parametrize("change", [{"lr": 1e-3}, {"seed": 1}, {"name": "other"}, {"clip": 2.0, "beta1": 0.5}])
    def test_of_another_configuration_is_refused_naming_the_fields(self, change, tmp_path):
        write_spoilt(tmp_path / "model")
        with pytest.raises(ValueError, match="expected") as caught:
            trained(BRIEF.but(**change), path=tmp_path / "model")
        as_in, old = f"as in {tmp_path / 'model' / checkpoint.STATE}", BRIEF.flat()
        new = {name: value for name, value in BRIEF.but(change).flat().items() if value != old[name]}
        assert len(new) == len(change)
        want = [f"{name}: expected {old[name]!r} {as_in}, got {value!r}" for name, value in new.items()]
        assert sorted(str(caught.value).split("; ")) == sorted(want)

    def test_of_another_version_is_refused_saying_so(self, tmp_path):
        settings = json.loads(stored()[0]["settings"])
        del settings["objective.boxes.centred"]
        write_spoilt(tmp_path / "model", settings=json.dumps({**settings, "gone": 2}))
        with pytest.raises(ValueError, match="expected") as caught:
            trained(BRIEF, path=tmp_path / "model")
        as_in, by = (
            f"as in {tmp_path / 'model' / checkpoint.STATE}",
            "(another version of loupe_ext began it, with other settings)",
        )
        want = [
            f"gone: expected 2 {as_in}, got none {by}",
            f"objective.boxes.centred: expected none {as_in}, got True {by}",
        ]
        assert sorted(str(caught.value).split("; ")) == want

    @pytest.mark.parametrize("step", ["1", "2"])
    @pytest.mark.parametrize("name", ["images", "tokens", "spans", "phrase_lengths", "vocabulary"])
    def test_of_other_data_is_refused_naming_what_differs(self, name, step, tmp_path):
        write_spoilt(tmp_path / "model", step=step)
        own = scenes().pairs
        value: typing.Any = getattr(own, name)
        other = Vocabulary(own.vocabulary.words[::-1]) if name == "vocabulary" else value.flip(0)
        with pytest.raises(ValueError, match=f"^data: {name}: expected .* as in .*safetensors, got ") as caught:
            fit(dataclasses.replace(own, **{name: other}), BRIEF, path=tmp_path / "model")
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
        message = r"optim.steps: expected 2 as in .*safetensors, got 7 \(extend=True goes on with more steps\)"
        with pytest.raises(ValueError, match=message):
            trained(path=path)
        with pytest.raises(KeyboardInterrupt):
            trained(path=path, extend=True, save_every=1, report=interrupt_at(4))
        extended = trained(path=path)  # by now it is a checkpoint of 7 steps
        rate = loop.learning_rate
        monkeypatch.setattr(loop, "learning_rate", lambda step, c: rate(step, c.but(steps=2) if step < 2 else c))
        want = trained(path=tmp_path / "other")
        for name, value in want.model.state_dict().items():
            assert torch.equal(value, extended.model.state_dict()[name]), name
        with pytest.raises(ValueError, match=r"optim.steps: expected 7 as in .*safetensors, got 2$"):
            trained(BRIEF, path=path, extend=True)

    def test_of_another_optimisation_is_gone_on_from_when_asked(self, tmp_path):
        write_spoilt(tmp_path / "model")
        trained(SMALL.but(lr=1e-4), path=tmp_path / "model", extend=True)
        assert checkpoint.load(tmp_path / "model").settings["optim.lr"] == 1e-4
        with pytest.raises(ValueError, match=r"objective.fsa.weight: expected 1.0 as in"):
            trained(SMALL.but(lr=1e-4, fsa=0.5), path=tmp_path / "model", extend=True)

    @pytest.mark.parametrize("name", ["os.fsync", "os.replace"])
    def test_a_save_that_fails_leaves_the_old_file_whole_and_nothing_else(self, name, tmp_path, monkeypatch):
        def fail(*_):
            raise KeyboardInterrupt

        path, settings = tmp_path / "state", {"optim.steps": 3}
        checkpoint.save(path, {"x": torch.ones(1)}, 1, settings, None, None)
        before = path.read_bytes()
        monkeypatch.setattr(name, fail)
        with pytest.raises(KeyboardInterrupt):
            checkpoint.save(path, {"x": torch.ones(1)}, 2, settings, None, None)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]
        assert checkpoint.load(path).step == 1

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"format": None}, "expected the state of a run, of format loupe-3, got None"),
            ({"format": "x" * 10_000}, "expected the state of a run, of format loupe-3, got 'xxx"),
            ({"settings": None}, "settings: expected it in the file's metadata, got none"),
            ({"step": None}, "step: expected it"),
            *(
                ({"step": x}, "step: expected 0 to 2, got")
                for x in ("-1", "3", "nan", "1.5", " 1", "\u0662", "9" * 5000)
            ),
            ({"settings": "nonsense"}, "settings: expected JSON"),
            ({"settings": "[" * 100_000}, "settings: expected JSON"),
            ({"settings": "[]"}, r"settings: expected a mapping, got \[\]"),
            ({"settings": "{}"}, "step: expected 0 to None, got '2'"),
            ({"data": "[]"}, "data: expected a mapping"),
            ({"data": '{"steps": 3}'}, "data: expected a line per property"),
            ({"position": "3"}, "position: expected a mapping"),
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
            ({MOMENT: None}, f"expected torch.float32 .* for the tensor '{MOMENT}', got none"),
            ({COUNT: None}, f"expected torch.float32 .* for the tensor '{COUNT}', got none"),
            ({MOMENT: torch.zeros(17)}, f"expected torch.float32 .* for the tensor '{MOMENT}', got"),
            *(({COUNT: torch.tensor(x)}, f"expected 0 to 2 for '{COUNT}', got") for x in (3.0, -1.0, 0.5, math.nan)),
            ({WEIGHT: torch.zeros(17)}, rf"expected torch.float32 \[16\] for .*'{WEIGHT}', got torch.float32 \[17\]"),
            ({WEIGHT: torch.zeros(16).half()}, rf"expected .* for .*'{WEIGHT}', got torch.float16 \[16\]"),
            ({"model.other": torch.zeros(1)}, "expected none for the tensor 'model.other', got torch.float32"),
            ({"position": '{"processes": [{"step": -1}]}'}, "step: expected 0 to"),
            ({"position": '{"processes": [{}, {}]}'}, "expected the positions of 1 processes, got 2"),
            ({"position": '{"step": 1}'}, "expected the positions of 1 processes, got None"),
        ],
    )
    def test_that_nobody_can_go_on_from(self, changes, message, tmp_path):
        write_spoilt(tmp_path / "model", **changes)
        with pytest.raises(ValueError, match=message) as caught:
            trained(BRIEF, path=tmp_path / "model")
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500

    def test_that_is_no_such_file(self, tmp_path):
        write_spoilt(tmp_path / "model")
        whole = (tmp_path / "model" / checkpoint.STATE).read_bytes()
        (tmp_path / "cut").write_bytes(whole[:-2])
        (tmp_path / "empty").write_bytes(b"")
        (tmp_path / "text").write_text("hello")
        (tmp_path / "folder").mkdir()
        for name, error in (
            ("cut", ValueError),
            ("empty", ValueError),
            ("text", ValueError),
            ("folder", FileNotFoundError),
            ("absent", FileNotFoundError),
            ("text/absent", OSError),
        ):
            with pytest.raises(error, match="path: expected a ") as caught:
                checkpoint.load(tmp_path / name)
            assert_one_line(caught.value, tmp_path / name)
        with pytest.raises(TypeError, match=r"path: expected a str or os.PathLike, got int"):
            checkpoint.load(3)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The folder of a finished run, with a `config.json` that may be spoilt in copies."""
    folder = tmp_path_factory.mktemp("written") / "run"
    trained(BRIEF, path=folder)
    return folder


def copied(written: Path, to: Path, **settings: typing.Any) -> Path:
    """A copy in which some of the settings are others; None leaves one out."""
    shutil.copytree(written, to)
    about = json.loads((to / CONFIG).read_text())
    about["settings"].update(settings)
    about["settings"] = {name: value for name, value in about["settings"].items() if value is not None}
    (to / CONFIG).write_text(json.dumps(about))
    return to


class TestPretrained:
    def test_gives_the_trained_model_back(self, written):
        found, run = from_pretrained(str(written)), trained(BRIEF)
        assert found.config == BRIEF
        assert found.vocabulary.words == scenes().pairs.vocabulary.words
        for part in ("model", "objective"):
            want = getattr(run, part).state_dict()
            assert all(torch.equal(want[name], x) for name, x in getattr(found, part).state_dict().items())
            assert not getattr(found, part).training

    def test_a_model_is_saved_without_a_run(self, tmp_path):
        vocabulary = Vocabulary(["red", "\u6771", "[UNK]"])
        model, objective = build(SMALL, vocabulary)
        save_pretrained(tmp_path / "model", model, objective, SMALL)
        names = {path.name for path in (tmp_path / "model").iterdir()}
        assert names == {"config.json", "model.safetensors", "vocab.txt", "README.md"}
        found = from_pretrained(tmp_path / "model")
        assert found.vocabulary.words == vocabulary.words
        assert all(torch.equal(x, found.model.state_dict()[name]) for name, x in model.state_dict().items())

    def test_a_model_of_a_number_of_ids(self, tmp_path):
        save_pretrained(tmp_path, *build(SMALL, Vocabulary(["red"])), SMALL)
        model, objective = build(SMALL, 7)
        save_pretrained(tmp_path, model, objective, SMALL)
        assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors", "README.md"}
        found = from_pretrained(tmp_path)
        assert found.vocabulary is None
        assert all(torch.equal(x, found.model.state_dict()[name]) for name, x in model.state_dict().items())
        for wrong in ("7", 2**40):
            about = json.loads((tmp_path / CONFIG).read_text()) | {"vocabulary_size": wrong}
            (tmp_path / CONFIG).write_text(json.dumps(about))
            with pytest.raises(ValueError, match=r"folder: expected words, a line each .*vocabulary_size: expected"):
                from_pretrained(tmp_path)

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"model.widht": 3}, r"config: expected names of its fields, got model.widht \(nearest: model.width\)"),
            ({"optim.clip": -1}, "clip: expected a finite number above 0"),
            ({"model.dim": None}, "expected a DualEncoder and its settings"),
            ({"model.dim": "x" * 9999}, "dim: expected int, got 'x"),
            ({"model.width": 65_536, "model.dim": 65_536}, "path: expected torch.float32"),  # 40 GB
        ],
    )
    def test_settings_of_a_stranger(self, settings, message, written, tmp_path):
        with pytest.raises(ValueError, match=message) as caught:
            from_pretrained(copied(written, tmp_path / "model", **settings))
        assert_one_line(caught.value, tmp_path / "model")

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            (CONFIG, "nonsense", "folder: Expecting value"),
            (CONFIG, "[" * 100_000, "folder: "),
            (CONFIG, "[1]", r"folder: expected a model of format loupe-model-1, got \[1\]"),
            (CONFIG, '{"format": "x"}', "folder: expected a model of format loupe-model-1, got 'x'"),
            (
                CONFIG,
                '{"format": "loupe-model-1", "class": "CLIP"}',
                "and its settings, got 'CLIP'",
            ),
            (WORDS, "[PAD]\na\na\n", "distinct words"),
            (WORDS, "a\n", r"expected a first line \[PAD\]"),
            (WORDS, "[PAD]\na\n", "path: expected torch.float32 .* for the tensor 'model.text.embed.weight'"),
            (WEIGHTS, "x", "path: expected a safetensors file"),
        ],
    )
    def test_files_of_a_stranger(self, name, content, message, written, tmp_path):
        folder = copied(written, tmp_path / "model")
        (folder / name).write_text(content)
        with pytest.raises(ValueError, match=message) as caught:
            from_pretrained(folder)
        assert_one_line(caught.value, folder)

    def test_folders_that_are_none(self, written, tmp_path):
        with pytest.raises(FileNotFoundError, match="folder: expected a folder with a model, got"):
            from_pretrained(tmp_path / "absent")
        for name in (CONFIG, WEIGHTS, WORDS):
            folder = copied(written, tmp_path / name)
            (folder / name).unlink()
            with pytest.raises(OSError, match=name):
                from_pretrained(folder)

    def test_only_the_model_goes_to_a_hub(self, written, monkeypatch):
        hub = pytest.importorskip("huggingface_hub")
        calls = []
        monkeypatch.setattr(hub.HfApi, "create_repo", lambda self, repo, **options: calls.append(repo))
        monkeypatch.setattr(hub.HfApi, "upload_folder", lambda self, **options: calls.append(options) or "address")
        assert push_to_hub(written, "me/mine", commit_message="a model") == "address"
        assert calls[0] == "me/mine"
        assert set(calls[1]["allow_patterns"]) == {CONFIG, WEIGHTS, WORDS, "README.md"}
        assert (calls[1]["folder_path"], calls[1]["commit_message"]) == (written, "a model")
