"""How a call reaches its kernel: past PyTorch's dispatcher where that has nothing to add, through it elsewhere."""

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import loupe_ext
from loupe_ext import coalition_moments, maxsim_credit, pairwise_interactions, sample_coalitions, shapley_values
from loupe_ext.ops._register import is_plain
from tests.backends import INTERPRETED
from tests.samples import random_pairs

pytestmark = pytest.mark.skipif(INTERPRETED, reason="the other test run has been here")
SCORES = random_pairs(2, 3, 5)
COALITIONS = sample_coalitions(6, 15)
OPS = {
    "pairwise": pairwise_interactions,
    "sides": lambda s: torch.cat(shapley_values(s), -1),
    "maxsim_credit": lambda s: maxsim_credit(s, document_lengths=torch.tensor([2, 3])),
    "moments": lambda s: coalition_moments(COALITIONS, s.flatten(1), 6),
}


class Through(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def negated(x):
    return torch.complex(x, x).conj().imag  # -x, not yet computed


@pytest.mark.parametrize("name", OPS)
def test_both_ways_have_the_same_values_and_gradients(name):
    def results(s):
        out = OPS[name](s)
        return out, *torch.autograd.grad(out.sin().sum(), s)

    direct = results(SCORES.clone().requires_grad_())
    with Through():
        assert not is_plain((SCORES,))[0]
        dispatched = results(SCORES.clone().requires_grad_())
    assert all(torch.equal(x, y) for x, y in zip(direct, dispatched, strict=True))


@pytest.mark.parametrize("name", OPS)
def test_a_dispatch_mode_sees_the_op_and_its_gradient(name):
    s = SCORES.clone().requires_grad_()
    with Seen() as seen:
        torch.autograd.grad(OPS[name](s).sum(), s)
    assert [x for x in seen.names if "loupe" in x] == [f"loupe.{name}.default", f"loupe.{name}_backward.default"]


def test_what_is_plain():
    s, parameter = SCORES.clone(), torch.nn.Parameter(SCORES)
    assert is_plain((s, None, "auto")) == (True, False)
    assert is_plain((s, parameter)) == (True, True)
    with torch.no_grad(), torch.autocast("cpu"):
        assert is_plain((parameter,)) == (True, False)
    with torch.inference_mode():
        assert is_plain((s + 1,)) == (True, False)
    for special in (negated(s), s.as_subclass(Subclass), s.to("meta"), s.to_sparse(), torch._efficientzerotensor(3)):
        assert not is_plain((s, special))[0]
    for mode in (torch.device("cpu"), Seen(), torch.profiler.profile(), torch.autograd.forward_ad.dual_level()):
        with mode:
            assert not is_plain((s,))[0]
    with torch._C._AutoDispatchBelowAutograd():
        assert is_plain((s,))[0]
        assert not is_plain((parameter,))[0]


def test_special_tensors_give_what_plain_ones_give():
    want = pairwise_interactions(SCORES)
    lazy = negated(-SCORES)
    assert lazy.is_neg()
    assert torch.equal(lazy, SCORES)
    assert torch.equal(pairwise_interactions(lazy), want)
    got = pairwise_interactions(SCORES.as_subclass(Subclass))
    assert isinstance(got, Subclass)
    assert torch.equal(got, want)
    with torch.inference_mode():
        assert torch.equal(pairwise_interactions(SCORES + 0), want)


def test_a_trace_and_a_profile_hold_the_op():
    traced = torch.jit.trace(pairwise_interactions, SCORES)
    assert torch.equal(traced(SCORES + 1), pairwise_interactions(SCORES + 1))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        pairwise_interactions(SCORES)
    assert "loupe::pairwise" in [x.key for x in profile.key_averages()]


def test_a_gradient_is_differentiated_once_and_says_so():
    s = SCORES.clone().requires_grad_()
    (grad,) = torch.autograd.grad(pairwise_interactions(s).square().sum(), s, create_graph=True)
    with pytest.raises(RuntimeError, match="loupe::pairwise_backward has no derivative: double backward"):
        grad.sum().backward()


def test_lengths_on_a_cpu_are_copied_once_checked():
    """Another thread may change what is checked while the kernel runs; here it is the same memory."""
    from loupe_ext.ops._native import dense_lengths

    for lengths in (torch.arange(3), torch.arange(6)[::2], torch.arange(3, dtype=torch.int32)):
        dense = dense_lengths(lengths)
        assert (dense.dtype, dense.tolist(), dense.is_contiguous()) == (torch.int64, lengths.tolist(), True)
        assert dense.data_ptr() != lengths.data_ptr()


def test_random_coalitions_are_drawn_in_a_mode_as_outside():
    with Seen() as seen:
        got = loupe_ext.sample_coalitions(6, 15)
    assert torch.equal(got, COALITIONS)
    assert "loupe.sample.default" in seen.names
