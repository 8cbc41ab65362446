"""The command `loupe`: options in any order, faults found before the work, messages of one line."""

import argparse
import functools
import io
import signal
import subprocess
import sys
import time

import pytest

import loupe_ext
from loupe_ext import cli
from loupe_ext.cli import main
from loupe_ext.extras import PACKAGES
from loupe_ext.train import Config, Progress, checkpoint, from_pretrained
from tests.test_demo import METRICS

for package in ("faster_coco_eval", "rich", "safetensors", "sklearn", "tensorboard", "yaml"):
    pytest.importorskip(package)

TINY = ("steps=3", "train_size=64", "batch_size=8", "width=16", "dim=16")


def test_train_then_evaluate(tmp_path, capsys):
    config = tmp_path / "run.yaml"
    config.write_text("optim:\n  steps: 3\n  batch_size: 8\ntrain_size: 64\nwidth: 16\ndim: 16\n")
    path = tmp_path / "run"
    command = ["train", str(path), "seed=3", "fsa=0.5", "--config", str(config)]
    assert main([*command, "--report-to", "tensorboard", "--log-every", "1", "--validate-every", "2"]) == 0
    assert list((path / "tensorboard").iterdir())
    shown = capsys.readouterr().err.splitlines()
    assert shown[0].endswith("64 pairs of scenes; terms: cmc 1, region_phrase 1, proposal_phrase 1, fsa 0.5, boxes 2")
    assert shown[1] == "3 steps of 8 pairs on 1 x cpu"
    assert any("run: step 1/3  loss" in line for line in shown)  # which is no terminal
    assert shown[-1].startswith("3 steps, ")
    assert '"validation/acc50"' in (path / "metrics.jsonl").read_text()
    assert main(["evaluate", str(path), "--scenes", "12"]) == 0
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert set(METRICS) < set(printed)
    assert all(0 <= float(value) <= 1 for value in printed.values())


def test_options_and_changes_in_any_order(tmp_path):
    for i, command in enumerate(
        (
            [str(tmp_path / "0"), "--preset", "small", *TINY, "seed=1"],
            ["--preset", "small", str(tmp_path / "1"), "seed=1", "--save-every", "2", *TINY],
            [str(tmp_path / "2"), "seed=1", "--device", "cpu", *TINY, "--preset", "small"],
        )
    ):
        assert main(["train", *command]) == 0
        found = from_pretrained(tmp_path / str(i)).config
        assert found == Config.preset("small").but(seed=1, steps=3, train_size=64, batch_size=8, width=16, dim=16)


def test_a_finished_run_goes_on_when_asked(tmp_path, capsys):
    path = str(tmp_path / "run")
    assert main(["train", path, *TINY]) == 0
    assert main(["train", path, *TINY, "steps=5"]) == 2
    assert "optim.steps: expected 3" in capsys.readouterr().err
    assert main(["train", path, *TINY, "steps=5", "--extend"]) == 0
    assert checkpoint.load(tmp_path / "run").step == 5


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["evaluate", "nowhere"], "nowhere"),
        (["evaluate", "."], "config.json"),
        (["train", "x", "boxes.color=0"], "boxes.color (nearest: objective.boxes.colour)"),
        (["train", "x", "seed"], "changes: expected name=value, got 'seed'"),
        (["train", "x", "steps=many"], "steps"),
        (["train", "x", "steps=1000000000000000"], "steps"),
        (["train", "x", "negatives=1"], "negatives"),
        (["train", "x", "batch_size=0"], "batch_size"),
        (["train", "x", "dataset=photos"], "dataset: expected"),
        (["train", "x", "--device", "cuda:77"], "device"),
        (["train", "/dev/null", "seed=1"], "folder"),
        (["train", "/proc/nowhere/x", "seed=1"], "/proc/nowhere/x"),
        (["train", "x", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["train", "x", "--config", "."], "."),
        (["demo", "--out", "/proc/nowhere"], "--out"),
        (["ablate", "--out", "/dev/null/x"], "--out"),
    ],
)
def test_commands_say_what_is_wrong_before_the_work(command, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loupe_ext.data.load", lambda *_: pytest.fail("data were made"))
    assert main(command) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1
    assert len(message) < 2100
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["demo", "ablate", "evaluate"])
def test_a_missing_extra_is_found_before_the_work(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PACKAGES, "faster-coco-eval", ("nowhere_to_be_found", "detection"))
    assert main([command, *(["x"] if command == "evaluate" else [])]) == 2
    assert "pip install 'loupe-ext[detection]'" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "1000000000000", "9" * 5000, "nan", "", "\u0663", "1_0"])
