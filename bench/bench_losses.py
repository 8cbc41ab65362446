"""Losses that compare all regions with all phrases: time and memory of a step, forward and backward.

`python -m bench.bench_losses region_phrase 4096` prints one; pytest runs them at 1,024.
"""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from loupe_ext.losses import fsa_loss, region_phrase_loss

M, P, D = 49, 4, 64
LOSSES = {"region_phrase": region_phrase_loss, "fsa": fsa_loss}


def step(name: str, B: int) -> float:
    """Seconds."""
    generator = torch.Generator().manual_seed(0)
    inputs = [normalize(torch.randn(B, n, D, generator=generator), dim=-1).requires_grad_() for n in (M, P)]
    start = time.perf_counter()
    LOSSES[name](*inputs, 10.0).backward()
    return time.perf_counter() - start


def measured(name: str, B: int) -> tuple[float, float]:
    """Seconds of a step, and how many MiB it takes this process beyond a step of 2 pairs."""
    torch.set_num_threads(1)
    step(name, 2)  # loads what is loaded once
    status = Path("/proc/self/status")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is resident
    kibibytes = lambda: int(status.read_text().split("VmHWM:")[1].split()[0])  # noqa: E731
    before = kibibytes()
    return step(name, B), (kibibytes() - before) / 1024


@pytest.mark.parametrize("name", LOSSES)
def test_losses(name):
    command = [sys.executable, "-m", "bench.bench_losses", name, "1024"]
    said = subprocess.run(command, cwd=Path(__file__).parents[1], check=True, capture_output=True, text=True).stdout
    print(said)
    peak = float(said.split()[-2])
    assert peak * 2**20 < 1024**2 * M * P * 4  # what the similarities alone would take; autograd, several times that


if __name__ == "__main__":
    seconds, peak = measured(sys.argv[1], int(sys.argv[2]))
    print(f"{sys.argv[1]}, {sys.argv[2]} pairs: {seconds:.2f} s, {peak:.0f} MiB")
