"""`maxsim_credit`: a query token's maximum, shared out to the document's tokens."""

import doctest
import itertools
import math
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loupe_ext
from loupe_ext import games, maxsim_credit
from python_ref import brute
from python_ref import maxsim_credit as reference
from tests import backends, emulation
from tests.backends import BACKENDS, LONG, SLOW, TOLERANCE, assert_close, device_of, every_backend, in_turn, selected
from tests.samples import Pairs, random_pairs
from tests.test_pairwise import upstream
from tests.triton_ahead import compiled

FASTEST = f"cpu-{loupe_ext._C.cpu_target()}"


def problems(small: bool = False) -> list[Pairs]:
    """Documents' tokens are the regions, the query's the phrases."""
    lengths = lambda *x: torch.tensor(x)  # noqa: E731
    found = [
        Pairs("1x1", random_pairs(2, 1, 1)),
        Pairs("1x7", random_pairs(2, 1, 7), index="banzhaf", p=0.3),
        Pairs("9x5", random_pairs(5, 9, 5)),
        Pairs("16x16-banzhaf", random_pairs(2, 16, 16), index="banzhaf"),
        Pairs("ragged", random_pairs(4, 13, 9), None, lengths(13, 1, 0, 8), lengths(9, 9, 4, 1)),
        Pairs("ragged-rows", random_pairs(3, 20, 3), None, lengths(2, 20, 3), None, "banzhaf", 0.1),
        Pairs("ragged-columns", random_pairs(3, 5, 18), None, None, lengths(3, 0, 18)),
        Pairs("ties", random_pairs(3, 21, 12).round()),
        Pairs("signed-zeros", random_pairs(2, 6, 6).round() * 0 * torch.tensor([1.0, -1.0] * 3)),
        Pairs("negative", -random_pairs(2, 10, 10).abs(), index="banzhaf", p=0.9),
        Pairs("offset", random_pairs(2, 40, 3) + 100),
        Pairs("not-contiguous", random_pairs(9, 7, 4).transpose(0, 2)),
        Pairs("empty-batch", random_pairs(0, 3, 4)),
        Pairs("no-regions", random_pairs(2, 0, 4)),
        Pairs("no-phrases", random_pairs(2, 3, 0)),
        Pairs("130x3", random_pairs(1, 130, 3)),
    ]
    return (
        found
        if small
        else [
            *found,
            Pairs("49x30", random_pairs(3, 49, 30), None, lengths(49, 20, 33), lengths(30, 30, 17)),
            Pairs("1024x5", random_pairs(1, 1024, 5)),
            Pairs("1030x9", random_pairs(2, 1030, 9), None, lengths(1030, 515), index="banzhaf", p=0.01),
        ]
    )


def expected(problem: Pairs, grad: torch.Tensor | None = None) -> list[torch.Tensor]:
    """The reference's results in float64, from the very numbers of the problem."""
    scores = problem.scores.double().requires_grad_()
    lengths = {"document_lengths": problem.region_lengths, "query_lengths": problem.phrase_lengths}
    out = reference.maxsim_credit(scores, index=problem.index, p=problem.p, **lengths)
    return [out.detach()] + ([] if grad is None else list(torch.autograd.grad(out, scores, grad.double())))


class TestReference:
    @given(
        M=st.integers(1, 6),
        seed=st.integers(0, 10**6),
        tied=st.booleans(),
        p=st.floats(0.02, 0.98),
    )
    @settings(max_examples=20, deadline=None)
    def test_matches_enumeration(self, M, seed, tied, p):
        s = random_pairs(1, M, 2, seed)[0]
        s = s.round() if tied else s
        for index, j in itertools.product(("shapley", "banzhaf"), range(2)):

            def best(inside, j=j):
                return s[:, j].masked_fill(~inside, -torch.inf).amax(-1).masked_fill(~inside.any(-1), 0)

            want = torch.stack([brute.player_value(best, M, i, index, p) for i in range(M)])
            got = reference.maxsim_credit(s, index=index, p=p)[:, j]
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


