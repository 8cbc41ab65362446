import doctest
import math
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad

import loupe_ext
from loupe_ext import pairwise_interactions
from python_ref import brute
from python_ref import pairwise as reference
from tests.backends import (
    BACKENDS,
    LONG,
    SLOW,
    TOLERANCE,
    assert_close,
    device_of,
    every_backend,
    few,
    gradcheck,
    in_turn,
    pairwise,
    selected,
)
from tests.samples import Pairs, pairs_problems, random_pairs
from tests.triton_ahead import compiled

VECTORS = np.load("tests/data/interactions.npz")
INDICES = {"shapley": ("shapley", 0.5), "banzhaf0.5": ("banzhaf", 0.5), "banzhaf0.3": ("banzhaf", 0.3)}


def vector(t: int, name: str) -> tuple[Pairs, torch.Tensor]:
    index, p = INDICES[name]
    s, c, want = (torch.from_numpy(VECTORS[f"pair{t}_{key}"]) for key in ("s", "s_col", name))
    return Pairs(f"pair{t}", s[None], c[None], index=index, p=p), want[None]


def upstream(like: torch.Tensor) -> torch.Tensor:
    return torch.cos(torch.arange(like.numel(), dtype=torch.float64)).view(like.shape).to(like.dtype)


def expected(problem: Pairs, grad: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The reference's results in float64, from the very numbers of the problem."""
    inputs = [x.double().requires_grad_() for x in (problem.scores, problem.col_scores) if x is not None]
    out = reference.pairwise_interactions(*inputs, **problem.options)
    return [out.detach()] + ([] if grad is None else list(torch.autograd.grad(out, inputs, grad.double())))


class TestReference:
    @pytest.mark.parametrize("name", INDICES)
    @pytest.mark.parametrize("t", range(9))
    def test_matches_the_shared_vectors(self, t, name):
        problem, want = vector(t, name)
        assert_close(expected(problem)[0], want, 1e-12)

    @given(
        M=st.integers(1, 4),
        N=st.integers(1, 4),
        seed=st.integers(0, 10**6),
        tied=st.booleans(),
        p=st.floats(0.02, 0.98),
    )
    @settings(max_examples=25, deadline=None)
    def test_matches_enumeration(self, M, N, seed, tied, p):
        s, c = random_pairs(2, M, N, seed)
        if tied:
            s, c = s.round(), c.round()
        for index in ("shapley", "banzhaf"):
            want = brute.pairwise_interactions(s, c, index=index, p=p)
            got = reference.pairwise_interactions(s, c, index=index, p=p)
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)

    def test_enumeration_counts_every_coalition_once(self):
        for index in ("shapley", "banzhaf"):
            assert brute.coalition_weights(5, index, 0.3).sum().item() == pytest.approx(1, abs=1e-14)


