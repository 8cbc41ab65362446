"""SPARC's grouping and its loss, beside loops over the definition."""

import math

import pytest
import torch

from loupe_ext.losses import sparse_grouping_loss
from loupe_ext.losses.sparse_grouping import grouping_weights
from tests.backends import assert_close
from tests.test_losses import features, values_and_gradients

LENGTHS, SCALE = torch.tensor([2, 4, 1]), 5.0


def group(token, patches):
    """The mean patch of one token's group."""
    similarity = [token @ patch for patch in patches]
    low, high = min(similarity), max(similarity)
    shares = [(s - low) / (high - low) for s in similarity]
    shares = [s if s >= 1 / len(patches) else 0 * s for s in shares]
    return sum(s * patch for s, patch in zip(shares, patches, strict=True)) / sum(shares)


def plain_loss(patches, tokens, scale, lengths):
    total = 0
    for image, caption, length in zip(patches, tokens, lengths, strict=True):
        words = caption[:length]
        groups = [group(word, image) for word in words]
        cosine = lambda x, y: x @ y / x.norm() / y.norm()  # noqa: E731
        e = [[(scale * cosine(word, x)).exp() for x in groups] for word in words]
        for i in range(length):
            by_token, by_group = e[i][i] / sum(e[i]), e[i][i] / sum(row[i] for row in e)
            total -= (by_token.log() + by_group.log()) / 2 / length
    return total / len(patches)


def of_similarities(*rows: list[float]) -> torch.Tensor:
    """The weights of tokens whose similarities with the patches are these."""
    similarity = torch.tensor(rows, dtype=torch.float64)
    return grouping_weights(torch.eye(similarity.shape[1]).double()[None], similarity[None])[0]


class TestWeights:
    def test_what_falls_below_one_nth_is_dropped(self):
        weights = of_similarities([-3.0, -2.2, -2.0, 1.0], [4.0, 3.0, 2.0, 0.0])  # the first row's shares: 0 .2 .25 1
        assert weights[0].tolist() == pytest.approx([0, 0, 0.2, 0.8])
        assert weights[1].tolist() == pytest.approx([4 / 9, 3 / 9, 2 / 9, 0])

    def test_a_token_that_is_equally_similar_to_all_groups_them_equally(self):
        weights = of_similarities([0.3, 0.3, 0.3, 0.3], [0.0, 0.0, 0.0, 1.0])
        assert weights.tolist() == [[0.25] * 4, [0, 0, 0, 1]]

    def test_one_patch_is_every_token_s_group(self):
        assert of_similarities([-0.3], [0.7]).tolist() == [[1], [1]]

    def test_nan_stays_in_its_row(self):
        weights = of_similarities([0.1, 0.9, 0.4], [0.1, math.nan, 0.4])
        assert torch.equal(weights[0], of_similarities([0.1, 0.9, 0.4])[0])
        assert weights[1].isnan().all()


