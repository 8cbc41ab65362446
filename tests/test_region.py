import dataclasses
import doctest
import itertools
import math
import sys

import numpy as np
import pytest
import torch

import loupe_ext
from loupe_ext import (
    boxes_to_regions,
    pack_coalitions,
    region_interactions,
    sample_coalitions,
    sample_permutations,
    unpack_coalitions,
)
from python_ref import brute
from python_ref import region as reference
from tests import emulation
from tests.backends import BACKENDS, SLOW, assert_close, device_of, every_backend, region_walks, selected
from tests.samples import Regions, random_masks, random_pairs, random_regions, region_problems
from tests.triton_ahead import compiled

VECTORS = np.load("tests/data/interactions.npz")
INDICES = {"shapley": ("shapley", 0.5), "banzhaf0.5": ("banzhaf", 0.5)}
TOLERANCE = {torch.float64: 2e-15, torch.float32: 5e-7}  # of the |R| values, each within -1 .. 1, that R's sum holds
DTYPES = pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda d: str(d).removeprefix("torch."))


def vector(t: int) -> tuple[torch.Tensor, ...]:
    """Patches, text, masks [1, 1, n] and word scores of a shared vector."""
    x, text, players, s = (torch.from_numpy(VECTORS[f"region{t}_{key}"]) for key in ("x", "t", "R", "s"))
    mask = torch.zeros(1, 1, len(x), dtype=torch.bool)
    mask[..., players.long()] = True
    return x[None], text[None], mask, s[None]


def orders_of(problem: Regions, index: str) -> torch.Tensor:
    """Walks for a problem: permutations, or Bernoulli coalitions with -1 for who stays away."""
    B, n, _ = problem.patches.shape
    if index == "shapley":
        return sample_permutations(n, problem.walks, B, seed=3)
    coalitions = sample_coalitions(n, problem.walks, B, seed=3, index="banzhaf", p=0.4)
    return torch.where(unpack_coalitions(coalitions, n), torch.arange(n, dtype=torch.int32), -1)


def exact(problem: Regions, index: str = "shapley", p: float = 0.5) -> torch.Tensor:
    """The pooled-cosine interactions [B, R] by enumeration."""
    a, gram = reference.pooled_cosine(problem.patches, problem.text)
    out = torch.zeros(problem.masks.shape[:2], dtype=torch.float64)
    for b, r in itertools.product(*(range(x) for x in out.shape)):
        members = problem.masks[b, r].nonzero().flatten().tolist()
        value = lambda T, b=b: brute.pooled_cosine_value(a[b], gram[b], T)  # noqa: E731
        out[b, r] = brute.interaction(value, problem.patches.shape[1], members, index, p)
    return out


class TestReference:
    @pytest.mark.parametrize("name", INDICES)
    @pytest.mark.parametrize("t", range(6))
    def test_matches_the_shared_vectors(self, t, name):
        x, text, mask, s = vector(t)
        index, p = INDICES[name]
        want = torch.from_numpy(np.asarray(VECTORS[f"region{t}_cos_{name}"]))
        assert exact(Regions("", x, text, mask), index, p).item() == pytest.approx(want.item(), abs=1e-14)
        got = reference.late_interactions(s, mask, None, index, p)
        assert got.item() == pytest.approx(VECTORS[f"region{t}_late_{name}"].item(), abs=1e-14)

    @pytest.mark.parametrize("t", [0, 1, 5])
    def test_the_mean_over_all_walks_is_the_interaction(self, t):
        x, text, mask, _ = vector(t)
        n = x.shape[1]
        a, gram = reference.pooled_cosine(x, text)
        permutations = torch.tensor(list(itertools.permutations(range(n))))[None]
        got = reference.walk_values(a, gram, mask, permutations).mean()
        assert got.item() == pytest.approx(VECTORS[f"region{t}_cos_shapley"].item(), abs=1e-12)
        ends = torch.where(brute.subsets(n), torch.arange(n), -1)[None]
        for p in (0.5, 0.2):
            size = brute.subsets(n).sum(-1).double()
            chance = p**size * (1 - p) ** (n - size)
            got = (reference.walk_values(a, gram, mask, ends, prefixes=False) * chance).sum()
            want = exact(Regions("", x, text, mask), "banzhaf", p)
            assert got.item() == pytest.approx(want.item(), abs=1e-12)


