"""Values, and pairs within a side: `shapley_values`, and `pairwise_interactions` with pairs="all"."""

import doctest
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import loupe_ext
from loupe_ext import pairwise_interactions, shapley_values
from python_ref import brute
from python_ref import pairwise as pairwise_reference
from python_ref import sides as reference
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
    sides,
)
from tests.samples import Pairs, pairs_problems, random_pairs
from tests.test_pairwise import upstream
from tests.triton_ahead import compiled

VECTORS = np.load("tests/data/second_order.npz")
CASES = [(game, index) for game in ("max-mean", "maxsim") for index in ("shapley", "banzhaf")]
every_order = pytest.mark.parametrize("order", [1, 2])
every_case = pytest.mark.parametrize(("game", "index"), CASES)
FASTEST = f"cpu-{loupe_ext._C.cpu_target()}"


def vector(t: int, game: str, index: str, order: int) -> tuple[Pairs, torch.Tensor]:
    """A problem of the shared vectors, and what is wanted for all its players: values [1, n] or pairs [1, n, n]."""
    s, c = (torch.from_numpy(VECTORS[f"g{t}_{key}"]) for key in ("s", "s_col"))
    name = {"shapley": "shapley", "banzhaf": "banzhaf0.5"}[index]
    want = torch.from_numpy(VECTORS[f"g{t}_{game.replace('-', '')}_{name}_{order}"])
    return Pairs(f"g{t}", s[None], None if game == "maxsim" else c[None], index=index, game=game), want[None]


def together(of_sides: list[torch.Tensor], cross: torch.Tensor) -> torch.Tensor:
    """Values of all players, or the pairs of all of them from those within the sides and across."""
    regions, phrases = of_sides
    if regions.dim() == 2:
        return torch.cat([regions, phrases], 1)
    return torch.cat([torch.cat([regions, cross], 2), torch.cat([cross.mT, phrases], 2)], 1)


def expected(problem: Pairs, order: int, grads: tuple[torch.Tensor, ...] | None = None) -> list[torch.Tensor]:
    """The reference's results in float64, from the very numbers of the problem."""
    inputs = [x.double().requires_grad_() for x in (problem.scores, problem.col_scores) if x is not None]
    out = reference.sides(*inputs, order=order, **problem.options)
    wide = None if grads is None else [x.double() for x in grads]
    return [x.detach() for x in out] + ([] if wide is None else list(torch.autograd.grad(out, inputs, wide)))


def upstreams(problem: Pairs, order: int) -> tuple[torch.Tensor, ...]:
    B, M, N = problem.scores.shape
    return tuple(upstream(problem.scores.new_empty((B, n) if order == 1 else (B, n, n))) for n in (M, N))


def assert_all_close(got: list[torch.Tensor], want: list[torch.Tensor], tolerance: float) -> None:
    """Relative to the largest number of both sides together."""
    assert len(got) == len(want)
    for first in range(0, len(want), 2):
        pair = list(zip(got[first : first + 2], want[first : first + 2], strict=True))
        assert all(x.shape == y.shape for x, y in pair)
        assert_close(*(torch.cat([x.flatten() for x in side]) for side in zip(*pair, strict=True)), tolerance)


def score(problem: Pairs) -> torch.Tensor:
    """The value of all players together, [B]."""
    cols = problem.scores if problem.col_scores is None else problem.col_scores
    values = []
    for b, (s, c) in enumerate(zip(problem.scores, cols, strict=True)):
        M = s.shape[0] if problem.region_lengths is None else int(problem.region_lengths[b])
        N = s.shape[1] if problem.phrase_lengths is None else int(problem.phrase_lengths[b])
        s, c = s[:M, :N], c[:M, :N]
        if M * N == 0:
            values.append(s.sum())
        elif problem.game == "maxsim":
            values.append(s.amax(0).sum())
        else:
            values.append((s.amax(1).mean() + c.amax(0).mean()) / 2)
    return torch.stack(values)


