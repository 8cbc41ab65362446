import doctest
import itertools
import math
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch

import loupe_ext
from loupe_ext import coalition_moments, pack_coalitions, unpack_coalitions
from python_ref import moments as reference
from tests import emulation
from tests.backends import BACKENDS, SLOW, assert_close, device_of, every_backend, gradcheck, in_turn, selected
from tests.samples import random_coalitions
from tests.triton_ahead import compiled

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
CASES = {  # channels, coalitions, players, offsets
    "one-player": (1, 5, 1, None),
    "one-coalition": (1, 1, 63, None),
    "no-coalitions": (2, 0, 5, None),
    "no-coalitions-in-two-groups": (2, 0, 5, (0, 0, 0)),
    "no-groups": (2, 0, 4, (0,)),
    "no-channels": (0, 9, 4, None),
    "63-players": (2, 33, 63, (0, 0, 10, 10, 33)),
    "64-players": (1, 17, 64, None),
    "65-players": (3, 40, 65, (0, 40)),
    "several-parts": (1, 1100, 6, None),
}
LARGE = {
    "7-players": (1, 13, 7, (0, 2, 13)),
    "200-players": (2, 150, 200, (0, 1, 1, 3, 150)),
    "several-blocks": (2, 5000, 20, (0, 5, 2040, 2060, 5000, 5000)),
    "129-players": (1, 300, 129, None),
    "many-groups": (2, 400, 30, tuple(range(0, 401, 4))),
}
# On a GPU, with every tile in turn split and not.
SMALL = {"70-players": (2, 20, 70, (0, 3, 3, 20)), "parts-of-groups": (1, 1100, 3, (0, 7, 1100))}


