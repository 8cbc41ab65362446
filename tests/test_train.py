import dataclasses
import functools
import itertools
import math
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import threading
import types
import typing
from pathlib import Path

import numpy as np
import pytest
import torch

from loupe_ext import data
from loupe_ext import train as package
from loupe_ext.data import Batch, Grounded, Pairs, Vocabulary
from loupe_ext.train import Config, Interrupted, Progress, Task, Trained, check_run, checkpoint, loop, train
from loupe_ext.train.config import ABOVE, BELOW, CHOICES, RANGES
from loupe_ext.train.interrupt import signals_held
from loupe_ext.train.loop import batch_indices, learning_rate

# Every loss is on: a resumed run has to find all of their state again.
SMALL = Config(
    width=16, dim=16, batch=8, train_size=40, steps=7, warmup=2, box_images=4, late_interaction=0.5, precision="float32"
)

UNSIL = SMALL.but(fsa_source="unsil", unsil_threshold=20.0, fsa_coalitions=4)  # so good an error is soon found


@functools.cache
def scenes() -> Grounded:
    return data.load("scenes", "train", 40)


def trained(config: Config = SMALL, **options: typing.Any) -> Trained:
    return train(scenes().pairs, config, **options)


@functools.cache
def uninterrupted() -> Trained:
    return trained()


def assert_identical(one: Trained, other: Trained) -> None:
    for name, value in one.task.state_dict().items():
        assert torch.equal(value, other.task.state_dict()[name]), name
    assert one.history.keys() == other.history.keys()
    for name, losses in one.history.items():
        assert not losses.isnan().any()
        assert torch.equal(losses, other.history[name]), name


def interrupt_at(step: int) -> typing.Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report


