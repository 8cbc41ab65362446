"""Large batches in blocks: the same losses, and never all regions with all phrases."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from loupe_ext.losses import _blocks, fsa_loss, region_phrase_loss, region_phrase_similarity
from tests.backends import assert_close
from tests.samples import random_pairs

B, M, N = 12, 6, 5
REGION_LENGTHS, PHRASE_LENGTHS = torch.arange(B) % M + 1, torch.arange(B) % N + 1
LOSSES = {
    "region_phrase": lambda r, p, s: region_phrase_loss(r, p, s, PHRASE_LENGTHS, region_lengths=REGION_LENGTHS),
    "fsa": lambda r, p, s: fsa_loss(r, p, s, REGION_LENGTHS, PHRASE_LENGTHS),
    "not square": lambda r, p, s: (s * region_phrase_similarity(r, p[:7], PHRASE_LENGTHS[:7])).square().sum(),
}


def inputs():
    tensors = random_pairs(B, M, 4), random_pairs(B, N, 4, 1), torch.tensor([2.0]).double()
    return [x.requires_grad_() for x in tensors]


@pytest.mark.parametrize("pairs", [1, 4, 7, 40, 143])
@pytest.mark.parametrize("name", LOSSES)
def test_blocks_change_no_value_and_no_gradient(name, pairs, monkeypatch):
    x = inputs()
    want = [loss := LOSSES[name](*x), *torch.autograd.grad(loss, x)]
    calls = []
    checkpoint = _blocks.checkpoint
    monkeypatch.setattr(_blocks, "checkpoint", lambda *a, **k: calls.append(1) or checkpoint(*a, **k))
    monkeypatch.setattr(_blocks, "CPU_BLOCK", pairs * M * N)
    got = [loss := LOSSES[name](*x), *torch.autograd.grad(loss, x)]
    assert len(calls) > 1 or name == "not square"
    for mine, theirs in zip(got, want, strict=True):
        assert_close(mine, theirs, 1e-12)


@pytest.mark.parametrize("name", ["region_phrase", "fsa"])
def test_no_tensor_is_of_all_regions_by_all_phrases(name, monkeypatch):
    monkeypatch.setattr(_blocks, "CPU_BLOCK", 6 * M * N)
    largest, saved = [], {}

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, arguments=(), options=None):
            out = op(*arguments, **(options or {}))
            tensors = out if isinstance(out, (tuple, list)) else [out]
            largest.extend(x.numel() for x in tensors if isinstance(x, torch.Tensor))
            return out

    def keep(x):
        saved[x.untyped_storage().data_ptr()] = x.numel()
        return x

    with Sizes(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        LOSSES[name](*inputs()).backward()
    everything = B * M * B * N
    assert max(largest) < everything / 5  # of a batch this small the features come near
    assert 0 < sum(saved.values()) < everything
