"""Training in several processes: the same numbers as in one, and what happens when one of them ends."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from loupe_experiments.ablation import ROWS

from loupe_ext.train import checkpoint

ROOT = Path(__file__).parents[1]
ALL = [row.key for row in ROWS]


def torchrun(count: int, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'experiments'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    options = {"cwd": cwd, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([*command, *map(str, arguments)], **options)


def finished(process: subprocess.Popen[str], timeout: float = 300) -> str:
    out, _ = process.communicate(timeout=timeout)
    assert process.returncode == 0, out[-3000:]
    return out


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Of 1, 2 and 4 processes with DDP and of 2 with FSDP: the gradients and losses of each row."""
    found = {}
    for count, by in ((1, "ddp"), (2, "ddp"), (4, "ddp"), (2, "fsdp")):
        folder = tmp_path_factory.mktemp(f"{by}-{count}")
        finished(torchrun(count, str(ROOT / "tests" / "parallel_run.py"), folder, by, *ALL, cwd=folder))
        found[count, by] = {row: torch.load(folder / f"{row}.pt") for row in ALL}
    return found


@pytest.mark.xdist_group("parallel")
class TestSameNumbers:
    @pytest.mark.parametrize("row", ALL)
    @pytest.mark.parametrize("other", [(2, "ddp"), (4, "ddp"), (2, "fsdp")], ids=str)
    def test_as_in_one_process(self, other, row, runs):
        (want, history), (got, other_history) = runs[1, "ddp"][row], runs[other][row]
        assert want.keys() == got.keys()
        assert history.keys() == other_history.keys()
        shares = ("within", "calibration")  # of what a process has
        for name, losses in history.items():
            if not name.startswith("seconds") and not any(share in name for share in shares):
                torch.testing.assert_close(other_history[name], losses, rtol=1e-5, atol=1e-6, equal_nan=True, msg=name)
        largest = max(value.abs().max().item() for value in want.values())
        assert largest > 1e-3
        for name, value in want.items():
            assert (got[name] - value).abs().max() < 1e-5 * largest, name


TRAIN = ["-m", "loupe_ext", "train", "run", "--log-every", "1", "--save-every", "1"]
TINY = ["steps=12", "train_size=64", "batch_size=8", "width=16", "dim=16", "precision=float32"]


def train(count: int, folder: Path, *more: str) -> subprocess.Popen[str]:
    return torchrun(count, *TRAIN, *TINY, *more, cwd=folder)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, finished(process)
        assert time.monotonic() < limit
        time.sleep(0.02)


def workers(process: subprocess.Popen[str]) -> list[int]:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


@pytest.mark.xdist_group("parallel")
class TestEnds:
    def test_two_processes_killed_go_on_as_if_they_had_not_been(self, tmp_path):
        (tmp_path / "whole").mkdir()
        finished(train(2, tmp_path / "whole"))
        process = train(2, tmp_path)
        wait_for(tmp_path / "run" / checkpoint.STATE, process)
        for pid in (process.pid, *workers(process)):
            os.kill(pid, signal.SIGKILL)
        process.communicate()
        assert 1 <= checkpoint.load(tmp_path / "run").step < 12
        finished(train(2, tmp_path))
        want, got = (checkpoint.load(tmp_path / name) for name in ("whole/run", "run"))
        assert want.tensors.keys() == got.tensors.keys()
        assert all(torch.equal(value, got.tensors[name]) for name, value in want.tensors.items())

    def test_preemption_saves_and_ends_well(self, tmp_path):
        process = train(2, tmp_path, "steps=100000")
        wait_for(tmp_path / "run" / checkpoint.STATE, process)
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=60)
        step = checkpoint.load(tmp_path / "run").step
        assert f"interrupted at step {step} of 100000" in out

    def test_one_that_dies_ends_the_others_and_leaves_the_state_whole(self, tmp_path):
        process = train(2, tmp_path, "steps=100000")
        wait_for(tmp_path / "run" / checkpoint.STATE, process)
        os.kill(workers(process)[-1], signal.SIGKILL)
        out, _ = process.communicate(timeout=90)
        assert process.returncode != 0
        assert "SIGKILL" in out or "Signal 9" in out
        assert checkpoint.load(tmp_path / "run").step >= 1