class TestReproducible:
    def test_the_same_run_twice(self):
        assert_identical(uninterrupted(), trained())

    def test_the_callers_random_numbers_do_not_matter_and_are_left_alone(self):
        torch.manual_seed(5)
        want = torch.rand(3)
        torch.manual_seed(5)
        assert_identical(uninterrupted(), trained())
        assert torch.equal(torch.rand(3), want)

    def test_another_seed_starts_elsewhere(self):
        one, other = (trained(SMALL.but(steps=1, seed=seed)).task.state_dict() for seed in (0, 1))
        assert not torch.equal(one["encoder.text.embed.weight"], other["encoder.text.embed.weight"])

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (3, 3), (6, 6)])
    def test_an_interrupted_run_goes_on_as_if_it_had_never_stopped(self, save_every, stop, tmp_path):
        path = tmp_path / "run" / "model.safetensors"
        with pytest.raises(KeyboardInterrupt):
            trained(path=path, save_every=save_every, report=interrupt_at(stop))
        assert checkpoint.load(path).step == stop // save_every * save_every
        assert_identical(uninterrupted(), trained(path=path))
        assert checkpoint.load(path).step == SMALL.steps

    @pytest.mark.parametrize(("save_every", "stop"), [(1, 1), (2, 5), (6, 6)])
    def test_so_does_one_with_a_learner_that_predicts_before_and_after(self, save_every, stop, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(KeyboardInterrupt):
            trained(UNSIL, path=path, save_every=save_every, report=interrupt_at(stop))
        whole, parts = trained(UNSIL), trained(UNSIL, path=path)
        assert whole.history["fsa_unsil_computed"].tolist() == [1.0] + 6 * [1 / 8]
        assert_identical(whole, parts)

    def test_so_does_one_whose_parameters_did_not_all_learn_before(self, tmp_path):
        config = SMALL.but(boxes=0.0, learn_scale=False, steps=3)  # no gradient comes to the region head
        with pytest.raises(KeyboardInterrupt):
            trained(config, path=tmp_path / "model", save_every=1, report=interrupt_at(1))
        assert_identical(trained(config), trained(config, path=tmp_path / "model"))

    def test_a_finished_run_is_read_and_not_repeated(self, tmp_path):
        trained(path=tmp_path / "model")
        steps: list[Progress] = []
        assert_identical(uninterrupted(), trained(path=tmp_path / "model", report=steps.append))
        assert steps == []

    def test_an_interruption_before_the_first_checkpoint_leaves_none(self, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            trained(path=tmp_path / "model", save_every=3, report=interrupt_at(2))
        assert list(tmp_path.iterdir()) == []


# Forked after the imports and a first run, which take longer than all others.
KILLED = """
import os, random, signal, sys, time, torch
from tests.test_train import Interrupted, SMALL, scenes, train

torch.set_num_threads(1)
pairs, generator = scenes().pairs, random.Random(int(sys.argv[1]))

def start(path):
    if (child := os.fork()) == 0:
        try:
            train(pairs, SMALL, path=path, save_every=1)
        except Interrupted:
            os._exit(7)
        os._exit(0)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

train(pairs, SMALL, path="whole", save_every=1)
begun = time.monotonic()
train(pairs, SMALL)
took = time.monotonic() - begun
seen = []
for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, signal.SIGTERM, signal.SIGKILL):
    child = start("killed")
    time.sleep(took * generator.uniform(0.1, 0.5))
    os.kill(child, number)
    seen.append(end(child))
assert seen[0] == -signal.SIGKILL and set(seen) <= {0, 7, -signal.SIGKILL, -signal.SIGTERM}, seen
assert end(start("killed")) == 0
print(took, seen)
"""


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_the_step_is_finished_and_kept(self, number, tmp_path):
        path, before = str(tmp_path / "model"), signal.getsignal(number)
        with pytest.raises(Interrupted) as caught:
            trained(path=path, report=lambda progress: signal.raise_signal(number) if progress.step == 3 else None)
        assert signal.getsignal(number) is before
        assert (caught.value.signal, caught.value.step, str(caught.value.path)) == (number, 3, path)
        said = f"interrupted at step 3 of 7; {path} holds everything up to it, and the same command goes on from there"
        assert str(caught.value) == str(pickle.loads(pickle.dumps(caught.value))) == said
        assert checkpoint.load(path).step == 3
        assert_identical(uninterrupted(), trained(path=path))

    def test_without_a_path_nothing_is_kept(self):
        with pytest.raises(Interrupted, match=r"^interrupted at step 1 of 7; no path was given: nothing is kept$"):
            trained(report=lambda _: signal.raise_signal(signal.SIGTERM))

    def test_a_second_one_stops_at_once(self, tmp_path):
        def report(progress):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

        with pytest.raises(KeyboardInterrupt) as caught:
            trained(path=tmp_path / "model", report=report)
        assert type(caught.value) is KeyboardInterrupt
        assert list(tmp_path.iterdir()) == []

    def test_they_are_left_alone_where_they_are_ignored_or_in_another_thread(self, monkeypatch):
        want = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        seen = []

        def report(_):
            seen.append([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)])

        thread = threading.Thread(target=lambda: trained(SMALL.but(steps=1), report=report))
        thread.start()
        thread.join()
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            trained(SMALL.but(steps=1), report=report)
        finally:
            signal.signal(signal.SIGINT, want[0])
        assert seen[0] == want
        assert seen[1][0] is signal.SIG_IGN
        assert seen[1][1] not in (want[1], signal.SIG_IGN)

    def test_one_that_comes_after_the_last_step_is_not_lost(self):
        def late():
            with signals_held() as held:
                signal.raise_signal(signal.SIGINT)
                assert held == [signal.SIGINT]

        with pytest.raises(KeyboardInterrupt):
            late()

    def test_a_run_killed_at_any_moments_ends_as_if_it_had_not_been(self, tmp_path):
        pytest.importorskip("safetensors")
        root = Path(__file__).parents[1]
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLED, str(random.SystemRandom().randrange(10**6))]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command[-1]}: {done.stderr[-2000:]}"
        whole, killed = (checkpoint.load(tmp_path / name) for name in ("whole", "killed"))
        assert whole.tensors.keys() == killed.tensors.keys()
        for name in whole.tensors.keys() - {"seconds"}:
            assert torch.equal(whole.tensors[name], killed.tensors[name]), (name, command[-1])
        assert {path.name for path in tmp_path.iterdir()} == {"whole", "killed"}