class TestLoss:
    def test_beside_loops_values_and_gradients(self):
        inputs = features(3, 6, 5), 2 * features(3, 4, 5, seed=1)
        got = values_and_gradients(lambda p, t: sparse_grouping_loss(p, t, SCALE, LENGTHS), *inputs)
        want = values_and_gradients(lambda p, t: plain_loss(p, t, SCALE, LENGTHS), *inputs)
        for x, y in zip(got, want, strict=True):
            assert_close(x, y, 1e-12)

    def test_gradients_by_finite_differences(self):
        inputs = [
            x.requires_grad_() for x in (features(3, 6, 5), features(3, 4, 5, seed=1), torch.tensor(SCALE).double())
        ]
        assert torch.autograd.gradcheck(lambda p, t, s: sparse_grouping_loss(p, t, s, LENGTHS), inputs)

    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
    def test_what_stands_at_the_padding_does_not_matter(self, rubbish):
        patches, tokens = features(3, 6, 5), features(3, 4, 5, seed=1)
        padding = (torch.arange(4) >= LENGTHS[:, None])[..., None]
        loss = lambda p, t: sparse_grouping_loss(p, t, SCALE, LENGTHS)  # noqa: E731
        want = values_and_gradients(loss, patches, tokens)
        got = values_and_gradients(loss, patches, tokens.masked_fill(padding, rubbish))
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        assert got[2].masked_select(padding).abs().sum() == 0

    def test_pairs_do_not_meet(self):
        patches, tokens = features(3, 6, 5), features(3, 4, 5, seed=1)
        each = [sparse_grouping_loss(p[None], t[None], SCALE) for p, t in zip(patches, tokens, strict=True)]
        assert_close(sparse_grouping_loss(patches, tokens, SCALE), torch.stack(each).mean(), 1e-12)

    def test_nan_of_a_pair_spoils_no_other_pair_s_gradient(self):
        patches, tokens = features(3, 6, 5), features(3, 4, 5, seed=1)
        loss = lambda p, t: sparse_grouping_loss(p, t, SCALE)  # noqa: E731
        _, *want = values_and_gradients(loss, patches, tokens)
        patches[1, 2, 0] = math.nan
        value, *got = values_and_gradients(loss, patches, tokens)
        assert value.isnan()
        for x, y in zip(got, want, strict=True):
            assert torch.equal(x[[0, 2]], y[[0, 2]])

    def test_one_token_has_nothing_to_tell_apart(self):
        value, *gradients = values_and_gradients(
            lambda p, t: sparse_grouping_loss(p, t, SCALE), features(2, 6, 5), features(2, 1, 5, seed=1)
        )
        assert value == 0
        assert all(x.abs().max() < 1e-15 for x in gradients)

    def test_one_patch_tells_nothing_apart(self):
        value, *gradients = values_and_gradients(
            lambda p, t: sparse_grouping_loss(p, t, SCALE), features(1, 1, 5), features(1, 4, 5, seed=1)
        )
        assert value > math.log(4)  # each group is the patch: the tokens' half is chance
        assert all(x.isfinite().all() for x in gradients)

    def test_equal_patches_and_repeated_tokens_have_finite_gradients(self):
        patches, tokens = features(1, 1, 5).repeat(1, 6, 1), features(1, 1, 5, seed=1).repeat(1, 4, 1)
        value, *gradients = values_and_gradients(lambda p, t: sparse_grouping_loss(p, t, SCALE), patches, tokens)
        assert value.item() == pytest.approx(math.log(4))
        assert all(x.isfinite().all() for x in gradients)

    def test_autocast_changes_nothing(self):
        inputs = features(3, 6, 5, dtype=torch.float32), features(3, 4, 5, seed=1, dtype=torch.float32)
        want = sparse_grouping_loss(*inputs, SCALE, LENGTHS)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(sparse_grouping_loss(*inputs, SCALE, LENGTHS), want)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    def test_other_dtypes(self, dtype):
        inputs = features(3, 6, 5, dtype=dtype), features(3, 4, 5, seed=1, dtype=dtype)
        got = values_and_gradients(lambda p, t: sparse_grouping_loss(p, t, SCALE, LENGTHS), *inputs)
        want = values_and_gradients(
            lambda p, t: sparse_grouping_loss(p, t, SCALE, LENGTHS), *(x.double() for x in inputs)
        )
        for x, y in zip(got, want, strict=True):
            assert x.dtype == dtype
            assert_close(x.double(), y, 1e-5 if dtype == torch.float32 else 2e-2)


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda p, t: (p[0], t, 1.0), ValueError, r"patches: expected shape \[B, n, d\], .* got \(6, 5\)"),
            (lambda p, t: (p, t[:, :0], 1.0), ValueError, r"tokens: .* none of them 0, got \(3, 0, 5\)"),
            (lambda p, t: (p[:2], t, 1.0), ValueError, r"tokens: expected the B of patches \(2\)"),
            (lambda p, t: (p, t[..., :4], 1.0), ValueError, r"tokens: expected the d of patches \(5\)"),
            (lambda p, t: (p, t.bool(), 1.0), TypeError, "tokens: expected dtype"),
            (lambda p, t: (p, t, 1.0, LENGTHS - 1), ValueError, r"token_lengths: expected lengths in 1..4, got 0..3"),
            (lambda p, t: (p, t, 1.0, [2, 4, 1]), TypeError, "token_lengths: expected a torch.Tensor, got list"),
        ],
    )
    def test_names_the_argument(self, call, error, message):
        with pytest.raises(error, match=message):
            sparse_grouping_loss(*call(features(3, 6, 5), features(3, 4, 5, seed=1)))
