"""Signals in a run, and what is found wrong before it."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import types
import typing
from pathlib import Path

import pytest
import torch

from loupe_ext.train import Config, Interrupted, check_run, checkpoint
from loupe_ext.train.interrupt import signals_held
from tests.training import SMALL, assert_identical, trained, uninterrupted

# Forked after the imports and a first run, which take longer than all others.
KILLED = """
import os, random, signal, sys, time, torch
from loupe_ext.train import Interrupted, fit
from tests.training import SMALL, scenes

torch.set_num_threads(1)
pairs, generator = scenes().pairs, random.Random(int(sys.argv[1]))

def start(path):
    if (child := os.fork()) == 0:
        try:
            fit(pairs, SMALL, path=path, save_every=1)
        except Interrupted:
            os._exit(7)
        os._exit(0)
    return child

def end(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

fit(pairs, SMALL, path="whole", save_every=1)
begun = time.monotonic()
fit(pairs, SMALL)
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
        assert not list(tmp_path.rglob("*.safetensors"))

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
        environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'experiments'}", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", KILLED, str(random.SystemRandom().randrange(10**6))]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command[-1]}: {done.stderr[-2000:]}"
        whole, killed = (checkpoint.load(tmp_path / name) for name in ("whole", "killed"))
        assert whole.tensors.keys() == killed.tensors.keys()
        for name in whole.tensors:
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
        assert not (tmp_path / "folder").exists()

    def test_a_destination_that_cannot_be_written(self, tmp_path):
        (tmp_path / "file").write_text("x")
        for path, error, message in (
            (tmp_path / "file", OSError, "path: expected a folder, got .*file, which is a file"),
            (tmp_path / "file" / "model", OSError, "path: expected a file that can be written, got"),
            ("a\0b", ValueError, "path: expected a path without NUL"),
            (3, TypeError, r"path: expected a str or os.PathLike, got int"),
        ):
            self.refused(error, message, path=path)

    @pytest.mark.parametrize(
        ("module", "package", "changes"),
        [
            ("safetensors", "safetensors", {}),
            ("scipy", "scipy", {}),
            ("transformers", "transformers", {"image_encoder": "swin"}),
            ("transformers", "transformers", {"text_encoder": "bert"}),
        ],
    )
    def test_a_package_that_is_missing(self, module, package, changes, tmp_path, monkeypatch):
        for name in ("safetensors.torch", "scipy.ndimage"):
            pytest.importorskip(name)
        monkeypatch.setitem(sys.modules, module, None)
        self.refused(ImportError, f"{package} is needed here", SMALL.but(**changes), path=tmp_path / "model")
        if package == "safetensors":
            assert check_run(SMALL).type == "cpu"  # that keeps nothing needs it not
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