class TestCheckRun:
    """What is wrong is found before a step is taken."""

    def refused(self, error, message, config=SMALL, **options):
        for check in (lambda: check_run(config, **options), lambda: trained(config, report=pytest.fail, **options)):
            with pytest.raises(error, match=message):
                check()

    def test_a_run_that_can_be(self, tmp_path):
        assert check_run(SMALL) == torch.device("cpu")
        assert check_run(SMALL, torch.device("cpu"), str(tmp_path / "folder" / "model")) == torch.device("cpu")
        assert list((tmp_path / "folder").iterdir()) == []

    def test_a_destination_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        for path, error, message in (
            (tmp_path, OSError, "path: expected a file that can be written, got '.*' .it is a folder"),
            (tmp_path / "file" / "model", OSError, "path: expected a file that can be written, got"),
            ("a\0b", ValueError, "path: expected a path without NUL"),
            (3, TypeError, r"path: expected a str or os.PathLike, got int"),
        ):
            self.refused(error, message, path=path)

    @pytest.mark.parametrize(
        ("module", "package", "changes"),
        [
            ("safetensors.torch", "safetensors", {}),
            ("yaml", "pyyaml", {}),
            ("scipy.ndimage", "scipy", {}),
            ("transformers", "transformers", {"image_encoder": "swin"}),
            ("transformers", "transformers", {"text_encoder": "bert"}),
        ],
    )
    def test_a_package_that_is_missing(self, module, package, changes, tmp_path, monkeypatch):
        for name in ("safetensors.torch", "yaml", "scipy.ndimage"):
            pytest.importorskip(name)
        monkeypatch.setitem(sys.modules, module, None)
        self.refused(ImportError, f"{package} is needed here", SMALL.but(**changes), path=tmp_path / "model")
        if package in ("safetensors", "pyyaml"):
            assert check_run(SMALL).type == "cpu"  # that keeps nothing needs neither
        assert check_run(SMALL.but(boxes=0.0)).type == "cpu"

    @pytest.mark.parametrize(("name", "encoder"), [("image", "swin"), ("text", "bert")])
    def test_a_folder_of_weights_that_is_not_there(self, name, encoder, tmp_path, monkeypatch):
        monkeypatch.setitem(sys.modules, "transformers", types.ModuleType("transformers"))
        changes = {f"{name}_encoder": encoder, f"{name}_weights": str(tmp_path / "x")}
        self.refused(FileNotFoundError, f"{name}_weights: expected a folder, got '.*x'", SMALL.but(**changes))

    def test_something_else_than_a_configuration_or_an_interval(self):
        self.refused(TypeError, "config: expected a Config, got dict", typing.cast(Config, {}))
        for value, error in ((0, ValueError), (-1, ValueError), (1.5, TypeError), (True, TypeError)):
            with pytest.raises(error, match="save_every: expected"):
                trained(save_every=value, report=pytest.fail)


class TestDevice:
    @pytest.mark.parametrize("device", ["gpu", "meta", "cuda:99", "", "x" * 1000])
    def test_one_that_is_not_there(self, device, tmp_path):
        with pytest.raises(ValueError, match=f"device: expected one that torch has here, got '{device[:9]}"):
            trained(device=device, path=tmp_path / "model")
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    def test_a_run_on_cuda_resumes_and_learns_as_on_the_cpu(self, tmp_path):
        pytest.importorskip("scipy")
        config = SMALL.but(tsa=1.0, tsa_source="unsil", fsa_source="unsil")
        on_cpu, on_cuda = trained(config), trained(config, device="cuda")
        for name, losses in on_cpu.history.items():
            torch.testing.assert_close(on_cuda.history[name][:1], losses[:1], rtol=1e-3, atol=1e-4, msg=name)
        assert {x.device.type for x in on_cuda.task.state_dict().values()} == {"cuda"}
        pytest.importorskip("safetensors")
        with pytest.raises(KeyboardInterrupt):
            trained(config, device="cuda", path=tmp_path / "model", save_every=3, report=interrupt_at(4))
        resumed = trained(config, device="cuda", path=tmp_path / "model")
        torch.testing.assert_close(resumed.history["loss"], on_cuda.history["loss"], rtol=1e-3, atol=1e-3)