class TestWalks:
    """The kernels, walk by walk."""

    @DTYPES
    @pytest.mark.parametrize("index", ["shapley", "banzhaf"])
    @pytest.mark.parametrize(
        ("backend", "problem"),
        [(b, x) for b in BACKENDS for x in region_problems(small=b in SLOW)],
        ids=lambda x: str(x),
    )
    def test_match_the_reference(self, backend, problem, index, dtype):
        a, gram = (x.to(dtype) for x in reference.pooled_cosine(problem.patches, problem.text))
        orders = orders_of(problem, index)
        got = region_walks(backend, a, gram, problem.masks, orders, index == "shapley")
        want = reference.walk_values(a.double(), gram.double(), problem.masks, orders, index == "shapley")
        assert got.dtype == dtype
        assert got.shape == want.shape
        room = TOLERANCE[dtype] * problem.masks.sum(-1).unsqueeze(-1).clamp(min=1)
        assert ((got.double() - want).abs() <= room).all()

    @every_backend
    @DTYPES
    def test_patches_that_cancel_have_value_0(self, backend, dtype):
        """The mean over all walks is the interaction, whose coalition of all patches is 0 / 0 and counts as 0."""
        patches = random_pairs(3, 5, 4)
        patches = (patches - patches.mean(1, keepdim=True)).to(dtype)
        masks = (torch.arange(5) < 2).expand(3, 1, 5)
        a, gram = reference.pooled_cosine(patches, random_pairs(3, 1, 4, 1)[:, 0].to(dtype))
        orders = torch.tensor(list(itertools.permutations(range(5))), dtype=torch.int32).expand(3, -1, -1)
        got = region_walks(backend, a, gram, masks, orders, True)
        walked = reference.walk_values(a, gram, masks, orders)
        for b in range(3):

            def value(T, b=b):
                pooled = (T.double() @ a[b].double()) / ((T.double() @ gram[b].double()) * T).sum(-1).sqrt()
                return torch.where(T.all(-1) | ~T.any(-1), torch.zeros_like(pooled), pooled)

            want = brute.interaction(value, 5, [0, 1])
            room = 1e-3 if dtype == torch.float32 else 1e-7
            assert got[b].double().mean().item() == pytest.approx(want.item(), abs=room)
            assert walked[b].double().mean().item() == pytest.approx(want.item(), abs=room)
            known = lambda T, b=b: brute.pooled_cosine_value(a[b], gram[b], T)  # noqa: E731
            assert brute.interaction(known, 5, [0, 1]).item() == pytest.approx(want.item(), abs=room)

    @DTYPES
    @pytest.mark.parametrize("patches", [1, 70])
    def test_just_in_time_kernels_compile_for_a_gpu(self, dtype, patches):
        kernels = pytest.importorskip("loupe_ext.triton.region")
        problem = random_regions("", 2, 9, patches)
        a, gram = (x.to(dtype) for x in reference.pooled_cosine(problem.patches, problem.text))
        tensors = a.new_empty(2, 9, 6), a, gram, pack_coalitions(problem.masks), orders_of(problem, "shapley")
        maxima = a.new_empty(2, 9), gram, gram.long(), tensors[3], a[0], torch.tensor([patches, 9])
        (built,) = compiled(kernels, "_maxima_kernel", lambda: kernels.maxima(*maxima))
        assert built.asm["cubin"]
        for prefixes in (True, False):
            (built,) = compiled(kernels, "_walks_kernel", lambda x=prefixes: kernels.walks(*tensors, x))
            assert built.asm["cubin"]

    def test_emulated_cuda_does_not_depend_on_thread_order_or_on_where_its_state_is(self):
        for dtype in (torch.float32, torch.float64):
            problem = random_regions("", 2, 9, 35, walks=70)
            a, gram = (x.to(dtype) for x in reference.pooled_cosine(problem.patches, problem.text))
            arguments = a, gram, pack_coalitions(problem.masks), orders_of(problem, "shapley"), True
            want = emulation.region_walks(*arguments)
            assert_close(want, reference.walk_values(a, gram, problem.masks, arguments[3]), 1e-4)
            for environment in ({"EMULATED_ORDER": "reversed"}, {"EMULATED_SHARED_BYTES": "8000"}):
                assert torch.equal(emulation.region_walks(*arguments, **environment), want)

    @every_backend
    def test_whoever_is_no_player_joins_nothing(self, backend):
        problem = random_regions("", 2, 4, 7)
        a, gram = reference.pooled_cosine(problem.patches, problem.text)
        orders = orders_of(problem, "shapley")
        want = region_walks(backend, a, gram, problem.masks, orders.masked_fill(orders == 3, -1), True)
        got = region_walks(backend, a, gram, problem.masks, orders.masked_fill(orders == 3, 1000), True)
        assert torch.equal(got, want)
        assert_close(got, reference.walk_values(a, gram, problem.masks, orders.masked_fill(orders == 3, -1)), 1e-11)

    @every_backend
    def test_not_a_number_stays_in_its_own_image(self, backend):
        problem = random_regions("", 3, 4, 7)
        a, gram = (x.float() for x in reference.pooled_cosine(problem.patches, problem.text))
        orders = orders_of(problem, "shapley")
        want = region_walks(backend, a, gram, problem.masks, orders, True)
        a[1, 3], gram[2, 2, 4], gram[2, 4, 2] = math.nan, math.nan, math.nan
        got = region_walks(backend, a, gram, problem.masks, orders, True)
        assert torch.equal(got[0], want[0])
        assert torch.equal(got[1:].isnan(), reference.walk_values(a, gram, problem.masks, orders)[1:].isnan())
        assert got[1:].isnan().any(-1).any(-1).all()

    @DTYPES
    def test_bits_do_not_show_threads_or_splits(self, dtype):
        problem = random_regions("", 7, 9, 30, walks=100)
        a, gram = (x.to(dtype) for x in reference.pooled_cosine(problem.patches, problem.text))
        orders, packed = orders_of(problem, "shapley"), pack_coalitions(problem.masks)
        walks = torch.ops.loupe.region_walks
        whole = walks(a, gram, packed, orders, True, "cpu")
        threads = torch.get_num_threads()
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                assert torch.equal(whole, walks(a, gram, packed, orders, True, "cpu"))
        finally:
            torch.set_num_threads(threads)
        for b in range(7):
            one = slice(b, b + 1)
            assert torch.equal(whole[one], walks(a[one], gram[one], packed[one], orders[one], True, "cpu"))
        assert torch.equal(whole[:, 2:5], walks(a, gram, packed[:, 2:5], orders, True, "cpu"))
        assert torch.equal(whole[..., 3:50], walks(a, gram, packed, orders[:, 3:50], True, "cpu"))