class TestReference:
    @every_case
    @every_order
    @pytest.mark.parametrize("t", range(7))
    def test_matches_the_shared_vectors(self, t, game, index, order):
        problem, want = vector(t, game, index, order)
        cross = pairwise_reference.pairwise_interactions(problem.scores, problem.col_scores, **problem.options)
        assert_close(together(expected(problem, order), cross), want, 1e-12)

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
        for game, index in CASES:
            cols = None if game == "maxsim" else c
            options = {"game": game, "index": index, "p": p}
            values = reference.sides(s[None], None if cols is None else cols[None], order=1, **options)
            for got, want in zip(values, brute.shapley_values(s, cols, **options), strict=True):
                torch.testing.assert_close(got[0], want, rtol=1e-11, atol=1e-12)
            want = brute.pairwise_interactions(s, cols, pairs="all", **options)
            regions, phrases = reference.sides(s[None], None if cols is None else cols[None], order=2, **options)
            torch.testing.assert_close(regions[0], want[:M, :M], rtol=1e-11, atol=1e-12)
            torch.testing.assert_close(phrases[0], want[M:, M:], rtol=1e-11, atol=1e-12)
            cross = pairwise_reference.pairwise_interactions(s, cols, **options)
            torch.testing.assert_close(cross, want[:M, M:], rtol=1e-11, atol=1e-12)