class TestNoBoxes:
    def test_nothing_that_training_takes_has_a_place_for_one(self):
        fields = {field.name for kind in (Batch, Pairs) for field in dataclasses.fields(kind)}
        assert fields == {"images", "words", "spans", "phrase_lengths", "vocabulary"}
        assert typing.get_type_hints(train)["pairs"] is Pairs
        assert typing.get_type_hints(Task.forward)["batch"] is Batch
        for module in (package, loop, package.task, package.checkpoint, package.config):
            assert Grounded not in vars(module).values()

    @pytest.mark.parametrize("rubbish", [math.nan, 1e9])
    def test_other_true_boxes_give_the_same_weights(self, rubbish):
        true = scenes()
        boxes, objects = (torch.full_like(x, rubbish) for x in (true.boxes, true.objects))
        spoilt = dataclasses.replace(true, boxes=boxes, objects=objects, classes=torch.full_like(true.classes, -1))
        assert_identical(uninterrupted(), train(spoilt.pairs, SMALL))

    def test_scenes_with_boxes_are_refused(self):
        with pytest.raises(TypeError, match="pairs: expected Pairs, got Grounded"):
            train(scenes(), SMALL)


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
        vocabulary = Vocabulary("abcdefgh")
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


class TestLoop:
    def test_an_epoch_shows_each_pair_once(self):
        epochs = [torch.cat([batch_indices(3 * e + k, 12, 4, 0) for k in range(3)]) for e in range(3)]
        assert all(sorted(epoch.tolist()) == list(range(12)) for epoch in epochs)
        assert not any(torch.equal(x, y) for x, y in itertools.combinations(epochs, 2))

    def test_an_epoch_leaves_out_what_fills_no_batch(self):
        seen = torch.cat([batch_indices(k, 11, 4, 0) for k in range(2)])
        assert len(seen.unique()) == 8
        assert seen.max() < 11

    def test_batches_depend_on_nothing_but_their_arguments(self):
        want = batch_indices(7, 20, 4, 3)
        torch.manual_seed(9)
        assert torch.equal(batch_indices(7, 20, 4, 3), want)
        assert not torch.equal(batch_indices(7, 20, 4, 4), want)

    def test_the_learning_rate_warms_up_and_falls_to_zero(self):
        config = Config(lr=0.5, warmup=10, steps=100)
        rates = [learning_rate(step, config) for step in range(101)]
        assert rates[0] == pytest.approx(0.05)
        assert rates[:10] == sorted(rates[:10])
        assert rates[10:] == sorted(rates[10:], reverse=True)
        assert rates[50] == pytest.approx(0.25)
        assert rates[99] > 0
        assert rates[100] == pytest.approx(0, abs=1e-15)
        assert learning_rate(0, config.but(warmup=0)) == 0.5

    def test_progress_counts_steps_and_names_losses(self):
        seen: list[Progress] = []
        history = trained(SMALL.but(steps=3), report=seen.append).history
        assert [x.step for x in seen] == [1, 2, 3]
        assert {x.steps for x in seen} == {3}
        assert seen[-1].seconds_left == 0
        names = {"loss", "cmc", "late_interaction", "region_phrase", "fsa", "boxes"}
        assert set(seen[0].losses) == set(history) == names
        assert all(history[name][1].item() == pytest.approx(seen[1].losses[name]) for name in names)

    def test_steps_reduce_the_loss(self):
        history = trained(SMALL.but(steps=100, lr=1e-2, warmup=5)).history
        for name in ("cmc", "region_phrase", "late_interaction"):
            assert history[name][-5:].mean() < 0.8 * history[name][:5].mean()

    def test_a_loss_that_is_not_finite_stops_the_run_and_saves_nothing_of_it(self, tmp_path):
        path = tmp_path / "model"
        with pytest.raises(FloatingPointError, match="the loss is nan at step 1"):
            trained(SMALL.but(lr=1e37, warmup=0), path=path)
        assert not path.exists()

    def test_too_few_pairs(self):
        few = Pairs(**vars(scenes().pairs.batch(slice(7))), vocabulary=scenes().pairs.vocabulary)
        with pytest.raises(ValueError, match="pairs: expected at least a batch of 8, got 7"):
            train(few, SMALL)