class TestPooledCosine:
    @every_backend
    @pytest.mark.parametrize("index", ["shapley", "banzhaf"])
    def test_is_the_mean_of_its_walks_with_their_standard_error(self, backend, index):
        problem = random_regions("", 2, 4, 9, walks=20)
        if backend == "emulated-cuda":
            pytest.skip("the emulator has the walks alone")
        inputs = [x.to(device_of(backend)) for x in (problem.patches, problem.text, problem.masks)]
        with selected(backend) as name:
            got = region_interactions(*inputs, index=index, p=0.4, num_samples=20, seed=3, backend=name)
        a, gram = reference.pooled_cosine(problem.patches, problem.text)
        values = reference.walk_values(a, gram, problem.masks, orders_of(problem, index), index == "shapley")
        pairs = (values[..., ::2] + values[..., 1::2]) / 2
        assert_close(got[0].cpu(), pairs.mean(-1), 1e-11)
        assert_close(got[1].cpu(), pairs.std(-1) / math.sqrt(10), 1e-8)

    @pytest.mark.parametrize("antithetic", [True, False])
    @pytest.mark.parametrize(("index", "p"), [("shapley", 0.5), ("banzhaf", 0.5), ("banzhaf", 0.25)])
    def test_unbiased_and_its_errors_are_what_they_say(self, index, p, antithetic):
        """Over many draws (problems of one batch): the mean is within four of its own standard errors of the truth, and
        intervals of 95 % hold the truth 93 to 97 times in 100."""
        many = 4000
        problem = random_regions("", 1, 4, 8, 4)
        problem.masks[0] = torch.stack([torch.arange(8) < k for k in range(2, 6)])  # with 2 outside, a pair has it all
        truth = exact(problem, index, p)
        image = (x.expand(many, *x.shape[1:]) for x in (problem.patches, problem.text, problem.masks))
        value, error = region_interactions(*image, index=index, p=p, num_samples=256, seed=1, antithetic=antithetic)
        error_of_mean = value.std(0) / math.sqrt(many)
        assert ((value.mean(0) - truth[0]).abs() < 4 * error_of_mean + 1e-12).all()
        assert torch.allclose(error.square().mean(0), value.var(0), rtol=0.1)
        coverage = ((value - truth).abs() < 1.96 * error).double().mean(0)
        assert (coverage > 0.93).all()
        assert (coverage < 0.97).all()

    def test_antithetic_pairs_pay(self):
        problem = random_regions("", 8, 6, 30)
        inputs = problem.patches, problem.text, problem.masks
        paired = region_interactions(*inputs, num_samples=2048)[1]
        single = region_interactions(*inputs, num_samples=2048, antithetic=False)[1]
        assert paired.mean() < single.mean()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_regions_of_no_one_or_every_patch(self, dtype):
        patches, text = random_pairs(2, 9, 5).to(dtype), random_pairs(2, 1, 5)[:, 0].to(dtype)
        masks = torch.stack([torch.zeros(9) > 0, torch.arange(9) == 4, torch.ones(9) > 0, torch.arange(9) > 0])
        value, error = region_interactions(patches, text, masks.expand(2, 4, 9))
        assert value.dtype == error.dtype == dtype
        assert (value[:, :2] == 0).all()
        assert (error[:, :3] == 0).all()
        assert (error[:, 3] < 1e-6).all()  # whatever the walk, it passes through the same two coalitions
        wide = Regions("", patches.double(), text.double(), masks.expand(2, 4, 9))
        tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 2e-2)
        assert_close(value, exact(wide), tolerance)

    def test_one_patch(self):
        masks = torch.tensor([[[True], [False]]])
        value, error = region_interactions(torch.ones(1, 1, 3), torch.ones(1, 3), masks)
        assert value.tolist() == error.tolist() == [[0, 0]]

    @pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
    @pytest.mark.parametrize(("B", "R", "n", "d"), [(0, 2, 3, 4), (2, 0, 3, 4), (2, 2, 0, 4), (2, 2, 3, 0)])
    def test_nothing_to_do(self, game, B, R, n, d):
        text = torch.zeros(B, d) if game == "pooled-cosine" else torch.zeros(B, 5, d)
        results = region_interactions(torch.zeros(B, n, d), text, torch.ones(B, R, n, dtype=torch.bool), game=game)
        for x in results:
            assert torch.equal(x, torch.zeros(B, R))

    def test_packed_regions_and_unbatched_and_not_contiguous_inputs(self):
        problem = random_regions("", 2, 5, 70)
        inputs = problem.patches, problem.text, problem.masks
        want = region_interactions(*inputs, num_samples=32)
        packed = region_interactions(problem.patches, problem.text, pack_coalitions(problem.masks), num_samples=32)
        strided = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in inputs]
        for got in (packed, region_interactions(*strided, num_samples=32)):
            assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        for b in range(2):
            one = region_interactions(*(x[b] for x in inputs), num_samples=32, first_problem=b)
            for x, y in zip(one, want, strict=True):
                torch.testing.assert_close(x, y[b], rtol=1e-12, atol=1e-13)

    @pytest.mark.parametrize("scale", [1e-30, 1e30])
    def test_sees_no_scale(self, scale):
        problem = random_regions("", 2, 3, 6)
        x, t = problem.patches.float(), problem.text.float()
        want = region_interactions(x, t, problem.masks, num_samples=16)
        for inputs in ((x * scale, t), (x, t * scale)):
            got = region_interactions(*inputs, problem.masks, num_samples=16)
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("n", [12, 196])
    def test_the_dtype_does_not_show_where_patches_cancel(self, n):
        x = random_pairs(2, n, 16)
        x -= x.mean(1, keepdim=True)
        inputs = x, random_pairs(2, 1, 16, 1)[:, 0], random_masks(2, 4, n)
        want = region_interactions(*inputs, num_samples=8)
        got = region_interactions(inputs[0].float(), inputs[1].float(), inputs[2], num_samples=8)
        for a, b in zip(got, want, strict=True):
            assert (a - b).abs().max() < 1e-3

    def test_zero_vectors_have_value_0(self):
        x, t = torch.zeros(2, 6, 4), torch.ones(2, 4)
        x[1] = random_pairs(1, 6, 4)[0]
        t[1] = 0
        value, error = region_interactions(x, t, random_masks(2, 3, 6, 0.5))
        assert (value == 0).all()
        assert (error == 0).all()

    @pytest.mark.parametrize("value", [math.nan, math.inf])
    def test_not_finite_stays_in_its_own_image(self, value):
        problem = random_regions("", 4, 5, 7)
        x, t = problem.patches.float(), problem.text.float()
        want = region_interactions(x, t, problem.masks, num_samples=16)
        x[1, 2, 3] = value
        t[2, 0] = value
        got = region_interactions(x, t, problem.masks, num_samples=16, standard_error=1e-9, max_samples=16)
        for a, b in zip(got, want, strict=True):
            assert a[1:3].isnan().all()
            assert torch.equal(a[[0, 3]], b[[0, 3]])

    @pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
    def test_autocast_does_not_round_it(self, game):
        x, masks = random_pairs(2, 7, 4).float(), random_masks(2, 3, 7)
        t = (random_pairs(2, 5, 4, 1) if game == "late-interaction" else random_pairs(2, 1, 4, 1)[:, 0]).float()
        want = region_interactions(x, t, masks, game=game)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = region_interactions(x, t, masks, game=game)
        assert all(torch.equal(y, z) for y, z in zip(got, want, strict=True))

    def test_seeds_and_problems_differ(self):
        problem = random_regions("", 1, 3, 12)
        inputs = problem.patches, problem.text, problem.masks
        results = [
            region_interactions(*inputs, num_samples=16, **x)[0] for x in ({}, {"seed": 1}, {"first_problem": 1})
        ]
        assert all(not torch.equal(x, y) for x, y in itertools.combinations(results, 2))

    def test_more_samples_go_on_from_the_first(self):
        """1,000 samples, drawn in rounds, are the mean of all 1,000 walks."""
        problem = dataclasses.replace(random_regions("", 2, 3, 10), walks=1000)
        value, error = region_interactions(problem.patches, problem.text, problem.masks, num_samples=1000, seed=3)
        a, gram = reference.pooled_cosine(problem.patches, problem.text)
        values = reference.walk_values(a, gram, problem.masks, orders_of(problem, "shapley"))
        pairs = (values[..., ::2] + values[..., 1::2]) / 2
        assert_close(value, pairs.mean(-1), 1e-11)
        assert_close(error, pairs.std(-1) / math.sqrt(500), 1e-9)

    def test_a_wanted_standard_error(self):
        problem = random_regions("", 6, 8, 16)
        inputs = problem.patches, problem.text, problem.masks
        first = region_interactions(*inputs, num_samples=64)[1]
        wanted = first[first > 0].median().item() / 2
        value, error = region_interactions(*inputs, num_samples=64, standard_error=wanted)
        assert (error <= wanted).all()
        long_ago = first <= wanted  # they stopped after the first round
        assert long_ago.any()
        assert torch.equal(error[long_ago], first[long_ago])
        assert torch.equal(value[long_ago], region_interactions(*inputs, num_samples=64)[0][long_ago])
        again = region_interactions(*inputs, num_samples=64, standard_error=wanted)
        assert torch.equal(value, again[0])
        for b in range(6):  # what an image's regions get does not depend on who else is in the batch
            one = slice(b, b + 1)
            alone = region_interactions(
                *(x[one] for x in inputs), num_samples=64, standard_error=wanted, first_problem=b
            )
            torch.testing.assert_close(alone[0], value[one], rtol=1e-11, atol=1e-12)

    def test_stops_at_the_most_samples(self):
        problem = random_regions("", 2, 3, 10)
        inputs = problem.patches, problem.text, problem.masks
        got = region_interactions(*inputs, num_samples=64, standard_error=1e-9, max_samples=200)
        assert_close(got[0], region_interactions(*inputs, num_samples=200)[0], 1e-12)

    def test_threads_do_not_show(self):
        problem = random_regions("", 9, 5, 20)
        inputs = problem.patches.float(), problem.text.float(), problem.masks
        threads = torch.get_num_threads()
        results = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                results.append(region_interactions(*inputs, num_samples=300))
        finally:
            torch.set_num_threads(threads)
        for value, error in results[1:]:
            torch.testing.assert_close(value, results[0][0], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(error, results[0][1], rtol=1e-4, atol=1e-6)

    def test_carries_no_gradient(self):
        problem = random_regions("", 1, 2, 5)
        value, error = region_interactions(problem.patches.requires_grad_(), problem.text, problem.masks)
        assert not value.requires_grad
        assert not error.requires_grad
        a, gram = reference.pooled_cosine(problem.patches, problem.text)
        orders, packed = orders_of(problem, "shapley"), pack_coalitions(problem.masks)
        walks = torch.ops.loupe.region_walks(a, gram, packed, orders, True, "auto")
        with pytest.raises(RuntimeError, match="region_walks has no derivative"):
            walks.sum().backward()


def test_boxes_to_regions():
    boxes = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.6, 0.0, 3.0, 2.0], [1.4, 0.4, 1.6, 0.6], [5.0, 5.0, 6.0, 6.0]])
    masks = boxes_to_regions(boxes, 2, 3).view(4, 2, 3)
    rows = [[[1, 1, 0], [0, 0, 0]], [[0, 1, 1], [0, 1, 1]], [[0, 1, 0], [0, 0, 0]], [[0, 0, 0], [0, 0, 0]]]
    assert torch.equal(masks, torch.tensor(rows).bool())
    assert torch.equal(boxes_to_regions(boxes * 16, 2, 3, patch=16), masks.flatten(-2))
    with pytest.raises(ValueError, match=r"boxes: expected shape \[..., 4\], got \(3,\)"):
        boxes_to_regions(torch.zeros(3), 2, 3)