class TestValues:
    @every_backend
    def test_matches_the_shared_vectors(self, backend):
        for t in few(backend, range(9)):
            for name in INDICES:
                problem, want = vector(t, name)
                assert_close(pairwise(backend, problem)[0], want, 1e-12)

    @pytest.mark.parametrize(("backend", "problem", "dtype"), in_turn(pairs_problems))
    def test_values_and_gradients_match_the_reference(self, backend, problem, dtype):
        problem = problem.to(dtype)
        grad = upstream(problem.scores)
        results = pairwise(backend, problem, grad)
        wanted = expected(problem, grad)
        assert len(results) == len(wanted)
        for got, want in zip(results, wanted, strict=True):
            assert got.dtype == dtype
            assert_close(got, want, TOLERANCE[dtype])

    @every_backend
    @pytest.mark.parametrize("size", [1e30, 1e-30])
    def test_huge_and_tiny_scores(self, backend, size):
        for dtype in (torch.float64, torch.float32):
            problem = Pairs("scaled", random_pairs(2, 6, 9) * size).to(dtype)
            grad = upstream(problem.scores)
            for got, want in zip(pairwise(backend, problem, grad), expected(problem, grad), strict=True):
                assert_close(got, want, TOLERANCE[dtype])

    @pytest.mark.parametrize("shape", [(1, 30, 49), (1, 64, 64), (2, 70, 6), (1, 5, 200)])
    def test_emulated_cuda_does_not_depend_on_thread_order_or_on_where_its_tile_is(self, shape):
        from tests import emulation

        for dtype in (torch.float32, torch.float64):
            s, c = random_pairs(*shape).to(dtype), random_pairs(*shape, 1).to(dtype)
            for grad in (None, upstream(s)):
                want = emulation.pairwise(s, c, grad=grad)
                wide = Pairs("", s, c)
                for got, exact in zip(want, expected(wide, upstream(s))[0 if grad is None else 1 :], strict=False):
                    assert_close(got, exact, TOLERANCE[dtype])
                for environment in ({"EMULATED_ORDER": "reversed"}, {"EMULATED_SHARED_BYTES": "24000"}):
                    again = emulation.pairwise(s, c, grad=grad, **environment)
                    assert all(torch.equal(x, y) for x, y in zip(want, again, strict=True))

    @pytest.mark.parametrize("shape", LONG)
    def test_emulated_cuda_on_long_lines(self, shape):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            problem = Pairs("ties", (random_pairs(*shape) * 8).round() / 8).to(dtype)
            grad = upstream(problem.scores)
            for got, want in zip(pairwise("emulated-cuda", problem, grad), expected(problem, grad), strict=True):
                assert_close(got, want, TOLERANCE[dtype])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(9, 12, 3), (5, 16, 16), (2, 46, 30), (1, 55, 64)])
    def test_emulated_cuda_on_lines_of_one_thread(self, shape, dtype):
        """Problems that share a block: full or ragged, with ties, anywhere in it and its threads in any order."""
        from tests import emulation

        B, M, N = shape
        s = (random_pairs(*shape) * 3).round().to(dtype) / 4
        lengths = torch.arange(B) * 5 % (M + 1), (torch.arange(B) * 3 + 1) % (N + 1)
        for rows, cols in ((None, None), lengths):
            for grad in (None, upstream(s)):
                arguments = [x for x in (s, rows, cols, grad)]
                call = lambda s, rows, cols, grad, **kw: emulation.pairwise(s, None, rows, cols, None, grad, **kw)[0]  # noqa: E731
                got = call(*arguments)
                assert_close(
                    got, expected(Pairs("", s, None, rows, cols), upstream(s))[grad is not None], TOLERANCE[dtype]
                )
                assert torch.equal(got, call(*arguments, EMULATED_ORDER="reversed"))
                parts = [call(*(x if x is None else x[part] for x in arguments)) for part in (slice(0, 1), slice(1, B))]
                assert torch.equal(got, torch.cat([x for x in parts if len(x)]))

    @pytest.mark.parametrize("shape", [(80, 12, 3), (32, 16, 16), (8, 32, 32), (8, 49, 30), (4, 64, 64)])
    def test_lines_of_one_thread_seldom_wait_for_a_bank(self, shape):
        """Cycles of shared memory per 32 pairs; without conflicts 13 and 18, with lanes that share a bank 300."""
        from tests import emulation

        s = random_pairs(*shape).float()
        for grad, most in ((None, 30), (upstream(s), 40)):
            accesses, cycles = emulation.banks(emulation.pairwise, s, grad=grad)
            assert accesses <= cycles <= most * s.numel() / 32

    @every_backend
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_largest_scores_that_the_docstring_allows(self, backend, dtype):
        for B, M, N in ((8, 2, 2), (8, 3, 4), (2, 9, 20)):
            sign = random_pairs(B, M, N).sign()
            s = (sign * (random_pairs(B, M, N, 1).abs().clamp(max=1) / 2 + 0.5)).to(dtype) * (
                torch.finfo(dtype).max / 8
            )
            (got,) = pairwise(backend, Pairs("largest", s))
            unit = 2.0**-20
            assert_close(got.double() * unit, expected(Pairs("largest", s.double() * unit))[0], TOLERANCE[dtype])

    def test_one_problem_without_a_batch(self):
        s = random_pairs(1, 5, 4)[0]
        lengths = torch.tensor(3), torch.tensor(2)
        got = pairwise_interactions(s, region_lengths=lengths[0], phrase_lengths=lengths[1])
        assert torch.equal(got[:3, :2], pairwise_interactions(s[:3, :2]))
        assert got[3:].abs().sum() == 0
        assert got[:, 2:].abs().sum() == 0

    def test_the_docstrings_example(self):
        assert doctest.testmod(sys.modules["loupe_ext.ops.pairwise"]) == (0, 2)

    def test_int32_lengths(self):
        s = random_pairs(2, 5, 4)
        got = pairwise_interactions(s, region_lengths=torch.tensor([2, 5], dtype=torch.int32))
        assert torch.equal(got, pairwise_interactions(s, region_lengths=torch.tensor([2, 5])))