class TestValues:
    @every_backend
    @every_order
    def test_matches_the_shared_vectors(self, backend, order):
        for t in few(backend, range(7)):
            for game, index in CASES:
                problem, want = vector(t, game, index, order)
                assert_close(together(sides(backend, problem, order), *pairwise(backend, problem)), want, 1e-12)

    @pytest.mark.parametrize(
        ("order", "backend", "problem", "dtype"),
        [
            pytest.param(order, *x.values, id=f"{order}-{x.id}")
            for order in (1, 2)
            for x in in_turn(pairs_problems, start=order)
        ],
    )
    def test_values_and_gradients_match_the_reference(self, backend, problem, order, dtype):
        problem = problem.to(dtype)
        grads = upstreams(problem, order)
        results = sides(backend, problem, order, grads)
        assert all(x.dtype == dtype for x in results)
        wanted = expected(problem, order, grads)
        assert_all_close(results[:2], wanted[:2], TOLERANCE[dtype])
        assert_all_close(results[2:], wanted[2:], TOLERANCE[dtype])

    @every_backend
    def test_shapley_values_add_up_to_the_score(self, backend):
        for problem in few(backend, pairs_problems(small=backend in SLOW)):
            if problem.index == "shapley" and problem.scores.numel():
                regions, phrases = sides(backend, problem, 1)
                assert_close(regions.sum(1) + phrases.sum(1), score(problem), 1e-12)

    @every_backend
    @every_order
    @pytest.mark.parametrize("size", [1e30, 1e-30])
    def test_huge_and_tiny_scores(self, backend, order, size):
        for dtype in (torch.float64, torch.float32):
            for game in ("max-mean", "maxsim"):
                problem = Pairs("scaled", random_pairs(2, 6, 9) * size, game=game).to(dtype)
                grads = upstreams(problem, order)
                results, wanted = sides(backend, problem, order, grads), expected(problem, order, grads)
                assert_all_close(results[:2], wanted[:2], TOLERANCE[dtype])
                assert_all_close(results[2:], wanted[2:], TOLERANCE[dtype])

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x not in SLOW])
    @every_order
    @pytest.mark.parametrize("shape", [(1, 2000, 3), (1, 3, 2000)])
    def test_rounding_hardly_grows_with_the_number_of_lines(self, backend, order, shape):
        """Equal terms in equal order are the worst case for a running sum."""
        problem = Pairs("long", torch.full(shape, 0.1, dtype=torch.float64)).to(torch.float32)
        grads = tuple(torch.full_like(x, 0.1) for x in upstreams(problem, order))
        results, wanted = sides(backend, problem, order, grads), expected(problem, order, grads)
        assert_all_close(results[:2], wanted[:2], 2e-6)
        assert_all_close(results[2:], wanted[2:], 2e-6)

    @pytest.mark.parametrize("shape", [(1, 30, 49), (1, 64, 40), (2, 70, 6), (1, 5, 130)])
    @every_order
    def test_emulated_cuda_does_not_depend_on_thread_order_or_on_where_its_tile_is(self, shape, order):
        from tests import emulation

        s, c = random_pairs(*shape).float(), random_pairs(*shape, 1).float()
        problem = Pairs("", s, c)
        for grads in (None, upstreams(problem, order)):
            arguments = (s, c, None, None, None, "max-mean", order, grads)
            want = emulation.sides(*arguments)
            exact = expected(problem, order, grads)
            assert_all_close(want, exact[:2] if grads is None else exact[2:], 1e-5)
            for environment in ({"EMULATED_ORDER": "reversed"}, {"EMULATED_SHARED_BYTES": "24000"}):
                again = emulation.sides(*arguments, **environment)
                if max(shape) > 64 or "EMULATED_ORDER" in environment:
                    assert all(torch.equal(x, y) for x, y in zip(want, again, strict=True))
                else:  # a GPU without room for them has another kernel for short lines
                    assert_all_close(again, want, 1e-5)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(9, 12, 3), (5, 16, 16), (2, 46, 30), (1, 55, 64)])
    @pytest.mark.parametrize("game", ["max-mean", "maxsim"])
    @every_order
    def test_emulated_cuda_on_lines_of_one_thread(self, shape, dtype, game, order):
        """Problems that share a block: full or ragged, with ties, anywhere in it and its threads in any order."""
        from tests import emulation

        B, M, N = shape
        s = (random_pairs(*shape) * 3).round().to(dtype) / 4
        lengths = torch.arange(B) * 5 % (M + 1), (torch.arange(B) * 3 + 1) % (N + 1)
        for rows, cols in ((None, None), lengths):
            problem = Pairs("", s, None, rows, cols, game=game)
            for grads in (None, upstreams(problem, order)):
                call = lambda part, grads=grads, rows=rows, cols=cols, **kw: emulation.sides(  # noqa: E731
                    s[part],
                    None,
                    *(x if x is None else x[part] for x in (rows, cols)),
                    None,
                    game,
                    order,
                    None if grads is None else tuple(x[part] for x in grads),
                    **kw,
                )
                got = call(slice(None))
                exact = expected(problem, order, grads)
                assert_all_close(got, exact[:2] if grads is None else exact[2:], TOLERANCE[dtype])
                assert all(map(torch.equal, got, call(slice(None), EMULATED_ORDER="reversed")))
                parts = [call(part) for part in (slice(0, 1), slice(1, B)) if len(s[part])]
                assert all(map(torch.equal, got, map(torch.cat, zip(*parts, strict=True))))

    @pytest.mark.parametrize("shape", [(80, 12, 3), (32, 16, 16), (8, 32, 32), (8, 49, 30), (4, 64, 64)])
    def test_lines_of_one_thread_seldom_wait_for_a_bank(self, shape):
        """Cycles of shared memory per 32 scores: values, then pairs; forward, then backward."""
        from tests import emulation

        s = random_pairs(*shape).float()
        for order, backward, most in ((1, False, 25), (1, True, 40), (2, False, 120), (2, True, 120)):
            grads = upstreams(Pairs("", s), order) if backward else None
            accesses, cycles = emulation.banks(emulation.sides, s, None, None, None, None, "max-mean", order, grads)
            assert accesses <= cycles <= min(2 * accesses, most * s.numel() / 32)

    @pytest.mark.parametrize("shape", LONG)
    def test_emulated_cuda_on_long_lines(self, shape):
        for dtype in (torch.float32, torch.float64):
            problem = Pairs("ties", (random_pairs(*shape) * 8).round() / 8).to(dtype)
            grads = upstreams(problem, 1)
            results, wanted = sides("emulated-cuda", problem, 1, grads), expected(problem, 1, grads)
            assert_all_close(results[:2], wanted[:2], TOLERANCE[dtype])
            assert_all_close(results[2:], wanted[2:], TOLERANCE[dtype])

    def test_the_docstrings_example(self):
        assert doctest.testmod(sys.modules["loupe_ext.ops.sides"]) == (0, 2)