class TestTask:
    batch = staticmethod(lambda: scenes().pairs.batch(slice(8)))

    def test_the_gate_opens_as_contrast_is_learned(self):
        chance = math.log(8)
        gates = [Task._gate([torch.tensor(chance * share)], 8) for share in (1.5, 1, 0.75, 0.5, 0)]
        assert gates == pytest.approx([0, 0, 1 / 16, 1 / 4, 1], abs=1e-6)
        assert Task._gate([torch.tensor(0.0), torch.tensor(chance)], 8) == pytest.approx(1 / 4)
        assert Task._gate([], 8) == Task._gate([torch.tensor(0.0)], 1) == 1  # nothing to wait for

    def test_a_model_that_tells_nothing_apart_does_not_label_for_itself(self):
        task = Task(SMALL, len(scenes().pairs.vocabulary))
        for projection in (task.encoder.image_projection, task.encoder.text_projection):
            torch.nn.init.zeros_(projection.weight)  # what is left is the bias, the same for all
        losses = task(self.batch(), 0)
        contrast = losses["cmc"] + 0.5 * losses["late_interaction"] + losses["region_phrase"]
        assert losses["loss"].item() == pytest.approx(contrast.item(), rel=1e-6)
        losses["loss"].backward()
        assert task.encoder.region_head.project.weight.grad.abs().max() < 1e-9

    def test_the_loss_is_the_weighted_sum_of_its_parts(self):
        config = SMALL.but(cmc=2.0, region_phrase=0.0, late_interaction=0.0, fsa=3.0, boxes=0.0)
        losses = Task(config, len(scenes().pairs.vocabulary))(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "fsa"}
        gate = Task._gate([losses["cmc"]], 8)
        assert losses["loss"].item() == pytest.approx((2 * losses["cmc"] + 3 * gate * losses["fsa"]).item())

    def test_sparse_grouping_adds_its_weighted_share(self):
        config = SMALL.but(late_interaction=0.0, region_phrase=0.0, sparse_grouping=3.0, fsa=0.0, boxes=0.0)
        losses = Task(config, len(scenes().pairs.vocabulary))(self.batch(), 0)
        assert set(losses) == {"loss", "cmc", "sparse_grouping"}
        assert losses["loss"].item() == pytest.approx((losses["cmc"] + 3 * losses["sparse_grouping"]).item())

    def test_temperatures_are_learned_or_fixed(self):
        learned, fixed = (trained(SMALL.but(learn_scale=x, scale=20.0)).task for x in (True, False))
        for name in ("scale_global", "scale_local"):
            assert getattr(learned, name)().item() != pytest.approx(20, rel=1e-4)
            assert getattr(fixed, name)().item() == pytest.approx(20, rel=1e-6)

    def test_temperatures_leave_their_cap(self):
        config = SMALL.but(scale=60.0, scale_cap=60.0, weight_decay=0.0, steps=4)
        local = trained(config).task.scale_local
        assert 1 < local().item() < 59.9
        fixed = trained(config.but(learn_scale=False, steps=1)).task.scale_local
        assert fixed().item() == 60

    @pytest.mark.parametrize("source", ["exact", "sampled", "unsil"])
    def test_the_sources_of_fsa(self, source):
        task = Task(SMALL.but(fsa_source=source, boxes=0.0, fsa_coalitions=2), len(scenes().pairs.vocabulary))
        reference = Task(SMALL.but(boxes=0.0), len(scenes().pairs.vocabulary))
        reference.load_state_dict(task.state_dict(), strict=False)
        got, exact = task(self.batch(), 3), reference(self.batch(), 3)
        assert (got["fsa"] == exact["fsa"]) == (source == "exact")
        assert torch.equal(got["region_phrase"], exact["region_phrase"])
        again, later = task(self.batch(), 3), task(self.batch(), 4)
        assert torch.equal(again["fsa"], got["fsa"])
        assert torch.equal(later["fsa"], got["fsa"]) == (source == "exact")

    def test_the_interaction_learners_and_the_model_learn_apart(self):
        config = SMALL.but(tsa=1.0, tsa_source="unsil", fsa_source="unsil", fsa_coalitions=4, clip=1e-3)
        task = Task(config, len(scenes().pairs.vocabulary))
        losses = task(self.batch(), 0)
        metrics = {name for name in losses if "_unsil" in name}
        kinds = ("", "_computed", "_error", "_within_1", "_calibration_error")
        assert metrics >= {f"{name}_unsil{kind}" for name in ("fsa", "tsa") for kind in kinds}
        assert not any(losses[name].requires_grad for name in metrics)
        gate = Task._gate([losses[name] for name in ("cmc", "late_interaction", "region_phrase")], 8)
        weights = {"cmc": 1, "late_interaction": 0.5, "region_phrase": 1, "fsa": gate, "tsa": gate, "boxes": 2 * gate}
        weights |= {"fsa_unsil": 1, "tsa_unsil": 1}
        assert losses["loss"].item() == pytest.approx(sum(w * losses[name].item() for name, w in weights.items()))
        without = Task(config.but(fsa_source="sampled", tsa_source="computed"), len(scenes().pairs.vocabulary))
        without.load_state_dict(task.state_dict(), strict=False)
        losses["loss"].backward()
        without(self.batch(), 0)["loss"].backward()
        for name, value in without.named_parameters():
            assert torch.equal(value.grad, task.get_parameter(name).grad), name
        model, *learners = task.parts()
        assert {id(x) for part in task.parts() for x in part} == {id(x) for x in task.parameters()}
        assert len(model) == len(list(without.parameters()))
        assert all(part and all(x.grad is not None for x in part) for part in learners)

    def test_the_learner_learns_from_what_it_is_told_to(self):
        computed = {}
        for targets in ("sampled", "exact"):
            task = Task(SMALL.but(fsa_source="unsil", unsil_targets=targets, fsa_coalitions=2), 99)
            other = Task(SMALL, 99)
            other.load_state_dict(task.state_dict(), strict=False)
            computed[targets] = torch.equal(task(self.batch(), 0)["fsa"], other(self.batch(), 0)["fsa"])
        assert computed == {"sampled": False, "exact": True}

    def test_boxes_learn_from_heat_and_heat_does_not_learn_from_boxes(self):
        task = Task(SMALL, len(scenes().pairs.vocabulary))
        task(self.batch(), 0)["boxes"].backward()
        assert task.encoder.region_head.project.weight.grad.abs().max() > 0
        for module in (task.encoder.text, task.encoder.image_projection, task.encoder.text_projection):
            assert all(x.grad is None for x in module.parameters())