def inputs(case: tuple, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, int, torch.Tensor | None]:
    C, S, n, offsets = case
    values = torch.randn(C, S, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return random_coalitions(S, n), values.to(dtype), n, None if offsets is None else torch.tensor(offsets)


def upstream(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Not symmetric."""
    return torch.cos(torch.arange(math.prod(shape), dtype=torch.float64)).view(shape).to(dtype)


def moments(backend, coalitions, values, n, offsets=None, grad=None) -> list[torch.Tensor]:
    """The moments of values [C, S] and, with `grad`, the gradient of the values."""
    if backend == "emulated-cuda":
        out = emulation.moments(coalitions, values, n, offsets)
        out = out.squeeze(1) if offsets is None else out
        return [out] if grad is None else [out, emulation.moments(coalitions, values, n, offsets, grad)]
    device = device_of(backend)
    leaf = values.to(device).detach().requires_grad_(grad is not None)
    with selected(backend) as name:
        out = coalition_moments(coalitions.to(device), leaf, n, offsets=offsets, backend=name)
        results = [out.detach()]
        if grad is not None:
            results += torch.autograd.grad(out, leaf, grad.to(device))
    return [x.cpu() for x in results]


def expected(coalitions, values, n, offsets=None, grad=None) -> list[torch.Tensor]:
    """The reference's results in float64, from the very numbers given."""
    leaf = values.double().requires_grad_()
    out = reference.coalition_moments(coalitions, leaf, n, offsets=offsets)
    return [out.detach()] + ([] if grad is None else list(torch.autograd.grad(out, leaf, grad.double())))


class TestReference:
    def test_is_the_sum_over_coalitions(self):
        for name in ("63-players", "65-players", "7-players"):
            coalitions, values, n, offsets = inputs({**CASES, **LARGE}[name], torch.float64)
            want = torch.zeros(len(values), len(offsets) - 1, n, n, dtype=torch.float64)
            for g in range(len(offsets) - 1):
                for k in range(offsets[g], offsets[g + 1]):
                    row = [int(x) % 2**64 for x in coalitions[k]]
                    held = [i for i in range(n) if row[i // 64] >> (i % 64) & 1]
                    for c, i, j in itertools.product(range(len(values)), held, held):
                        want[c, g, i, j] += values[c, k]
            assert_close(reference.coalition_moments(coalitions, values, n, offsets=offsets), want, 1e-14)

    def test_every_pair_interaction_is_a_few_sums_over_it(self):
        n = 5
        masks = torch.tensor(list(itertools.product([False, True], repeat=n)))
        game = torch.randn(2**n, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        value = dict(zip((frozenset(x.nonzero().flatten().tolist()) for x in masks), game.tolist(), strict=True))
        m = coalition_moments(pack_coalitions(masks), game, n)
        own = m.diagonal()
        got = (game.sum() - 2 * (own[:, None] + own) + 4 * m) / 2 ** (n - 2)
        for i, j in itertools.combinations(range(n), 2):
            others = [t for t in value if not t & {i, j}]
            gains = [value[t | {i, j}] - value[t | {i}] - value[t | {j}] + value[t] for t in others]
            assert got[i, j].item() == pytest.approx(sum(gains) / len(gains), abs=1e-12)


class TestValues:
    @pytest.mark.parametrize(
        ("backend", "case", "dtype"), in_turn(lambda small: [*CASES, *([] if small else LARGE), *SMALL])
    )
    def test_values_and_gradients_match_the_reference(self, backend, case, dtype):
        arguments = inputs({**CASES, **LARGE, **SMALL}[case], dtype)
        want = expected(*arguments)
        grad = upstream(want[0].shape, dtype)
        want = expected(*arguments, grad)
        got = moments(backend, *arguments, grad)
        for x, y in zip(got, want, strict=True):
            assert x.dtype == dtype
            assert_close(x, y, TOLERANCE[dtype])
        assert torch.equal(got[0], got[0].mT)

    def test_shapes(self):
        coalitions, values, n, offsets = inputs(CASES["63-players"], torch.float32)
        whole = coalition_moments(coalitions, values, n, offsets=offsets)
        assert whole.shape == (2, 4, n, n)
        assert torch.equal(coalition_moments(coalitions, values[1], n, offsets=offsets), whole[1])
        one = coalition_moments(coalitions, values[0], n)
        assert one.shape == (n, n)
        assert torch.equal(one, coalition_moments(coalitions, values, n)[0])
        assert coalition_moments(coalitions, values[0], n, offsets=torch.tensor([0, 33])).shape == (1, n, n)

    @every_backend
    def test_bits_beyond_the_players_are_ignored(self, backend):
        for n in (1, 7, 40, 65):
            dirty, values = random_coalitions(30, n), torch.randn(1, 30)
            clean = pack_coalitions(unpack_coalitions(dirty, n))
            assert not torch.equal(dirty, clean)
            grad = upstream(torch.Size((1, n, n)), torch.float32)
            for x, y in zip(
                moments(backend, dirty, values, n, None, grad),
                moments(backend, clean, values, n, None, grad),
                strict=True,
            ):
                assert torch.equal(x, y)

    @pytest.mark.parametrize("backend", [x for x in BACKENDS if x not in SLOW])
    def test_the_largest_game(self, backend):
        arguments = inputs((1, 40, 1024, None), torch.float64)
        grad = upstream(torch.Size((1, 1024, 1024)), torch.float64)
        for x, y in zip(moments(backend, *arguments, grad), expected(*arguments, grad), strict=True):
            assert_close(x, y, 1e-13)

    def test_inputs_that_are_not_contiguous(self):
        coalitions, values, n, offsets = inputs(CASES["65-players"], torch.float64)
        wide = torch.stack([coalitions, coalitions.flip(0)], 1).transpose(0, 1)[0].t().contiguous().t()
        spread = values.t().contiguous().t()
        bounds = torch.stack([offsets, -offsets], 1)[:, 0]
        assert not any(x.is_contiguous() for x in (wide, spread, bounds))
        leaf = spread.clone(memory_format=torch.preserve_format).requires_grad_()
        out = coalition_moments(wide, leaf, n, offsets=bounds)
        assert torch.equal(out, coalition_moments(coalitions, values, n, offsets=offsets))
        grad = torch.ones(1, 1, n, n, dtype=torch.float64).expand_as(out)
        size = unpack_coalitions(coalitions, n).sum(-1).double()
        torch.testing.assert_close(torch.autograd.grad(out, leaf, grad)[0], (size * size).expand_as(leaf))

    def test_the_docstrings_example(self):
        assert doctest.testmod(sys.modules["loupe_ext.ops.moments"]) == (0, 3)


class TestPrecision:
    """Float32 sums of very many values, which lose digits when they are added one after another."""

    @every_backend
    @pytest.mark.parametrize("kind", ["constant", "one-large-in-128", "signs"])
    def test_many_coalitions(self, backend, kind, monkeypatch):
        if backend == "triton":  # in one part, so that it is long
            monkeypatch.setattr("loupe_ext.triton.moments.LEAST", 2**30)
        S = {"triton": 6_000, "emulated-cuda": 20_000}[backend] if backend in SLOW else 1_000_000
        values = {
            "constant": torch.full((S,), 0.7),
            "one-large-in-128": torch.where(torch.arange(S) % 128 == 0, 1.0, 2.0**-24),
            "signs": torch.where(torch.arange(S) % 3 == 0, -0.7, 0.3),
        }[kind]
        coalitions = torch.full((S, 1), 3)
        coalitions[S // 2 :] = 5
        (got,) = moments(backend, coalitions, values[None], 3)
        masks = unpack_coalitions(coalitions, 3).double()
        want = (masks * values.double()[:, None]).T @ masks
        total = values.double().abs().sum().item()
        assert (got[0].double() - want).abs().max().item() <= 1e-6 * total
        if kind == "constant":  # what the bound is for
            assert abs(np.cumsum(values.numpy())[-1] - values.double().sum().item()) > 1e-5 * total

    def test_half_types_are_rounded_once(self):
        values = torch.full((1, 4096), 1.0)
        coalitions = torch.ones(4096, 1, dtype=torch.int64)
        for dtype in (torch.float16, torch.bfloat16):
            assert coalition_moments(coalitions, values.to(dtype), 1).item() == 4096


class TestNotFinite:
    @every_backend
    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_reaches_only_the_pairs_of_its_coalition(self, backend, value):
        for n, offsets in ((5, None), (70, torch.tensor([0, 3, 30, 40]))):
            coalitions = random_coalitions(40, n, seed=2)
            clean = torch.randn(2, 40, generator=torch.Generator().manual_seed(4))
            sizes = unpack_coalitions(coalitions, n)[3:30].sum(-1)
            k = 3 + ((sizes > 1) & (sizes < n)).nonzero()[0].item()
            dirty = clean.clone()
            dirty[1, k] = value
            want, got = (moments(backend, coalitions, x, n, offsets)[0] for x in (clean, dirty))
            held = unpack_coalitions(coalitions, n)[k]
            hit = torch.zeros(got.shape, dtype=torch.bool)
            (hit[1] if offsets is None else hit[1, 1])[held[:, None] & held] = True
            assert torch.equal(got[~hit], want[~hit])
            assert (got[hit].isnan() if math.isnan(value) else got[hit] == value).all()

    @every_backend
    def test_opposite_infinities(self, backend):
        coalitions = pack_coalitions(torch.tensor([[True, True, False], [False, True, True]]))
        (got,) = moments(backend, coalitions, torch.tensor([[math.inf, -math.inf]]), 3)
        inf, nan = math.inf, math.nan
        want = torch.tensor([[inf, inf, 0], [inf, nan, -inf], [0, -inf, -inf]])
        torch.testing.assert_close(got[0], want, equal_nan=True)

    @every_backend
    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_gradient_reaches_only_coalitions_that_hold_the_pair(self, backend, value):
        n = 70
        coalitions, values = random_coalitions(40, n, seed=2), torch.ones(2, 40)
        clean = upstream(torch.Size((2, n, n)), torch.float32)
        want = moments(backend, coalitions, values, n, None, clean)[1]
        for i, j in ((66, 4), (7, 7)):
            dirty = clean.clone()
            dirty[1, i, j] = value
            got = moments(backend, coalitions, values, n, None, dirty)[1]
            held = unpack_coalitions(coalitions, n)
            hit = torch.stack([torch.zeros(40, dtype=torch.bool), held[:, i] & held[:, j]])
            assert 0 < hit.sum() < 40
            assert torch.equal(got[~hit], want[~hit])
            assert (got[hit].isnan() if math.isnan(value) else got[hit] == value).all()


class TestBits:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    @pytest.mark.parametrize("case", [(3, 5000, 130, (0, 1, 1000, 1000, 5000)), (1, 9000, 20, None)], ids=str)
    def test_threads(self, case, dtype):
        arguments = inputs(case, dtype)
        grad = upstream(coalition_moments(*arguments[:3], offsets=arguments[3]).shape, dtype)
        threads = torch.get_num_threads()
        try:
            results = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(moments("cpu-" + loupe_ext._C.cpu_target(), *arguments, grad))
        finally:
            torch.set_num_threads(threads)
        for again in results[1:]:
            assert all(torch.equal(x, y) for x, y in zip(results[0], again, strict=True))

    @pytest.mark.parametrize("case", ["65-players", "several-parts"])
    def test_emulated_cuda_does_not_depend_on_thread_order(self, case):
        arguments = inputs(CASES[case], torch.float32)
        grad = upstream(expected(*arguments)[0].shape, torch.float32)
        for extra in ((), (grad,)):
            want = emulation.moments(*arguments, *extra)
            assert torch.equal(want, emulation.moments(*arguments, *extra, EMULATED_ORDER="reversed"))


class TestOffsetsThatNobodyChecked:
    """A GPU's are not, since that would have to wait for it: no group may reach outside the tensors."""

    coalitions, values = random_coalitions(30, 6), torch.randn(2, 30)
    offsets = torch.tensor([-5, 4, 2, 10**15, -(2**62), 7])
    bounds = ((0, 4), (4, 4), (2, 30), (30, 30), (0, 7))

    def check(self, forward, backward):
        for g, (a, b) in enumerate(self.bounds):
            (want,) = expected(self.coalitions[a:b], self.values[:, a:b], 6)
            assert_close(forward[:, g], want, 1e-6)
        assert backward.isfinite().all()

    def test_emulated_cuda(self):
        grad = upstream(torch.Size((2, 5, 6, 6)), torch.float32)
        arguments = self.coalitions, self.values, 6, self.offsets
        self.check(emulation.moments(*arguments), emulation.moments(*arguments, grad))

    @pytest.mark.gpu
    @pytest.mark.skipif("triton" not in BACKENDS, reason="needs the interpreter or a GPU")
    def test_triton(self):
        from loupe_ext.triton import moments as kernels

        place = device_of("triton")
        grad = upstream(torch.Size((2, 5, 6, 6)), torch.float32).to(place)
        coalitions, values, offsets = (x.to(place) for x in (self.coalitions, self.values, self.offsets))
        forward = kernels.forward(coalitions, values, offsets, 6)
        self.check(forward.cpu(), kernels.backward(grad, coalitions, offsets).cpu())


class TestAutograd:
    @every_backend
    def test_gradcheck(self, backend):
        if backend == "emulated-cuda":
            pytest.skip("the emulator has no autograd; its gradients are compared with the reference's")
        coalitions = random_coalitions(6, 4).to(device_of(backend))
        values = torch.randn(2, 6, dtype=torch.float64, device=device_of(backend), requires_grad=True)
        offsets = torch.tensor([0, 2, 2, 6])
        with selected(backend) as name:
            call = lambda v: coalition_moments(coalitions, v, 4, offsets=offsets, backend=name)  # noqa: E731
            assert gradcheck(backend, call, (values,))

    def test_double_backward_raises(self):
        values = torch.randn(5, requires_grad=True)
        out = coalition_moments(random_coalitions(5, 4), values, 4)
        (grad,) = torch.autograd.grad(out.pow(2).sum(), values, create_graph=True)
        with pytest.raises(RuntimeError, match="double backward"):
            grad.sum().backward()

    def test_forward_mode_raises(self):
        values = torch.randn(5)
        with pytest.raises(RuntimeError, match="values: forward-mode differentiation is not supported"):
            torch.func.jvp(lambda v: coalition_moments(random_coalitions(5, 4), v, 4), (values,), (values,))


class TestTorchLibrary:
    @pytest.mark.parametrize("offsets", [None, (0, 2, 2, 7)])
    @pytest.mark.parametrize("n", [5, 70])
    def test_opcheck(self, n, offsets):
        coalitions, values, n, offsets = inputs((3, 7, n, offsets), torch.float32)
        arguments = coalitions, values.t().contiguous().t().requires_grad_(), offsets, n, "auto"
        torch.library.opcheck(torch.ops.loupe.moments, arguments)
        grad = torch.ones(3, 1 if offsets is None else 3, n, n).transpose(2, 3)
        torch.library.opcheck(torch.ops.loupe.moments_backward, (grad, coalitions, offsets, "auto"))

    @pytest.mark.parametrize("dynamic", [False, True])
    def test_compile_fullgraph(self, dynamic):
        def step(coalitions, values, offsets):
            return coalition_moments(coalitions, values, 9, offsets=offsets).pow(2).sum()

        built = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
        for S in (7, 12):
            values = torch.randn(2, S, requires_grad=True)
            arguments = random_coalitions(S, 9), values, torch.tensor([0, 3, S])
            want, got = (torch.autograd.grad(f(*arguments), values)[0] for f in (step, built))
            assert torch.equal(want, got)

    def test_meta(self):
        coalitions, values = (torch.empty(7, x, device="meta") for x in (2, 3))
        assert coalition_moments(coalitions.long(), values.t(), 70).shape == (3, 70, 70)

    @pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))
    def test_just_in_time_kernels_compile_for_a_gpu(self, dtype):
        kernels = pytest.importorskip("loupe_ext.triton.moments")
        coalitions, values, n, offsets = inputs((2, 9, 70, (0, 4, 9)), dtype)
        grad = torch.ones(2, 2, n, n, dtype=dtype)
        calls = {
            "_parts_kernel": lambda: [kernels.forward(coalitions, values, x, n) for x in (None, offsets)],
            "_backward_kernel": lambda: kernels.backward(grad, coalitions, offsets),
        }
        for name, call in calls.items():
            built = compiled(kernels, name, call)
            assert len(built) == (2 if name == "_parts_kernel" else 1)
            assert all(x.asm["cubin"] for x in built)


class TestBadInput:
    good: ClassVar = {"coalitions": random_coalitions(5, 70), "values": torch.ones(5), "n": 70}

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"coalitions": [[1]]}, TypeError, "coalitions: expected a torch.Tensor, got list"),
            ({"coalitions": torch.zeros(5, 2)}, TypeError, "coalitions: expected dtype int64, got torch.float32"),
            (
                {"coalitions": random_coalitions(5, 64)},
                ValueError,
                r"coalitions: expected shape .* = \(5, 2\), got \(5, 1\)",
            ),
            ({"coalitions": random_coalitions(4, 70)}, ValueError, r"coalitions: expected shape .* got \(4, 2\)"),
            ({"coalitions": random_coalitions(5, 70)[0]}, ValueError, r"coalitions: expected shape .* got \(2,\)"),
            (
                {"coalitions": random_coalitions(5, 70).to("meta")},
                ValueError,
                r"coalitions: expected the device of values \(cpu\), got meta",
            ),
            ({"values": 3.0}, TypeError, "values: expected a torch.Tensor, got float"),
            ({"values": torch.ones(5).long()}, TypeError, "values: expected dtype float16, .* got torch.int64"),
            ({"values": torch.ones(1, 1, 5)}, ValueError, r"values: expected shape \[S\] or \[C, S\], got \(1, 1, 5\)"),
            ({"values": torch.tensor(1.0)}, ValueError, r"values: expected shape \[S\] or \[C, S\], got \(\)"),
            ({"values": torch.ones(5).to_sparse()}, TypeError, "values: expected a dense"),
            ({"n": 0}, ValueError, "n: expected 1 to 1024, got 0"),
            ({"n": 1025}, ValueError, "n: expected 1 to 1024, got 1025"),
            ({"n": True}, TypeError, "n: expected an int, got bool"),
            ({"n": 70.0}, TypeError, "n: expected an int, got float"),
            ({"offsets": [0, 5]}, TypeError, "offsets: expected a torch.Tensor, got list"),
            (
                {"offsets": torch.tensor([0, 5], dtype=torch.int32)},
                TypeError,
                "offsets: expected dtype int64, got torch.int32",
            ),
            ({"offsets": torch.tensor(5)}, ValueError, r"offsets: expected shape \[G \+ 1\], got \(\)"),
            ({"offsets": torch.empty(0, dtype=torch.int64)}, ValueError, r"offsets: expected shape .* got \(0,\)"),
            (
                {"offsets": torch.tensor([0, 5], device="meta")},
                ValueError,
                "offsets: expected device cpu or cpu, got meta",
            ),
            ({"offsets": torch.tensor([1, 5])}, ValueError, r"offsets: expected 0 first, got 1 at \[0\]"),
            (
                {"offsets": torch.tensor([0, 3, 2, 5])},
                ValueError,
                r"offsets: expected values that never decrease, got 2 at \[2\]",
            ),
            (
                {"offsets": torch.tensor([0, 3, 6])},
                ValueError,
                r"offsets: expected the number of coalitions, 5, last, got 6 at \[2\]",
            ),
            ({"offsets": torch.tensor([0])}, ValueError, r"offsets: expected the number of coalitions, 5, last, got 0"),
            ({"backend": "gpu"}, ValueError, "backend: expected one of auto, cpu, cuda, triton, got 'gpu'"),
        ],
    )
    def test_arguments(self, change, error, message):
        with pytest.raises(error, match=message):
            coalition_moments(**{**self.good, **change})

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"grad": torch.ones(2, 70, 70)}, ValueError, r"grad: expected shape \[C, 1, n, n\], got \(2, 70, 70\)"),
            ({"grad": torch.ones(2, 2, 70, 70)}, ValueError, r"grad: expected shape \[C, 1, n, n\]"),
            ({"grad": torch.ones(2, 1, 70, 69)}, ValueError, r"grad: expected shape \[C, 1, n, n\]"),
            ({"grad": torch.ones(2, 1, 70, 70).long()}, TypeError, "grad: expected dtype float16"),
            ({"coalitions": torch.ones(5, 3).long()}, ValueError, r"coalitions: expected shape .* got \(5, 3\)"),
            ({"coalitions": torch.ones(5).long()}, ValueError, r"coalitions: expected shape .* got \(5,\)"),
            ({"offsets": torch.tensor([0, 9])}, ValueError, "offsets: expected the number of coalitions, 5, last"),
        ],
    )
    def test_the_registered_gradient_checks_its_arguments_too(self, change, error, message):
        arguments = {"grad": torch.ones(2, 1, 70, 70), "coalitions": self.good["coalitions"], "offsets": None, **change}
        with pytest.raises(error, match=message):
            torch.ops.loupe.moments_backward(*arguments.values(), "auto")

    def test_the_registered_op_checks_its_arguments_too(self):
        with pytest.raises(ValueError, match=r"values: expected shape \[C, S\], got \(5,\)"):
            torch.ops.loupe.moments(self.good["coalitions"], self.good["values"], None, 70, "auto")