class TestPublicFunctions:
    problems = tuple(x for x in pairs_problems() if max(x.scores.shape[1:]) < 200)

    @pytest.mark.parametrize("problem", problems, ids=str)
    def test_all_pairs_are_the_cross_pairs_and_both_sides(self, problem):
        with selected(FASTEST):
            got = pairwise_interactions(problem.scores, problem.col_scores, pairs="all", **problem.options)
        B, M, N = problem.scores.shape
        (cross,), (regions, phrases) = pairwise(FASTEST, problem), sides(FASTEST, problem, 2)
        assert got.shape == (B, M + N, M + N)
        assert torch.equal(got, got.mT)
        assert torch.equal(got[:, :M, M:], cross)
        assert torch.equal(got[:, :M, :M], regions)
        assert torch.equal(got[:, M:, M:], phrases)
        assert (got.diagonal(dim1=1, dim2=2) == 0).all()

    @pytest.mark.parametrize("problem", problems, ids=str)
    def test_shapley_values_are_order_one(self, problem):
        got = shapley_values(problem.scores, problem.col_scores, **problem.options)
        assert all(torch.equal(x, y) for x, y in zip(got, sides(FASTEST, problem, 1), strict=True))

    @every_case
    def test_one_problem_without_a_batch(self, game, index):
        s = random_pairs(1, 5, 4)[0]
        lengths = {"region_lengths": torch.tensor(3), "phrase_lengths": torch.tensor(2, dtype=torch.int32)}
        options = {"game": game, "index": index, "p": 0.3}
        regions, phrases = shapley_values(s, **lengths, **options)
        want = shapley_values(s[:3, :2], **options)
        assert torch.equal(regions, torch.cat([want[0], torch.zeros(2).double()]))
        assert torch.equal(phrases, torch.cat([want[1], torch.zeros(2).double()]))
        got = pairwise_interactions(s, pairs="all", **lengths, **options)
        players = torch.tensor([0, 1, 2, 5, 6])
        assert torch.equal(got[players][:, players], pairwise_interactions(s[:3, :2], pairs="all", **options))
        got[players[:, None], players] = 0
        assert (got == 0).all()

    def test_maxsim_has_no_pairs_of_phrases(self):
        got = pairwise_interactions(random_pairs(3, 6, 5), game="maxsim", pairs="all")
        assert (got[:, 6:, 6:] == 0).all()
        assert (got[:, :6, :6] != 0).sum() == 3 * 6 * 5

    def test_players_without_a_partner_are_worth_nothing(self):
        for shape in ((2, 3, 0), (2, 0, 4)):
            s = torch.empty(shape)
            assert all((x == 0).all() for x in shapley_values(s))
            got = pairwise_interactions(s, pairs="all")
            assert got.shape == (2, sum(shape[1:]), sum(shape[1:]))
            assert (got == 0).all()