# The dtype decides how scores are loaded (half types) and in what is computed (float64); the index decides the weights,
# always of float64. One line longer than a warp and one shorter; rows and columns are a kernel each.
@pytest.mark.parametrize(
    ("dtype", "shape", "probabilities", "count"),
    [
        (torch.float32, (2, 5, 40), (0.3, 0.4), 4),  # another p needs no other kernel
        (torch.float64, (2, 5, 40), (None,), 4),
        (torch.float16, (2, 12, 12), (None,), 4),
        (torch.bfloat16, (2, 12, 12), (0.3,), 4),
    ],
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_just_in_time_kernels_compile_for_a_gpu(dtype, shape, probabilities, count):
    kernels = pytest.importorskip("loupe_ext.triton.pairwise")
    s = random_pairs(*shape).to(dtype)

    def calls():
        for p in probabilities:
            kernels.forward(s, None, None, None, p, "max-mean")
            kernels.backward(s, s, None, None, None, p, "max-mean")

    built = compiled(kernels, "_lines_kernel", calls)  # rows and columns, forward and backward
    assert len(built) == count
    assert all(x.asm["cubin"] for x in built)


class TestBits:
    """The same bits whatever the thread count, the batch split and the flushing of denormals."""

    problems = (Pairs("many", random_pairs(700, 6, 9)), Pairs("few", random_pairs(9, 49, 30)))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("problem", problems, ids=str)
    def test_threads_and_splits(self, problem, dtype):
        problem = problem.to(dtype)
        grad = upstream(problem.scores)
        B = len(problem.scores)
        lengths = torch.arange(B) % (problem.scores.shape[1] + 1)
        ragged = Pairs("ragged", problem.scores, problem.scores.flip(0), lengths, None)
        threads = torch.get_num_threads()
        try:
            for case in (problem, ragged):
                torch.set_num_threads(1)
                want = pairwise("cpu-" + loupe_ext._C.cpu_target(), case, grad)
                torch.set_num_threads(2)
                again = pairwise("cpu-" + loupe_ext._C.cpu_target(), case, grad)
                assert all(torch.equal(x, y) for x, y in zip(want, again, strict=True))
                for first in (1, B // 2):
                    cut = lambda x, a, b: None if x is None else x[a:b]  # noqa: E731
                    parts = []
                    for a, b in ((0, first), (first, B)):
                        part = Pairs(
                            "part", *(cut(x, a, b) for x in (case.scores, case.col_scores, case.region_lengths))
                        )
                        parts.append(pairwise("cpu-" + loupe_ext._C.cpu_target(), part, grad[a:b]))
                    joined = [torch.cat(x) for x in zip(*parts, strict=True)]
                    assert all(torch.equal(x, y) for x, y in zip(want, joined, strict=True))
        finally:
            torch.set_num_threads(threads)

    def test_flushed_denormals(self):
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        try:
            problem = Pairs("zeros", random_pairs(2, 9, 9).round()).to(torch.float32)
            grad = upstream(problem.scores)
            results = pairwise("cpu-" + loupe_ext._C.cpu_target(), problem, grad)
        finally:
            torch.set_flush_denormal(False)
        for got, want in zip(results, expected(problem, grad), strict=True):
            assert_close(got, want, 1e-5)

    def test_flushed_denormals_do_not_show_the_thread_count(self):
        if not torch.set_flush_denormal(True):
            pytest.skip("this processor cannot flush denormals")
        threads = torch.get_num_threads()
        try:
            s = random_pairs(4000, 6, 6).float() * 1e-37
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(pairwise_interactions(s))
            assert all(torch.equal(results[0], x) for x in results[1:])
        finally:
            torch.set_flush_denormal(False)
            torch.set_num_threads(threads)

    def test_lengths_that_another_thread_writes(self):
        """They are checked once and never read again from where others can write."""
        code = (
            "import threading, torch; from loupe_ext import pairwise_interactions\n"
            "lengths, stop = torch.full((20000,), 8), threading.Event()\n"
            "def spoil():\n"
            "    while not stop.is_set(): lengths.fill_(10**6); lengths.fill_(8)\n"
            "thread = threading.Thread(target=spoil); thread.start(); s = torch.randn(20000, 8, 8)\n"
            "for _ in range(150):\n"
            "    try: pairwise_interactions(s, region_lengths=lengths)\n"
            "    except ValueError: pass\n"
            "stop.set(); thread.join()"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    def test_a_forked_data_loader_worker(self):
        """An OpenMP team must not be started in a child of a process that had one."""
        code = (
            "import torch, loupe_ext; from torch.utils.data import DataLoader\n"
            "torch.set_num_threads(2); x = torch.randn(4000, 8, 8); loupe_ext.pairwise_interactions(x)\n"
            "work = lambda items: loupe_ext.pairwise_interactions(torch.stack(items))\n"
            "got = torch.cat(list(DataLoader(x, 2000, num_workers=2, collate_fn=work)))\n"
            "assert torch.equal(got, loupe_ext.pairwise_interactions(x))"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    def test_scratch_does_not_grow_with_the_batch(self):
        code = (
            "import resource, torch, loupe_ext\n"
            "torch.set_num_threads(1); x = torch.randn(20000, 32, 32); out = torch.empty_like(x); out.zero_()\n"
            "loupe_ext.pairwise_interactions(x[:1]); before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "del out; out = loupe_ext.pairwise_interactions(x)\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
        )
        grown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
        assert int(grown) < 2048  # KiB, beside the 80 MB of the output, which was there before


class TestNotFinite:
    @every_backend
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_stays_in_its_own_problem(self, backend, value):
        clean = random_pairs(4, 5, 6).float()
        dirty = clean.clone()
        dirty[1, 2, 3] = value
        lengths = torch.tensor([5, 4, 5, 5])
        grad = upstream(clean)
        want = pairwise(backend, Pairs("clean", clean, None, lengths), grad)
        got = pairwise(backend, Pairs("dirty", dirty, None, lengths), grad)
        for x, y in zip(got, want, strict=True):
            assert x[1, :4].isnan().all()
            assert (x[1, 4:] == 0).all()
            others = [0, 2, 3]
            assert torch.equal(x[others], y[others])

    @every_backend
    def test_lines_full_of_it_keep_to_their_memory(self, backend):
        s = random_pairs(1, 9, 9).float()
        s[random_pairs(1, 9, 9, 1) < 0] = math.nan  # no order: a network would lose keys, and take padding for an entry
        for problem in (Pairs("dirty", s), Pairs("dirty columns", s.nan_to_num(), s)):
            for x in pairwise(backend, problem, upstream(s)):
                assert x.isnan().all()

    @every_backend
    def test_in_the_column_scores(self, backend):
        s, c = random_pairs(2, 3, 3).float(), random_pairs(2, 3, 3, 1).float()
        c[0, 0, 0] = math.nan
        for x in pairwise(backend, Pairs("dirty", s, c), upstream(s)):
            assert x[0].isnan().all()
            assert x[1].isfinite().all()

    @every_backend
    def test_padding_is_never_read(self, backend):
        s = random_pairs(3, 6, 5).float()
        rows, cols = torch.tensor([6, 2, 0]), torch.tensor([1, 5, 3])
        want = pairwise(backend, Pairs("clean", s, None, rows, cols), upstream(s))
        for b in range(3):
            s[b, rows[b] :] = math.nan
            s[b, :, cols[b] :] = math.inf
        got = pairwise(backend, Pairs("padded", s, None, rows, cols), upstream(s))
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))

    @every_backend
    def test_gradient_that_is_not_finite(self, backend):
        s = random_pairs(2, 4, 4).float()
        grad = upstream(s)
        grad[0, 1, 1] = math.nan
        got = pairwise(backend, Pairs("", s), grad)
        assert got[1][0].isnan().any()
        assert torch.equal(got[1][1], pairwise(backend, Pairs("", s), upstream(s))[1][1])


class TestAutograd:
    @every_backend
    @pytest.mark.parametrize("index", ["shapley", "banzhaf"])
    def test_gradcheck(self, backend, index):
        if backend == "emulated-cuda":
            pytest.skip("the emulator has no autograd; its gradients are compared with the reference's")
        place = device_of(backend)
        s, c = (random_pairs(2, 3, 4, seed).to(place).requires_grad_() for seed in range(2))
        lengths = torch.tensor([3, 2], device=place)
        with selected(backend) as name:
            call = lambda *x: pairwise_interactions(*x, region_lengths=lengths, index=index, p=0.3, backend=name)  # noqa: E731
            assert gradcheck(backend, call, (s,))
            assert gradcheck(backend, call, (s, c))

    def test_on_a_tie_the_lower_index_is_the_larger(self):
        tied = torch.zeros(3, 4, dtype=torch.float64)
        order = torch.arange(3, dtype=torch.float64)[:, None] + torch.arange(4, dtype=torch.float64)
        grad = upstream(tied)
        nudged = [x.requires_grad_() for x in (tied, tied - 1e-9 * order)]
        results = [torch.autograd.grad(pairwise_interactions(x), x, grad)[0] for x in nudged]
        torch.testing.assert_close(results[0], results[1], rtol=0, atol=1e-14)

    def test_double_backward_raises(self):
        s = random_pairs(1, 3, 3).requires_grad_()
        (grad,) = torch.autograd.grad(pairwise_interactions(s).pow(2).sum(), s, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()

    def test_forward_mode_raises(self):
        s, c = random_pairs(2, 3, 3), random_pairs(2, 3, 3, 1)
        ones = torch.ones_like(s)
        with pytest.raises(RuntimeError, match="scores: forward-mode differentiation is not supported"):
            torch.func.jvp(pairwise_interactions, (s,), (ones,))
        with pytest.raises(RuntimeError, match="col_scores: forward-mode differentiation is not supported"):
            torch.func.jvp(lambda x: pairwise_interactions(s, x), (c,), (ones,))
        with pytest.raises(RuntimeError, match="forward-mode differentiation is not supported"):
            torch.func.jacfwd(pairwise_interactions)(s)
        with forward_ad.dual_level():
            assert torch.equal(pairwise_interactions(s), pairwise_interactions(s.clone()))

    def test_only_one_input_needs_a_gradient(self):
        s, c = random_pairs(1, 3, 3), random_pairs(1, 3, 3, 1).requires_grad_()
        (grad,) = torch.autograd.grad(pairwise_interactions(s, c).sum(), c)
        both = [x.detach().requires_grad_() for x in (s, c)]
        assert torch.equal(grad, torch.autograd.grad(pairwise_interactions(*both).sum(), both)[1])


class TestTorchLibrary:
    cases = (
        (random_pairs(2, 3, 4).float(), None, None, None, None, "max-mean", "auto"),
        (*random_pairs(2, 2, 12).view(2, 2, 3, 4), torch.tensor([3, 1]), torch.tensor([0, 4]), 0.4, "max-mean", "cpu"),
        (random_pairs(4, 3, 2).transpose(0, 2), None, torch.tensor([3, 2]).int(), None, None, "maxsim", "auto"),
    )

    @pytest.mark.parametrize("case", cases)
    def test_opcheck(self, case):
        scores, cols, *rest = case
        tensors = [None if x is None else x.clone().requires_grad_() for x in (scores, cols)]
        torch.library.opcheck(torch.ops.loupe.pairwise, (*tensors, *rest))
        grad = torch.ones_like(scores)
        torch.library.opcheck(torch.ops.loupe.pairwise_backward, (grad, scores, cols, *rest))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile_fullgraph(self, dynamic):
        def step(s, c, lengths):
            out = pairwise_interactions(s, c, region_lengths=lengths, index="banzhaf", p=0.25)
            return (out * out).sum()

        compiled = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for B in (2, 3):
            inputs = [random_pairs(B, 5, 4, seed).requires_grad_() for seed in (0, 1)]
            lengths = torch.arange(B) + 2
            want, got = (torch.autograd.grad(f(*inputs, lengths), inputs) for f in (step, compiled))
            assert all(torch.equal(x, y) for x, y in zip(want, got, strict=True))

    def test_meta_tensors_have_the_right_shape(self):
        assert pairwise_interactions(torch.empty(2, 3, 4, device="meta")).shape == (2, 3, 4)


class TestBadInput:
    s = random_pairs(2, 3, 4).float()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (([[1.0]],), TypeError, r"scores: expected a torch.Tensor, got list"),
            ((torch.zeros(3),), ValueError, r"scores: expected shape \[B, M, N\] or \[M, N\], got \(3,\)"),
            ((torch.zeros(1, 1, 1, 1),), ValueError, r"scores: expected shape .* got \(1, 1, 1, 1\)"),
            ((torch.zeros(2, 2, dtype=torch.int64),), TypeError, r"scores: expected dtype float16, .* got torch.int64"),
            ((torch.zeros(2, 2, dtype=torch.complex64),), TypeError, r"scores: expected dtype .* got torch.complex64"),
            ((torch.zeros(2, 2).to_sparse(),), TypeError, r"scores: expected a dense .* got layout torch.sparse_coo"),
            ((s, s[:1]), ValueError, r"col_scores: expected the shape of scores \(2, 3, 4\), got \(1, 3, 4\)"),
            (
                (s, s.double()),
                TypeError,
                r"col_scores: expected the dtype of scores \(torch.float32\), got torch.float64",
            ),
            ((s, s.to("meta")), ValueError, r"col_scores: expected the device of scores \(cpu\), got meta"),
            ((torch.empty(2**15, 2**14, device="meta"),), ValueError, r"scores: expected fewer than 2\^28 entries"),
        ],
    )
    def test_tensors(self, arguments, error, message):
        with pytest.raises(error, match=message):
            pairwise_interactions(*arguments)

    @pytest.mark.parametrize("name", ["region_lengths", "phrase_lengths"])
    @pytest.mark.parametrize(
        ("value", "error", "message"),
        [
            ([1, 2], TypeError, "expected a torch.Tensor, got list"),
            (torch.tensor([1.0, 2.0]), TypeError, "expected dtype int32 or int64, got torch.float32"),
            (torch.tensor([1, 2, 3]), ValueError, r"expected shape \(2,\), one length per problem, got \(3,\)"),
            (torch.tensor(1), ValueError, r"expected shape \(2,\), one length per problem, got \(\)"),
            (torch.empty(2, dtype=torch.int64, device="meta"), ValueError, "expected device cpu, got meta"),
            (torch.tensor([1, 9]), ValueError, r"expected values in 0..[34], got 9 at \[1\]"),
            (torch.tensor([-1, 1]), ValueError, r"expected values in 0..[34], got -1 at \[0\]"),
        ],
    )
    def test_lengths(self, name, value, error, message):
        with pytest.raises(error, match=f"{name}: {message}"):
            pairwise_interactions(self.s, **{name: value})

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            ({"index": "sii"}, ValueError, "index: expected 'shapley' or 'banzhaf', got 'sii'"),
            ({"index": None}, ValueError, "index: expected 'shapley' or 'banzhaf', got None"),
            ({"game": "max"}, ValueError, "game: expected 'max-mean' or 'maxsim', got 'max'"),
            ({"pairs": "cross-modal"}, ValueError, "pairs: expected 'cross' or 'all', got 'cross-modal'"),
            ({"pairs": None}, ValueError, "pairs: expected 'cross' or 'all', got None"),
            ({"p": 0.0}, ValueError, "p: expected a probability strictly between 0 and 1, got 0.0"),
            ({"p": 1}, ValueError, "p: expected a probability strictly between 0 and 1, got 1"),
            ({"p": math.nan}, ValueError, "p: expected a probability .* got nan"),
            ({"p": "half"}, TypeError, "p: expected a float, got str"),
            ({"backend": "gpu"}, ValueError, "backend: expected one of auto, cpu, cuda, triton, got 'gpu'"),
            ({"backend": None}, ValueError, "backend: expected one of auto, cpu, cuda, triton, got None"),
        ],
    )
    def test_options(self, options, error, message):
        with pytest.raises(error, match=message):
            pairwise_interactions(self.s, **options)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"scores": torch.zeros(2, 3)}, ValueError, "scores: expected shape"),
            ({"scores": torch.zeros(2, 3, 4, dtype=torch.int32)}, TypeError, "scores: expected dtype"),
            ({"col_scores": torch.zeros(1, 1, 1)}, ValueError, "col_scores: expected the shape"),
            ({"col_scores": torch.zeros(2, 3, 4, dtype=torch.float64)}, TypeError, "col_scores: expected the dtype"),
            ({"col_scores": torch.zeros(2, 3, 4, device="meta")}, ValueError, "col_scores: expected the device"),
            ({"region_lengths": torch.tensor([1.5, 2.7])}, TypeError, "region_lengths: expected dtype"),
            ({"phrase_lengths": torch.tensor([1])}, ValueError, "phrase_lengths: expected shape"),
            ({"p": 0.0}, ValueError, "p: expected None or a probability"),
            ({"p": math.nan}, ValueError, "p: expected None or a probability"),
            ({"game": "chess"}, ValueError, "game: expected 'max-mean' or 'maxsim', got 'chess'"),
            ({"backend": "tpu"}, ValueError, "backend: expected one of"),
            ({"grad": torch.zeros(1)}, ValueError, "grad: expected the shape"),
            ({"grad": torch.zeros(2, 3, 4, dtype=torch.float16)}, TypeError, "grad: expected the dtype"),
        ],
    )
    def test_the_registered_ops_check_their_arguments_too(self, change, error, message):
        arguments = {"scores": self.s, "col_scores": None, "region_lengths": None, "phrase_lengths": None}
        arguments = {**arguments, "p": None, "game": "max-mean", "backend": "auto"}
        arguments = {**arguments, "grad": torch.zeros(2, 3, 4), **change}
        grad = arguments.pop("grad")
        with pytest.raises(error, match=message):
            torch.ops.loupe.pairwise_backward(grad, *arguments.values())
        if "grad" not in change:
            with pytest.raises(error, match=message):
                torch.ops.loupe.pairwise(*arguments.values())

    def test_an_index_that_equals_everything(self):
        with pytest.raises(ValueError, match="index: expected"):
            pairwise_interactions(self.s, index=mock.ANY)

    def test_nested_tensors(self):
        nested = torch.nested.nested_tensor([torch.zeros(2, 3), torch.zeros(1, 3)])
        with pytest.raises(TypeError, match=r"scores: expected a dense \(strided\) tensor, got a nested one"):
            pairwise_interactions(nested)

    def test_many_problems_without_entries_cost_nothing(self):
        assert pairwise_interactions(torch.empty(2**34, 0, 4)).shape == (2**34, 0, 4)

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x in SLOW])  # the CPU kernels have no such limit
    def test_a_line_that_is_too_long(self, backend):
        limit = {"triton": "up to 4096 for backend 'triton'", "emulated-cuda": "for this GPU's shared memory"}[backend]
        with pytest.raises((ValueError, RuntimeError), match=limit):
            pairwise(backend, Pairs("long", random_pairs(1, 1, 40000)))

    def test_backends_that_cannot_serve(self, monkeypatch):
        from loupe_ext.ops import _native

        with pytest.raises(RuntimeError, match="backend: 'cuda' expected"):
            pairwise_interactions(self.s, backend="cuda")
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(RuntimeError, match="backend: 'triton'"):
            pairwise_interactions(self.s, backend="triton")
        monkeypatch.setattr(_native, "has_triton", lambda: False)
        with pytest.raises(RuntimeError, match=r"backend: 'triton' needs triton 3\.2 or newer"):
            pairwise_interactions(self.s, backend="triton")

    def test_lengths_out_of_range_on_an_emulated_gpu_are_nan(self):
        got = pairwise("emulated-cuda", Pairs("", self.s, None, torch.tensor([3, 4])), upstream(self.s))
        for x in got:
            assert x[0].isfinite().all()
            assert x[1].isnan().all()