class TestValues:
    @pytest.mark.parametrize(("backend", "problem", "dtype"), in_turn(problems))
    def test_values_and_gradients_match_the_reference(self, backend, problem, dtype):
        problem = problem.to(dtype)
        grad = upstream(problem.scores)
        results, wanted = backends.maxsim_credit(backend, problem, grad), expected(problem, grad)
        for got, want in zip(results, wanted, strict=True):
            assert got.dtype == dtype
            assert_close(got, want, TOLERANCE[dtype])

    @every_backend
    def test_columns_add_up_to_their_maximum_and_equal_scores_share(self, backend):
        s = random_pairs(3, 12, 5).float()
        s[:, 7] = s[:, 2]
        (credit,) = backends.maxsim_credit(backend, Pairs("", s))
        torch.testing.assert_close(credit.sum(1), s.amax(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(credit[:, 7], credit[:, 2], rtol=0, atol=1e-6)

    @every_backend
    @pytest.mark.parametrize("size", [1e30, 1e-30])
    def test_huge_and_tiny_scores(self, backend, size):
        for dtype in (torch.float64, torch.float32):
            problem = Pairs("", random_pairs(2, 9, 6) * size).to(dtype)
            grad = upstream(problem.scores)
            for got, want in zip(backends.maxsim_credit(backend, problem, grad), expected(problem, grad), strict=True):
                assert_close(got, want, TOLERANCE[dtype])

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x not in SLOW])
    def test_order_that_narrow_keys_hide(self, backend):
        """Scores that are neighbours; close ones beside a giant of either sign; long columns. The gradient shows it."""
        close = random_pairs(1, 300, 9).float()
        close[:, 1::2] = torch.nextafter(close[:, ::2], torch.tensor(torch.inf))
        giant = random_pairs(1, 301, 9).float()
        giant[:, 7, :6] = torch.tensor([1e9, -1e9, 3e38, -3e38, 1e30, -1e30])
        flat, long = torch.full((1, 40, 3), 0.1), random_pairs(1, 1 if backend in backends.GPU else 5000, 2).float()
        for s in (close, giant, flat, long):
            problem, grad = Pairs("", s), upstream(s)
            for got, want in zip(backends.maxsim_credit(backend, problem, grad), expected(problem, grad), strict=True):
                assert_close(got, want, TOLERANCE[s.dtype])

    def test_rows_add_up_to_the_values_of_a_game(self):
        s = random_pairs(1, 6, 4)[0]
        best = lambda masks: torch.where(masks[..., None], s, -torch.inf).amax(1).nan_to_num(neginf=0).sum(1)  # noqa: E731
        for index in ("shapley", "banzhaf"):
            found = loupe_ext.interactions(games.Function(best, 6), index=index)
            torch.testing.assert_close(maxsim_credit(s, index=index).sum(1), found.values)

    def test_one_problem_without_a_batch(self):
        s = random_pairs(1, 5, 4)[0]
        lengths = {"document_lengths": torch.tensor(3), "query_lengths": torch.tensor(2, dtype=torch.int32)}
        got = maxsim_credit(s, index="banzhaf", p=0.3, **lengths)
        assert torch.equal(got[:3, :2], maxsim_credit(s[:3, :2], index="banzhaf", p=0.3))
        assert got.count_nonzero() == 6

    @pytest.mark.parametrize(("shape", "bytes"), [((1, 30, 49), 6000), ((1, 130, 5), 6000), ((1, 1100, 9), 20_000)])
    def test_emulated_cuda_does_not_depend_on_thread_order_or_on_where_its_tile_is(self, shape, bytes):
        s = random_pairs(*shape).float()
        for grad in (None, upstream(s)):
            want = emulation.maxsim_credit(s, None, None, None, grad)
            for environment in ({"EMULATED_ORDER": "reversed"}, {"EMULATED_SHARED_BYTES": str(bytes)}):
                assert torch.equal(emulation.maxsim_credit(s, None, None, None, grad, **environment), want)

    @pytest.mark.parametrize("shape", [*LONG, (1, 1300, 2)])
    def test_emulated_cuda_on_long_lines(self, shape):
        for dtype in (torch.float32, torch.float64):
            problem = Pairs("ties", (random_pairs(*shape) * 8).round() / 8).to(dtype)
            grad = upstream(problem.scores)
            results = backends.maxsim_credit("emulated-cuda", problem, grad)
            for got, want in zip(results, expected(problem, grad), strict=True):
                assert_close(got, want, TOLERANCE[dtype])

    def test_the_docstrings_example(self):
        assert doctest.testmod(sys.modules["loupe_ext.ops.maxsim_credit"]) == (0, 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_same_bits_for_any_thread_count_and_split(dtype):
    B, M, N = 60, 33, 9
    s, threads = random_pairs(B, M, N).to(dtype), torch.get_num_threads()
    rows, grad = torch.arange(B) % (M + 1), upstream(s)
    try:
        for of in (None, rows):
            torch.set_num_threads(1)
            want = backends.maxsim_credit(FASTEST, Pairs("", s, None, of), grad)
            torch.set_num_threads(2)
            cuts = [slice(0, B), slice(0, 1), slice(1, B // 2), slice(B // 2, B)]
            parts = [Pairs("", s[x], None, None if of is None else of[x]) for x in cuts]
            whole, *rest = (backends.maxsim_credit(FASTEST, part, grad[x]) for part, x in zip(parts, cuts, strict=True))
            assert all(torch.equal(x, y) for x, y in zip(want, whole, strict=True))
            joined = [torch.cat(x) for x in zip(*rest, strict=True)]
            assert all(torch.equal(x, y) for x, y in zip(want, joined, strict=True))
    finally:
        torch.set_num_threads(threads)


class TestNotFinite:
    @every_backend
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_stays_in_its_own_problem(self, backend, value):
        clean = random_pairs(3, 5, 6).float()
        dirty = clean.clone()
        dirty[1, 2, 3] = value
        rows, grad = torch.tensor([5, 4, 5]), upstream(clean)
        want, got = (backends.maxsim_credit(backend, Pairs("", s, None, rows), grad) for s in (clean, dirty))
        for x, y in zip(got, want, strict=True):
            assert torch.equal(x[[0, 2]], y[[0, 2]])
            assert x[1, :4].isnan().all()
            assert (x[1, 4:] == 0).all()

    @every_backend
    def test_padding_is_never_read(self, backend):
        s = random_pairs(3, 6, 5).float()
        rows, cols, grad = torch.tensor([6, 2, 0]), torch.tensor([1, 5, 3]), upstream(s)
        want = backends.maxsim_credit(backend, Pairs("", s, None, rows, cols), grad)
        for b in range(3):
            for x in (s, grad):
                x[b, rows[b] :] = math.nan
                x[b, :, cols[b] :] = math.inf
        got = backends.maxsim_credit(backend, Pairs("", s, None, rows, cols), grad)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))

    @every_backend
    def test_a_gradient_that_is_not_finite_stays_in_its_column(self, backend):
        problem = Pairs("", random_pairs(2, 4, 4).float())
        clean = upstream(problem.scores)
        dirty = clean.clone()
        dirty[0, 1, 2] = math.nan
        got, want = (backends.maxsim_credit(backend, problem, x)[1] for x in (dirty, clean))
        assert got[0, :, 2].isnan().any()
        others = torch.tensor([0, 1, 3])
        assert torch.equal(got[..., others], want[..., others])
        assert torch.equal(got[1], want[1])

    def test_lengths_out_of_range_on_an_emulated_gpu_are_nan(self):
        problem = Pairs("", random_pairs(2, 3, 4), None, torch.tensor([3, 4]))
        for x in backends.maxsim_credit("emulated-cuda", problem, upstream(problem.scores)):
            assert x[0].isfinite().all()
            assert x[1].isnan().all()


class TestAutograd:
    @every_backend
    @pytest.mark.parametrize("index", ["shapley", "banzhaf"])
    def test_gradcheck(self, backend, index):
        if backend == "emulated-cuda":
            pytest.skip("the emulator has no autograd; its gradients are compared with the reference's")
        place = device_of(backend)
        lengths = torch.tensor([3, 1], device=place)
        s = random_pairs(2, 3, 2).to(place).requires_grad_()
        with selected(backend) as name:
            options = {"document_lengths": lengths, "index": index, "p": 0.3, "backend": name}
            assert backends.gradcheck(backend, lambda x: maxsim_credit(x, **options), [s])

    @every_backend
    def test_on_a_tie_the_lower_index_is_the_larger(self, backend):
        tied = torch.zeros(1, 5, 3, dtype=torch.float64)
        apart, grad = tied - 1e-9 * torch.arange(5.0).double()[:, None], upstream(tied)
        got, want = (backends.maxsim_credit(backend, Pairs("", x), grad)[1] for x in (tied, apart))
        torch.testing.assert_close(got, want, rtol=0, atol=1e-14)

    def test_double_backward_and_forward_mode_raise(self):
        s = random_pairs(1, 3, 3).requires_grad_()
        (grad,) = torch.autograd.grad(maxsim_credit(s).pow(2).sum(), s, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()
        with pytest.raises(RuntimeError, match="scores: forward-mode differentiation is not supported"):
            torch.func.jvp(maxsim_credit, (s.detach(),), (torch.ones_like(s),))


class TestTorchLibrary:
    @pytest.mark.parametrize(
        "case",
        [
            (random_pairs(2, 3, 4).float(), None, None, None, "auto"),
            (random_pairs(4, 3, 2).transpose(0, 2), torch.tensor([3, 2]).int(), torch.tensor([0, 4]), 0.4, "cpu"),
        ],
    )
    def test_opcheck(self, case):
        scores, *rest = case
        torch.library.opcheck(torch.ops.loupe.maxsim_credit, (scores.clone().requires_grad_(), *rest))
        torch.library.opcheck(torch.ops.loupe.maxsim_credit_backward, (upstream(scores), *case))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile_fullgraph(self, dynamic):
        def step(s, lengths):
            return maxsim_credit(s, document_lengths=lengths, index="banzhaf", p=0.25).square().sum()

        compiled_step = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for B in (2, 3):
            s, lengths = random_pairs(B, 5, 4).requires_grad_(), torch.arange(B) + 2
            want, got = (torch.autograd.grad(f(s, lengths), s)[0] for f in (step, compiled_step))
            assert torch.equal(want, got)

    def test_meta_tensors_have_the_right_shape(self):
        assert maxsim_credit(torch.empty(2, 3, 4, device="meta")).shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("dtype", "shape", "p"),
    [
        (torch.float32, (2, 12, 5), None),
        (torch.float64, (2, 12, 5), 0.3),
    ],
)
def test_just_in_time_kernels_compile_for_a_gpu(dtype, shape, p):
    kernels = pytest.importorskip("loupe_ext.triton.maxsim_credit")
    s = random_pairs(*shape).to(dtype)

    def calls():
        kernels.run(None, s, None, None, p)
        kernels.run(s, s, None, None, p)

    built = compiled(kernels, "_credit_kernel", calls)
    assert len(built) == 2
    assert all(x.asm["cubin"] for x in built)


class TestBadInput:
    s = random_pairs(2, 3, 4).float()

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"scores": [[1.0]]}, TypeError, r"scores: expected a torch.Tensor, got list"),
            ({"scores": torch.zeros(3)}, ValueError, r"scores: expected shape \[B, M, N\] or \[M, N\], got \(3,\)"),
            ({"scores": torch.zeros(2, 2).int()}, TypeError, r"scores: expected dtype float16, .* got torch.int32"),
            ({"scores": torch.empty(2**15, 2**14, device="meta")}, ValueError, r"scores: expected fewer than 2\^28"),
            ({"index": "sii"}, ValueError, "index: expected 'shapley' or 'banzhaf', got 'sii'"),
            ({"p": 0.0}, ValueError, "p: expected a probability strictly between 0 and 1, got 0.0"),
            ({"backend": "gpu"}, ValueError, "backend: expected one of auto, cpu, cuda, triton, got 'gpu'"),
            ({"document_lengths": [1, 2]}, TypeError, "document_lengths: expected a torch.Tensor, got list"),
            (
                {"document_lengths": torch.tensor([1, 9])},
                ValueError,
                r"document_lengths: expected values in 0..3, got 9",
            ),
            ({"query_lengths": torch.tensor([-1, 1])}, ValueError, r"query_lengths: expected values in 0..4, got -1"),
            ({"query_lengths": torch.tensor([1])}, ValueError, r"query_lengths: expected shape \(2,\)"),
        ],
    )
    def test_arguments(self, arguments, error, message):
        with pytest.raises(error, match=message):
            maxsim_credit(**{"scores": self.s, **arguments})

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grad": torch.zeros(2, 4, 3)}, ValueError, r"grad: expected the shape of scores \(2, 3, 4\)"),
            ({"grad": torch.zeros(2, 3, 4).double()}, TypeError, "grad: expected the dtype of scores"),
            ({"scores": torch.zeros(2, 3)}, ValueError, "scores: expected shape"),
            ({"p": 1.5}, ValueError, "p: expected None or a probability"),
        ],
    )
    def test_the_registered_ops_check_their_arguments_too(self, change, error, message):
        arguments = {
            "grad": self.s,
            "scores": self.s,
            "rows": None,
            "cols": None,
            "p": None,
            "backend": "auto",
        } | change
        with pytest.raises(error, match=message):
            torch.ops.loupe.maxsim_credit_backward(*arguments.values())

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x in SLOW])  # the CPU kernels have no such limit
    def test_a_column_that_is_too_long(self, backend):
        limit = {"triton": "up to 4096 for backend 'triton'", "emulated-cuda": "for this GPU's shared memory"}[backend]
        with pytest.raises((ValueError, RuntimeError), match=limit):
            backends.maxsim_credit(backend, Pairs("long", random_pairs(1, 40000, 1)))