def test_counts_are_whole_positive_numbers_that_fit(value, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["demo", f"--scenes={value}"])
    assert exit.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert "argument --scenes: expected a whole number from 1 to 10,000,000, got" in message
    assert len(message) < 200


@pytest.mark.parametrize("command", [[], ["paint"], ["train"], ["--scenes", "3"]])
def test_usage_errors(command, capsys):
    with pytest.raises(SystemExit) as exit:
        main(command)
    assert exit.value.code == 2
    assert "usage: loupe" in capsys.readouterr().err


def test_help_and_version(capsys):
    for command in (["--help"], ["train", "--help"], ["--version"]):
        with pytest.raises(SystemExit) as exit:
            main(command)
        assert exit.value.code == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in cli.COMMANDS)
    assert "--save-every" in printed
    assert printed.endswith(f"loupe_ext {loupe_ext.__version__}\n")


def command_that(monkeypatch, act) -> None:
    monkeypatch.setitem(cli.COMMANDS, "demo", (lambda parser: None, act, ""))


def test_a_terminal_that_lacks_a_letter_does_not_stop_the_run(monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(screen, encoding="ascii"))
    command_that(monkeypatch, lambda _: print("1 \u00b1 2 \u2192"))
    assert main(["demo"]) == 0
    sys.stdout.flush()
    assert screen.getvalue() == b"1 ? 2 ?\n"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError("of 3 PiB\nno"), "loupe: not enough memory (of 3 PiB)\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "loupe: not enough memory (DefaultCPUAllocator"),
        (ValueError("first\n  second"), "loupe: first second\n"),
        (OSError("x" * 10_000), "loupe: xxxx"),
    ],
)
def test_errors_are_one_line_of_bounded_length(error, said, monkeypatch, capsys):
    def act(_: argparse.Namespace) -> None:
        raise error

    command_that(monkeypatch, act)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(said)
    assert message.count("\n") == 1
    assert len(message) < 2100


def test_faults_of_our_own_keep_their_traceback(monkeypatch):
    def act(_: argparse.Namespace) -> None:
        raise RuntimeError("a fault")

    command_that(monkeypatch, act)
    with pytest.raises(RuntimeError, match="a fault"):
        main(["demo"])


@pytest.mark.parametrize(("sent", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_an_interrupted_run_is_kept_and_goes_on(sent, status, tmp_path):
    path = tmp_path / "run"
    command = [sys.executable, "-m", "loupe_ext", "train", str(path), *TINY, "steps=100000", "cmc=1", "region_phrase=0"]
    command += ["fsa=0", "boxes=0", "--log-every", "1"]
    # A shell's background job ignores SIGINT, and hands that down.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=heed)
    assert process.stderr is not None
    while "step 1/" not in (line := process.stderr.readline()):
        assert line, "ended too early"
    process.send_signal(sent)
    message = process.stderr.read().splitlines()[-1]
    assert process.wait(30) == status
    kept = checkpoint.load(path).step
    assert kept >= 1
    assert message.startswith(f"loupe: interrupted at step {kept} of 100000")


def test_without_a_terminal_progress_is_lines_now_and_then(monkeypatch):
    from rich.console import Console

    from loupe_ext.train.display import Display

    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    log = io.StringIO()
    with Display(1, 0, Console(file=log, width=200)) as display:
        for step in range(1, 101):
            clock[0] += 1.0
            display.update("run", "training", Progress(step, 100, {"loss": 1.5}, 640.0, 100.0 - step))
        display.finished("run")
    lines = log.getvalue().splitlines()
    assert len(lines) == 2 + 4
    assert lines[1:4] == [
        f"[{step:6.1f} s] run: step {step}/100  loss 1.500  640 items/s  {100 - step} s left" for step in (1, 31, 61)
    ]