class TestBits:
    """The same bits whatever the thread count and the batch split."""

    @every_order
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("shape", [(700, 6, 9), (9, 49, 30)])
    @pytest.mark.parametrize("game", ["max-mean", "maxsim"])
    def test_threads_and_splits(self, shape, order, dtype, game):
        B, M, _ = shape
        cols = None if game == "maxsim" else random_pairs(*shape, 1)
        plain = Pairs("plain", random_pairs(*shape), cols, game=game).to(dtype)
        ragged = Pairs("ragged", plain.scores, plain.col_scores, torch.arange(B) % (M + 1), game=game)
        threads = torch.get_num_threads()
        try:
            for case in (plain, ragged):
                grads = upstreams(case, order)
                torch.set_num_threads(1)
                want = sides(FASTEST, case, order, grads)
                torch.set_num_threads(2)
                again = sides(FASTEST, case, order, grads)
                assert all(torch.equal(x, y) for x, y in zip(want, again, strict=True))
                parts = []
                for a, b in ((0, 1), (1, B // 2), (B // 2, B)):
                    cut = [None if x is None else x[a:b] for x in (case.scores, case.col_scores, case.region_lengths)]
                    parts.append(sides(FASTEST, Pairs("part", *cut, game=game), order, tuple(x[a:b] for x in grads)))
                joined = [torch.cat(x) for x in zip(*parts, strict=True)]
                assert all(torch.equal(x, y) for x, y in zip(want, joined, strict=True))
        finally:
            torch.set_num_threads(threads)


class TestNotFinite:
    @every_backend
    @every_order
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_stays_in_its_own_problem(self, backend, order, value):
        for game in ("max-mean", "maxsim"):
            clean = random_pairs(4, 5, 6).float()
            dirty = clean.clone()
            dirty[1, 2, 3] = value
            lengths = torch.tensor([5, 4, 5, 5])
            problem = Pairs("clean", clean, None, lengths, game=game)
            grads = upstreams(problem, order)
            want = sides(backend, problem, order, grads)
            got = sides(backend, Pairs("dirty", dirty, None, lengths, game=game), order, grads)
            for x, y in zip(got, want, strict=True):
                assert torch.equal(x[[0, 2, 3]], y[[0, 2, 3]])
            regions, phrases, scores = (x[1] for x in got)
            inside = regions[:4] if order == 1 else regions[:4, :4]
            assert inside.isnan().all()
            assert phrases.isnan().all()
            assert scores[:4].isnan().all()
            assert (regions[4:] == 0).all()
            assert (scores[4:] == 0).all()

    @every_backend
    @every_order
    def test_lines_full_of_it_keep_to_their_memory(self, backend, order):
        s = random_pairs(1, 9, 9).float()
        s[random_pairs(1, 9, 9, 1) < 0] = math.nan  # no order: a network would lose keys, and take padding for an entry
        problem = Pairs("dirty", s)
        for x in sides(backend, problem, order, upstreams(problem, order)):
            assert x.isnan().all()

    @every_backend
    @every_order
    def test_padding_is_never_read(self, backend, order):
        s = random_pairs(3, 6, 5).float()
        rows, cols = torch.tensor([6, 2, 0]), torch.tensor([1, 5, 3])
        grads = upstreams(Pairs("", s), order)
        want = sides(backend, Pairs("clean", s, None, rows, cols), order, grads)
        for b in range(3):
            s[b, rows[b] :] = math.nan
            s[b, :, cols[b] :] = math.inf
            for grad, n in zip(grads, (rows[b], cols[b]), strict=True):
                grad[b, n:] = math.nan
                if order == 2:
                    grad[b, :, n:] = math.nan
        got = sides(backend, Pairs("padded", s, None, rows, cols), order, grads)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))

    @every_backend
    @every_order
    def test_gradient_that_is_not_finite(self, backend, order):
        s = random_pairs(2, 4, 4).float()
        clean = upstreams(Pairs("", s), order)
        dirty = tuple(x.clone() for x in clean)
        dirty[0].view(2, -1)[0, 1] = math.nan
        got, want = (sides(backend, Pairs("", s), order, x)[2] for x in (dirty, clean))
        assert got[0].isnan().any()
        assert torch.equal(got[1], want[1])

    @every_order
    def test_lengths_out_of_range_on_an_emulated_gpu_are_nan(self, order):
        problem = Pairs("", random_pairs(2, 3, 4), None, torch.tensor([3, 4]))
        for x in sides("emulated-cuda", problem, order, upstreams(problem, order)):
            assert x[0].isfinite().all()
            assert x[1].isnan().all()