class TestConfig:
    def test_yaml_gives_back_what_was_written(self, tmp_path):
        config = SMALL.but(name="a: b", lr=1e-5, negatives=False)
        for path in (tmp_path / "config.yaml", str(tmp_path / "folder" / "config.yaml")):
            config.save(path)
            assert Config.load(path) == config
        assert Config.from_yaml("") == Config()
        assert Config.from_yaml("steps: 5\ncmc: 2") == Config(steps=5, cmc=2)

    @pytest.mark.parametrize(
        ("text", "error", "message"),
        [
            ("step: 5\nwidht: 3\nx: 1", ValueError, r"got step \(nearest: steps\), widht \(nearest: width\), x$"),
            ("[1, 2]", ValueError, "config: expected a mapping of names to values, got list"),
            ("hello", ValueError, "config: expected a mapping of names to values, got 'hello'"),
            ("steps: 5.0", TypeError, "steps: expected int, got 5.0"),
            ("steps: true", TypeError, "steps: expected int, got True"),
            ("lr: true", TypeError, "lr: expected float, got True"),
            ("lr: fast", TypeError, "lr: expected float, got 'fast'"),
            ("lr: '3e-3'", TypeError, "lr: expected float, got '3e-3'"),
            ("steps: 1:30", TypeError, "steps: expected int, got '1:30'"),  # YAML 1.1 has it for 90
            ("negatives: 1", TypeError, "negatives: expected bool, got 1"),
            ("name: 3", TypeError, "name: expected str, got 3"),
            ("precision: half", ValueError, "precision: expected .* got 'half'"),
            ("fsa_source: best", ValueError, r"fsa_source: expected one of \('exact', .* got 'best'"),
            ("unsil_targets: unsil", ValueError, r"unsil_targets: expected one of \('sampled', .* got 'unsil'"),
            ("width: 10", ValueError, "width: expected a multiple of 4, got 10"),
            ("scale: 61", ValueError, r"scale: expected at most scale_cap \(60.0\), got 61"),
            ("scale: 101\nscale_cap: 200", ValueError, "scale: expected .* at most 100, got 101"),
            ("{cmc: 0, region_phrase: 0, fsa: 0, boxes: 0}", ValueError, "cmc, .* boxes: expected one above 0"),
            ("train_size: 63", ValueError, r"train_size: expected at least a batch \(64\), got 63"),
            ("lr: 1e-3\nlr: 1e-2", ValueError, r"config: expected each name once, got 'lr' again \(line 2\)"),
            ("lr: 1\n---\nlr: 2", ValueError, "expected a single plain value, got mapping"),
            ("name: !!python/object:os.system x", ValueError, "name: expected a single plain value, got a tag"),
        ],
    )
    def test_bad_values_are_named(self, text, error, message):
        with pytest.raises(error, match=message):
            Config.from_yaml(text)

    @pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(Config)])
    def test_every_field_has_a_range(self, name):
        kind = type(getattr(Config(), name))
        if kind is bool:
            bad: list[typing.Any] = [1, 0.0, "true", None]
        elif kind is str:
            bad = [3, None, ["tiny"], "a\nb", "\0", "a" * 5000]
            bad += ["other"] if name in CHOICES else ["2-0", "", "2-x", "9999"] if name == "swin_depths" else []
        else:
            least, most = RANGES[name]
            bad = [least - 1, -1, math.nan, math.inf, -math.inf, 10**400, 10**5000, "1", None, True]
            bad += [least] * (name in ABOVE) + [most] * (name in BELOW) + [most + 1] * (most < math.inf)
            bad += [1.5] * (kind is int)
        for value in bad:
            with pytest.raises((ValueError, TypeError), match=f"^{name}: expected .* got ") as caught:
                Config().but(**{name: value})
            assert len(str(caught.value)) < 300

    def test_numbers_of_any_library_are_kept_as_python_has_them(self):
        config = Config(steps=np.int64(5), lr=np.float32(0.5), cmc=2)
        assert (type(config.steps), type(config.lr), type(config.cmc)) == (int, float, float)
        assert Config.from_yaml(config.to_yaml()) == config

    @pytest.mark.parametrize(
        ("text", "changes"),
        [
            ("lr: 3e-3", {"lr": 3e-3}),
            ("lr: 3E-3\nclip: 1.", {"lr": 3e-3, "clip": 1}),
            ("lr: .5\nsteps: +7", {"lr": 0.5, "steps": 7}),
            ("train_size: 20_000\nseed: 010", {"train_size": 20_000, "seed": 10}),
            ("negatives: no\nlearn_scale: False", {"negatives": False, "learn_scale": False}),
            ("name: 2024-01-01  # a date\n", {"name": "2024-01-01"}),
            ("name: 'on'", {"name": "on"}),
            ("{cmc: 2, name: a}", {"cmc": 2.0, "name": "a"}),
        ],
    )
    def test_yaml_is_read_as_people_write_it(self, text, changes):
        assert Config.from_yaml(text) == Config(**changes)

    @pytest.mark.parametrize(
        "name", ["1e3", "08", "on", "~", ".nan", "1_0", "0x1", "1:30", "", " a ", "'", "é", "a: #b"]
    )
    def test_any_name_comes_back(self, name):
        assert Config.from_yaml(Config(name=name).to_yaml()).name == name

    @pytest.mark.parametrize(
        "text",
        [
            "\n".join([f"k{i}: &k{i} [{', '.join([f'*k{i - 1}' if i else 'x'] * 9)}]" for i in range(9)]),
            "steps: " + "[" * 20_000,
            "{" * 20_000,
            "? " * 20_000,
            "steps: " + "9" * 20_000,
            "\n".join(f"k{i}: 1" for i in range(2000)),
            "name: [1",
            "name: @x",
            "\tname: x",
            "name: \0",
            "a" * 2**17,
        ],
    )
    def test_yaml_of_any_size_and_depth_is_refused_in_one_line(self, text, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(text)
        for read in (lambda: Config.from_yaml(text), lambda: Config.load(str(path))):
            with pytest.raises((ValueError, TypeError)) as caught:
                read()
            assert len(str(caught.value)) < 400
            assert "\n" not in str(caught.value)
        assert str(path) in str(caught.value)

    def test_files_that_are_no_text(self, tmp_path):
        (tmp_path / "bytes").write_bytes(b"name: \xff")
        with pytest.raises(ValueError, match=r"path: expected text in UTF-8, got other bytes in .*bytes"):
            Config.load(tmp_path / "bytes")
        with pytest.raises(OSError, match=str(tmp_path)):
            Config.load(tmp_path)

    def test_an_unknown_change_is_told_the_nearest(self):
        with pytest.raises(ValueError, match=r"config: expected names of Config's fields, got step \(nearest: steps\)"):
            Config().but(step=3)