def test_the_docstrings_example():
    assert doctest.testmod(sys.modules["loupe_ext.ops.region"]).failed == 0


class TestTorchLibrary:
    def test_opcheck(self):
        problem = random_regions("", 2, 3, 7)
        a, gram = reference.pooled_cosine(problem.patches, problem.text)
        packed, orders = pack_coalitions(problem.masks), orders_of(problem, "shapley")
        torch.library.opcheck(torch.ops.loupe.region_walks, (a, gram, packed, orders, True, "auto"))
        turned = (a, gram.transpose(1, 2), packed, orders, False, "cpu")
        torch.library.opcheck(torch.ops.loupe.region_walks, turned)
        lengths = torch.tensor([7, 3])
        for u in (gram, gram.transpose(1, 2)):
            maxima = u, u.argsort(-1), packed, torch.ones(8).double(), lengths, "auto"
            torch.library.opcheck(torch.ops.loupe.region_maxima, maxima)

    @pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
    def test_compile_fullgraph(self, game):
        def label(x, t, masks):
            return region_interactions(x * 2, t, masks, game=game, num_samples=32)

        x, masks = random_pairs(2, 7, 4), random_masks(2, 3, 7)
        t = random_pairs(2, 5, 4, 1) if game == "late-interaction" else random_pairs(2, 1, 4, 1)[:, 0]
        got = torch.compile(label, fullgraph=True, backend="aot_eager")(x, t, masks)
        assert all(torch.equal(x, y) for x, y in zip(got, label(x, t, masks), strict=True))

    def test_meta_tensors_have_the_right_shape(self):
        x, t, masks = (
            y.to("meta") for y in (random_pairs(2, 7, 4), random_pairs(2, 1, 4)[:, 0], random_masks(2, 3, 7))
        )
        assert [y.shape for y in region_interactions(x, t, masks)] == [(2, 3), (2, 3)]


