"""The exact interactions of regions in the late-interaction game; tests/test_region.py has the sampled ones."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loupe_ext import region_interactions
from python_ref import brute
from python_ref import region as reference
from tests.backends import assert_close, device_of, every_backend, region_maxima, selected
from tests.samples import random_masks, random_pairs
from tests.test_region import DTYPES, INDICES, VECTORS, vector


@given(
    n=st.integers(1, 7),
    N=st.integers(1, 4),
    seed=st.integers(0, 10**6),
    tied=st.booleans(),
    p=st.floats(0.02, 0.98),
)
@settings(max_examples=25, deadline=None)
def test_reference_matches_enumeration(n, N, seed, tied, p):
    s = random_pairs(1, n, N, seed)
    s = s.round() if tied else s
    masks = random_masks(1, 3, n, 0.5, seed)
    for index in ("shapley", "banzhaf"):
        got = reference.late_interactions(s, masks, None, index, p)[0]
        value = lambda T: brute.late_interaction_value(s[0], T)  # noqa: E731
        want = [brute.interaction(value, n, m.nonzero().flatten().tolist(), index, p) for m in masks[0]]
        torch.testing.assert_close(got, torch.stack(want), rtol=1e-11, atol=1e-12)


class TestLateInteraction:
    @every_backend
    @DTYPES
    @pytest.mark.parametrize(
        ("B", "R", "n", "N"), [(3, 5, 6, 4), (1, 19, 9, 33), (2, 3, 65, 2), (2, 1, 1, 1), (1, 2, 5, 0)]
    )
    def test_maxima_match_their_formula(self, backend, dtype, B, R, n, N):
        s = random_pairs(B, n, N).to(dtype)
        masks, lengths = random_masks(B, R, n), torch.arange(B) * 2 - 1  # out of range: as near as it gets
        slopes = 1 / torch.arange(1, n + 2).to(dtype)
        u, order = s.transpose(1, 2).sort(dim=-1, descending=True)
        got = region_maxima(backend, u, order, masks, slopes, lengths)
        assert got.dtype == dtype
        for b, r in itertools.product(range(B), range(R)):
            inside, words = masks[b, r], int(lengths[b].clamp(0, N))
            if not inside.any() or words == 0:
                assert got[b, r] == 0
                continue
            x, outside = s[b, :, :words].double(), s[b, ~inside, :words].double().sort(0, descending=True).values
            rank = torch.arange(1, len(outside) + 1).double().view(-1, 1, 1)
            psi = x / (len(outside) + 1) + ((x - outside.unsqueeze(1)).clamp(min=0) / (rank * (rank + 1))).sum(0)
            want = (psi[inside].amax(0) - psi[inside].sum(0)).mean()
            assert got[b, r].item() == pytest.approx(want.item(), abs=20 * n * torch.finfo(dtype).eps)

    @every_backend
    def test_every_backend_serves_it(self, backend):
        if backend == "emulated-cuda":
            pytest.skip("the emulator has the maxima alone")
        patches, words, masks = random_pairs(2, 9, 4), random_pairs(2, 5, 4, 1), random_masks(2, 4, 9, 0.5)
        inputs = [x.to(device_of(backend)) for x in (patches, words, masks)]
        with selected(backend) as name:
            value, _ = region_interactions(*inputs, game="late-interaction", index="banzhaf", backend=name)
        want = reference.late_interactions(patches @ words.transpose(1, 2), masks, None, "banzhaf")
        assert_close(value.cpu(), want, 1e-12)

    @pytest.mark.parametrize("name", INDICES)
    @pytest.mark.parametrize("t", range(6))
    def test_matches_the_shared_vectors(self, t, name):
        _, _, mask, s = vector(t)
        index, p = INDICES[name]
        words = torch.eye(s.shape[2], dtype=torch.float64)[None]
        value, error = region_interactions(s, words, mask, game="late-interaction", index=index, p=p)
        assert value.item() == pytest.approx(VECTORS[f"region{t}_late_{name}"].item(), abs=1e-13)
        assert error.item() == 0

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("index", ["shapley", "banzhaf"])
    @pytest.mark.parametrize("shape", [(3, 1, 4), (4, 9, 5), (2, 64, 7), (2, 65, 3), (2, 196, 12)])
    def test_matches_the_reference(self, shape, index, dtype):
        B, n, N = shape
        patches, words = random_pairs(B, n, 6).to(dtype), random_pairs(B, N, 6, 1).to(dtype)
        masks = random_masks(B, 6, n)
        masks[:, 0], masks[:, 1] = False, True
        lengths = torch.arange(B) + N - B + 1
        lengths[0] = 0
        value, error = region_interactions(
            patches, words, masks, game="late-interaction", text_lengths=lengths, index=index, p=0.3
        )
        s = patches.double() @ words.double().transpose(1, 2)
        want = reference.late_interactions(s, masks, lengths, index, 0.3)
        assert value.dtype == dtype
        assert (error == 0).all()
        assert_close(value, want, {torch.float64: 1e-12, torch.float32: 2e-5}.get(dtype, 2e-2))

    def test_padding_is_never_read_and_not_finite_stays_in_its_image(self):
        patches, words, masks = random_pairs(3, 6, 4), random_pairs(3, 5, 4, 1), random_masks(3, 4, 6, 0.5)
        lengths = torch.tensor([5, 3, 4])
        options = {"game": "late-interaction", "text_lengths": lengths}
        want = region_interactions(patches, words, masks, **options)[0]
        words[1, 3:] = math.nan
        words[2, 4:] = math.inf
        assert torch.equal(region_interactions(patches, words, masks, **options)[0], want)
        patches[1, 2, 0] = math.nan
        value, error = region_interactions(patches, words, masks, **options)
        assert value[1].isnan().all()
        assert error[1].isnan().all()
        assert torch.equal(value[[0, 2]], want[[0, 2]])

    def test_lengths_out_of_range_are_not_a_number(self):
        patches, words, masks = random_pairs(2, 6, 4), random_pairs(2, 5, 4, 1), random_masks(2, 4, 6, 0.5)
        options = {"game": "late-interaction", "text_lengths": torch.tensor([5, 6])}
        value, _ = region_interactions(patches, words, masks, **options)
        assert value[0].isfinite().all()
        assert value[1].isnan().all()


@pytest.mark.parametrize(
    ("at", "value", "error", "message"),
    [
        (0, torch.zeros(2, 5, 6).half(), TypeError, "sorted: expected dtype float32 or float64"),
        (0, torch.zeros(5, 6), ValueError, r"sorted: expected shape \[B, N, n\]"),
        (1, torch.zeros(2, 5, 6).int(), TypeError, "order: expected dtype torch.int64, got torch.int32"),
        (2, torch.zeros(2, 3, 2).long(), ValueError, r"regions: expected shape \(2, 3, 1\), got \(2, 3, 2\)"),
        (3, torch.zeros(6), ValueError, r"slopes: expected shape \(7,\), got \(6,\)"),
        (4, torch.zeros(3).long(), ValueError, r"lengths: expected shape \(2,\), got \(3,\)"),
    ],
)
def test_region_maxima_checks_its_arguments(at, value, error, message):
    tensors = [torch.zeros(2, 5, 6), torch.zeros(2, 5, 6).long(), torch.zeros(2, 3, 1).long(), torch.zeros(7)]
    tensors.append(torch.zeros(2).long())
    tensors[at] = value
    with pytest.raises(error, match=message):
        torch.ops.loupe.region_maxima(*tensors, "auto")
