"""What a launch of a CUDA kernel costs the host: what csrc/cuda/launch.h asks of a runtime that writes it down."""

import contextlib
import re
from pathlib import Path

import pytest
import torch

from loupe_ext import _C, ops
from tests import emulation
from tests.backends import INTERPRETED
from tests.samples import random_pairs

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the other test run has been here")
SOURCE = Path(__file__).parent / "emulation" / "launch.cpp"


def test_attributes_are_read_once_a_device_and_shared_memory_is_asked_for_when_it_grows():
    parts = re.split(r"^# (.*)\n", emulation.run(SOURCE, b"").decode(), flags=re.M)[1:]
    steps = list(zip(parts[::2], [x.splitlines() for x in parts[1::2]], strict=True))
    launch = "launch 7 x 32, {} bytes: 3 1.5".format
    assert steps == [
        ("new", ["attribute of device 0", "attribute of device 0", "100 200"]),
        ("again", ["100 200"]),
        ("none", [launch(0)]),
        ("some", ["500 shared bytes", launch(500)]),
        ("again", [launch(500)]),
        ("less", [launch(400)]),
        ("more", ["600 shared bytes", launch(600)]),
        ("another kernel", ["500 shared bytes", launch(500)]),
        ("another device", ["attribute of device 1", "attribute of device 1", "500 shared bytes", launch(500)]),
        ("and back", [launch(600)]),
        ("too much", ["5000 shared bytes", "CUDA: invalid argument; left: 0"]),
        ("as before", [launch(600)]),
    ]


@pytest.mark.parametrize("scratch", [0, 64])
def test_a_call_allocates_its_results_and_scratch_only_if_the_kernel_wants_any(scratch, monkeypatch):
    """The way to a CUDA kernel, with CPU tensors and a kernel that notes the addresses that it is given."""
    given, allocated = [], []
    monkeypatch.setattr(_C, "pairwise_scratch_bytes_cuda", lambda call: scratch, raising=False)
    monkeypatch.setattr(_C, "pairwise_cuda", lambda call, *addresses: given.append(addresses), raising=False)
    monkeypatch.setattr(ops.pairwise, "resolve_backend", lambda backend, device: "cuda")
    monkeypatch.setattr(ops.pairwise, "current_stream", lambda device: 7)
    new_empty = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: allocated.append(a[1:]) or new_empty(*a, **k))
    ops.pairwise._forward(random_pairs(2, 3, 4), None, None, None, None, "max-mean", "auto")
    ((_, at, stream),) = given
    assert stream == 7
    assert allocated == ([(64,)] if scratch else [])
    assert (at == 0) == (scratch == 0)


def test_the_current_device_is_not_made_current_again(monkeypatch):
    made = []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "device", lambda device: made.append(device) or contextlib.nullcontext())
    for device in ("cpu", "cuda:1", "cuda:0"):
        with ops._native.on_device(torch.device(device)):
            pass
    assert made == [torch.device("cuda:0")]