class TestBadInput:
    x, t, masks = random_pairs(2, 6, 4).float(), random_pairs(2, 1, 4)[:, 0].float(), random_masks(2, 3, 6)

    @pytest.mark.parametrize(
        ("change", "error", "message"),
        [
            ({"patches": [1.0]}, TypeError, "patches: expected a torch.Tensor, got list"),
            ({"patches": x.long()}, TypeError, "patches: expected dtype float16, .* got torch.int64"),
            ({"patches": x[None]}, ValueError, r"patches: expected shape \[B, n, d\] or \[n, d\], got \(1, 2, 6, 4\)"),
            ({"patches": torch.zeros(2, 1025, 4)}, ValueError, "patches: expected up to 1024 patches, got 1025"),
            ({"text": None}, TypeError, "text: expected a torch.Tensor, got NoneType"),
            ({"text": t.double()}, TypeError, r"text: expected the dtype of patches \(torch.float32\)"),
            ({"text": t[:, :3]}, ValueError, r"text: expected shape \(2, 4\) .* got \(2, 3\)"),
            (
                {"text": x, "game": "late-interaction", "patches": x[:1]},
                ValueError,
                r"text: expected shape \(1, N, 4\)",
            ),
            ({"text": t.to("meta")}, ValueError, "text: expected the device of patches"),
            ({"regions": masks.float()}, TypeError, "regions: expected masks of bool or packed bits of int64"),
            ({"regions": masks[..., :5]}, ValueError, r"regions: expected shape \(2, R, 6\), got \(2, 3, 5\)"),
            ({"regions": masks.long()}, ValueError, r"regions: expected shape \(2, R, 1\), got \(2, 3, 6\)"),
            ({"regions": masks[:1]}, ValueError, r"regions: expected shape \(2, R, 6\), got \(1, 3, 6\)"),
            ({"game": "cosine"}, ValueError, "game: expected 'pooled-cosine' or 'late-interaction', got 'cosine'"),
            (
                {"text_lengths": torch.tensor([1, 2])},
                ValueError,
                "text_lengths: expected None for game='pooled-cosine'",
            ),
            (
                {"text_lengths": torch.ones(3).int(), "game": "late-interaction", "text": x},
                ValueError,
                r"text_lengths: expected shape \(2,\)",
            ),
            ({"index": "owen"}, ValueError, "index: expected 'shapley' or 'banzhaf'"),
            ({"index": "banzhaf", "p": 0.0}, ValueError, "p: expected a probability"),
            ({"num_samples": 2}, ValueError, "num_samples: expected 4 to"),
            ({"num_samples": 7}, ValueError, "num_samples: expected an even number with antithetic=True, got 7"),
            ({"num_samples": 1, "antithetic": False}, ValueError, "num_samples: expected 2 to"),
            ({"num_samples": 8.0}, TypeError, "num_samples: expected an int, got float"),
            ({"standard_error": 0.0}, ValueError, "standard_error: expected None or a positive number, got 0.0"),
            ({"standard_error": "small"}, TypeError, "standard_error: expected None or a float, got str"),
            ({"standard_error": 0.1, "max_samples": 10}, ValueError, "max_samples: expected 256 to"),
            ({"seed": -1}, ValueError, "seed: expected 0 to"),
            ({"first_problem": -1}, ValueError, "first_problem: expected 0 to"),
            ({"backend": "tpu"}, ValueError, "backend: expected one of"),
        ],
    )
    def test_region_interactions(self, change, error, message):
        with pytest.raises(error, match=message):
            region_interactions(**{"patches": self.x, "text": self.t, "regions": self.masks, **change})

    @pytest.mark.parametrize(
        ("at", "value", "error", "message"),
        [
            (0, torch.zeros(2, 6).half(), TypeError, "values: expected dtype float32 or float64"),
            (0, torch.zeros(6), ValueError, r"values: expected shape \[B, n\]"),
            (1, torch.zeros(2, 6, 5), ValueError, r"gram: expected shape \(2, 6, 6\)"),
            (1, torch.zeros(2, 6, 6).double(), TypeError, "gram, regions, orders: expected"),
            (2, torch.zeros(2, 3, 2).long(), ValueError, r"regions: expected shape \(2, R, 1\)"),
            (3, torch.zeros(2, 8, 5).int(), ValueError, r"orders: expected shape \(2, K, 6\)"),
            (3, torch.zeros(2, 8, 6).long(), TypeError, "gram, regions, orders: expected"),
        ],
    )
    def test_the_registered_op_checks_its_arguments_too(self, at, value, error, message):
        tensors = [torch.zeros(2, 6), torch.zeros(2, 6, 6), torch.zeros(2, 3, 1).long(), torch.zeros(2, 8, 6).int()]
        tensors[at] = value
        with pytest.raises(error, match=message):
            torch.ops.loupe.region_walks(*tensors, True, "auto")


def test_is_exported():
    assert loupe_ext.region_interactions is region_interactions