class TestAutograd:
    @every_backend
    @every_case
    def test_gradcheck(self, backend, game, index):
        if backend == "emulated-cuda":
            pytest.skip("the emulator has no autograd; its gradients are compared with the reference's")
        shape = (2, 2, 3) if backend in SLOW else (2, 3, 4)
        place, seeds = device_of(backend), range(1 if game == "maxsim" else 2)
        inputs = [random_pairs(*shape, seed).to(place).requires_grad_() for seed in seeds]
        lengths = torch.tensor([shape[1], 1], device=place)
        options = {"region_lengths": lengths, "game": game, "index": index, "p": 0.3}
        with selected(backend) as name:
            values = lambda *x: shapley_values(*x, backend=name, **options)  # noqa: E731
            every_pair = lambda *x: pairwise_interactions(*x, pairs="all", backend=name, **options)  # noqa: E731
            for function in (values, every_pair):
                assert gradcheck(backend, function, inputs)

    @every_backend
    @every_order
    def test_on_a_tie_the_lower_index_is_the_larger(self, backend, order):
        for game in ("max-mean", "maxsim"):
            tied = torch.zeros(1, 3, 4, dtype=torch.float64)
            ranks = torch.arange(3, dtype=torch.float64)[:, None] + torch.arange(4, dtype=torch.float64)
            grads = upstreams(Pairs("", tied), order)
            got, want = (sides(backend, Pairs("", x, game=game), order, grads)[2] for x in (tied, tied - 1e-9 * ranks))
            torch.testing.assert_close(got, want, rtol=0, atol=1e-14)

    def test_one_result_alone(self):
        s = random_pairs(2, 3, 4).requires_grad_()
        regions, phrases = shapley_values(s)
        both = torch.autograd.grad([regions.sum(), phrases.sum()], s, retain_graph=True)[0]
        alone = [torch.autograd.grad(x.sum(), s, retain_graph=True)[0] for x in (regions, phrases)]
        torch.testing.assert_close(both, alone[0] + alone[1], rtol=0, atol=1e-15)

    def test_double_backward_raises(self):
        s = random_pairs(1, 3, 3).requires_grad_()
        (grad,) = torch.autograd.grad(shapley_values(s)[0].pow(2).sum(), s, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()

    def test_forward_mode_raises(self):
        s = random_pairs(2, 3, 3)
        with pytest.raises(RuntimeError, match="scores: forward-mode differentiation is not supported"):
            torch.func.jvp(shapley_values, (s,), (torch.ones_like(s),))


class TestTorchLibrary:
    cases = (
        (random_pairs(2, 3, 4).float(), None, None, None, None, "max-mean", 1, "auto"),
        (
            *random_pairs(2, 2, 12).view(2, 2, 3, 4),
            torch.tensor([3, 1]),
            torch.tensor([0, 4]),
            0.4,
            "max-mean",
            2,
            "cpu",
        ),
        (random_pairs(4, 3, 2).transpose(0, 2), None, torch.tensor([3, 2]).int(), None, None, "maxsim", 2, "auto"),
    )

    @pytest.mark.parametrize("case", cases)
    def test_opcheck(self, case):
        scores, cols, *rest = case
        tensors = [None if x is None else x.clone().requires_grad_() for x in (scores, cols)]
        torch.library.opcheck(torch.ops.loupe.sides, (*tensors, *rest))
        grads = upstreams(Pairs("", scores), rest[4])
        torch.library.opcheck(torch.ops.loupe.sides_backward, (*grads, scores, cols, *rest))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile_fullgraph(self, dynamic):
        def step(s, c, lengths):
            options = {"region_lengths": lengths, "index": "banzhaf", "p": 0.25}
            values, pairs = shapley_values(s, c, **options), pairwise_interactions(s, c, pairs="all", **options)
            return sum((x * x).sum() for x in (*values, pairs))

        compiled_step = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for B in (2, 3):
            inputs = [random_pairs(B, 5, 4, seed).requires_grad_() for seed in (0, 1)]
            lengths = torch.arange(B) + 2
            want, got = (torch.autograd.grad(f(*inputs, lengths), inputs) for f in (step, compiled_step))
            assert all(torch.equal(x, y) for x, y in zip(want, got, strict=True))

    def test_meta_tensors_have_the_right_shape(self):
        s = torch.empty(2, 3, 4, device="meta")
        assert [x.shape for x in shapley_values(s)] == [(2, 3), (2, 4)]
        assert pairwise_interactions(s, pairs="all").shape == (2, 7, 7)


@pytest.mark.parametrize(
    ("dtype", "shape", "p", "game"),  # fewer than all, as in tests/test_pairwise.py
    [
        (torch.float32, (2, 5, 40), None, "max-mean"),
        (torch.float64, (2, 5, 40), 0.3, "maxsim"),
        (torch.float16, (2, 12, 12), 0.3, "max-mean"),
        (torch.bfloat16, (2, 12, 12), None, "maxsim"),
    ],
)
@every_order
def test_just_in_time_kernels_compile_for_a_gpu(order, dtype, shape, p, game):
    kernels = pytest.importorskip("loupe_ext.triton.sides")
    s = random_pairs(*shape).to(dtype)
    grads = upstreams(Pairs("", s), order)

    def calls():
        kernels.forward(s, None, None, None, p, game, order)
        kernels.backward(grads, s, None, None, None, p, game, order)

    names = ["_sums_kernel", "_grads_kernel"] + (["_minima_kernel", "_lower_kernel"] if order == 2 else [])
    for name in names:
        others = [x for x in names if x != name]
        built = compiled(kernels, name, calls, others=others)
        assert built
        assert all(x.asm["cubin"] for x in built)


class TestBadInput:
    s = random_pairs(2, 3, 4).float()

    @pytest.mark.parametrize("function", [shapley_values, pairwise_interactions])
    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            ({"scores": [[1.0]]}, TypeError, r"scores: expected a torch.Tensor, got list"),
            ({"scores": torch.zeros(3)}, ValueError, r"scores: expected shape \[B, M, N\] or \[M, N\], got \(3,\)"),
            ({"scores": torch.zeros(2, 2).int()}, TypeError, r"scores: expected dtype float16, .* got torch.int32"),
            (
                {"col_scores": s[:1]},
                ValueError,
                r"col_scores: expected the shape of scores \(2, 3, 4\), got \(1, 3, 4\)",
            ),
            ({"col_scores": s.double()}, TypeError, r"col_scores: expected the dtype of scores"),
            ({"col_scores": s, "game": "maxsim"}, ValueError, r"col_scores: expected None for game 'maxsim'"),
            ({"game": "max-sim"}, ValueError, "game: expected 'max-mean' or 'maxsim', got 'max-sim'"),
            ({"game": None}, ValueError, "game: expected 'max-mean' or 'maxsim', got None"),
            ({"index": "sii"}, ValueError, "index: expected 'shapley' or 'banzhaf', got 'sii'"),
            ({"p": 0.0}, ValueError, "p: expected a probability strictly between 0 and 1, got 0.0"),
            ({"backend": "gpu"}, ValueError, "backend: expected one of auto, cpu, cuda, triton, got 'gpu'"),
            ({"region_lengths": [1, 2]}, TypeError, "region_lengths: expected a torch.Tensor, got list"),
            ({"region_lengths": torch.tensor([1, 9])}, ValueError, r"region_lengths: expected values in 0..3, got 9"),
            ({"phrase_lengths": torch.tensor([-1, 1])}, ValueError, r"phrase_lengths: expected values in 0..4, got -1"),
            ({"phrase_lengths": torch.tensor([1])}, ValueError, r"phrase_lengths: expected shape \(2,\)"),
        ],
    )
    def test_arguments(self, function, arguments, error, message):
        more = {"pairs": "all"} if function is pairwise_interactions else {}
        with pytest.raises(error, match=message):
            function(**{"scores": self.s, **arguments, **more})

    def test_too_many_entries(self):
        for shape in ((2**15, 2**14), (1, 2**25)):
            with pytest.raises(ValueError, match=r"scores: expected fewer than 2\^28 entries"):
                shapley_values(torch.empty(shape, device="meta"))

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"order": 3}, ValueError, r"order: expected 1 \(values\) or 2 \(pairs\), got 3"),
            ({"game": "chess"}, ValueError, "game: expected 'max-mean' or 'maxsim', got 'chess'"),
            ({"p": 1.5}, ValueError, "p: expected None or a probability"),
            ({"scores": torch.zeros(2, 3)}, ValueError, "scores: expected shape"),
            (
                {"grad_regions": torch.zeros(2, 4)},
                ValueError,
                r"grad_regions: expected the shape of .* \(2, 3\), got \(2, 4\)",
            ),
            ({"grad_phrases": torch.zeros(2, 4).double()}, TypeError, "grad_phrases: expected the dtype of"),
        ],
    )
    def test_the_registered_ops_check_their_arguments_too(self, change, error, message):
        grads = {"grad_regions": torch.zeros(2, 3), "grad_phrases": torch.zeros(2, 4)}
        arguments = {"scores": self.s, "col_scores": None, "region_lengths": None, "phrase_lengths": None, "p": None}
        arguments = {**grads, **arguments, "game": "max-mean", "order": 1, "backend": "auto", **change}
        with pytest.raises(error, match=message):
            torch.ops.loupe.sides_backward(*arguments.values())
        if not change.keys() & grads.keys():
            with pytest.raises(error, match=message):
                torch.ops.loupe.sides(*list(arguments.values())[2:])

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x in SLOW])  # the CPU kernels have no such limit
    def test_a_line_that_is_too_long(self, backend):
        limit = {"triton": "up to 4096 for backend 'triton'", "emulated-cuda": "for this GPU's shared memory"}[backend]
        with pytest.raises((ValueError, RuntimeError), match=limit):
            sides(backend, Pairs("long", random_pairs(1, 1, 40000)), 1)
