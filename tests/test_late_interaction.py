"""late_interaction_similarity and its loss, beside loops over the definition."""

import math

import pytest
import torch
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from loupe_ext.losses import late_interaction_loss
from loupe_ext.ops import late_interaction, late_interaction_similarity
from python_ref import losses as naive
from tests.backends import assert_close
from tests.test_losses import features, values_and_gradients

REGION_LENGTHS, TOKEN_LENGTHS = torch.tensor([6, 2]), torch.tensor([2, 4, 1])


def pairs(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    """Two images of up to 6 regions and three captions of up to 4 tokens, with the lengths above."""
    return features(2, 6, 5, dtype=dtype), features(3, 4, 5, seed=1, dtype=dtype)


def ragged(regions: torch.Tensor, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return late_interaction_similarity(regions, tokens, REGION_LENGTHS, TOKEN_LENGTHS)


def weighted(similarity):
    """A scalar in which every pair of either direction has a share of its own."""

    def loss(regions, tokens):
        by_region, by_token = similarity(regions, tokens)
        shares = torch.arange(1, 1 + 2 * by_region.numel(), dtype=by_region.dtype).view(2, *by_region.shape)
        return (shares * torch.stack([by_region, by_token]).sin()).sum()

    return loss


@pytest.fixture(params=[1, 50, 1 << 21], ids=["block-of-a-pair", "small-blocks", "one-block"])
def block(request, monkeypatch):
    monkeypatch.setattr(late_interaction, "CPU_BLOCK", request.param)


@pytest.mark.usefixtures("block")
class TestAgainstLoops:
    def test_values_and_gradients(self):
        got = values_and_gradients(weighted(late_interaction_similarity), *pairs())
        everything = torch.tensor([6, 6]), torch.tensor([4, 4, 4])
        want = values_and_gradients(weighted(lambda r, t: naive.late_interaction(r, t, *everything)), *pairs())
        for x, y in zip(got, want, strict=True):
            assert_close(x, y, 1e-12)

    @pytest.mark.parametrize("sizes", [(1, 1, 3, 2), (4, 1, 1, 5), (3, 2, 4, 1), (1, 7, 1, 3)])
    def test_other_sizes(self, sizes):
        Bi, M, Bt, N = sizes
        inputs = features(Bi, M, 3), features(Bt, N, 3, seed=1)
        similarity = lambda r, t: torch.einsum("imd,cnd->imcn", r, t)  # noqa: E731
        plain = lambda r, t: (similarity(r, t).amax(3).mean(1), similarity(r, t).amax(1).mean(2))  # noqa: E731
        got = values_and_gradients(weighted(late_interaction_similarity), *inputs)
        for x, y in zip(got, values_and_gradients(weighted(plain), *inputs), strict=True):
            assert_close(x, y, 1e-12)

    def test_lengths_on_both_sides(self):
        lengths = REGION_LENGTHS, TOKEN_LENGTHS
        for x, y in zip(ragged(*pairs()), naive.late_interaction(*pairs(), *lengths), strict=True):
            assert_close(x, y, 1e-12)
        want = values_and_gradients(weighted(lambda r, t: naive.late_interaction(r, t, *lengths)), *pairs())
        for x, y in zip(values_and_gradients(weighted(ragged), *pairs()), want, strict=True):
            assert_close(x, y, 1e-12)

    def test_each_length_alone(self):
        regions, tokens = pairs()
        for m, n in ((REGION_LENGTHS, None), (None, TOKEN_LENGTHS.int())):
            own = torch.tensor([6, 6]) if m is None else m, torch.tensor([4, 4, 4]) if n is None else n
            want = naive.late_interaction(regions, tokens, *own)
            for x, y in zip(late_interaction_similarity(regions, tokens, m, n), want, strict=True):
                assert_close(x, y, 1e-12)

    def test_gradients_by_finite_differences(self):
        inputs = [x.requires_grad_() for x in pairs()]
        assert torch.autograd.gradcheck(ragged, inputs)

    def test_one_of_everything(self):
        region, token = features(1, 1, 3), features(1, 1, 3, seed=1)
        for x in late_interaction_similarity(region, token):
            assert x.shape == (1, 1)
            assert x.item() == pytest.approx((region * token).sum().item(), rel=1e-12)

    @pytest.mark.parametrize("rubbish", [math.nan, math.inf, 1e30])
    def test_what_stands_at_the_padding_does_not_matter(self, rubbish):
        regions, tokens = pairs()
        at_regions = (torch.arange(6) >= REGION_LENGTHS[:, None])[..., None]
        at_tokens = (torch.arange(4) >= TOKEN_LENGTHS[:, None])[..., None]
        want = values_and_gradients(weighted(ragged), regions, tokens)
        spoilt = regions.masked_fill(at_regions, rubbish), tokens.masked_fill(at_tokens, rubbish)
        got = values_and_gradients(weighted(ragged), *spoilt)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))
        assert got[1].masked_select(at_regions).abs().sum() == got[2].masked_select(at_tokens).abs().sum() == 0

    def test_nan_stays_in_its_row_and_column(self):
        regions, tokens = pairs()
        want = late_interaction_similarity(regions, tokens)
        regions[1, 3, 2] = math.nan
        for x, y in zip(late_interaction_similarity(regions, tokens), want, strict=True):
            assert torch.equal(x[0], y[0])
            assert x[1].isnan().all()
        tokens[2, 0, 0] = math.nan
        for x, y in zip(late_interaction_similarity(regions, tokens), want, strict=True):
            assert torch.equal(x[0, :2], y[0, :2])
            assert x[:, 2].isnan().all()


class TestGradients:
    def test_of_several_best_matches_the_first_gets_the_gradient(self):
        regions, tokens = features(1, 1, 3).repeat(1, 3, 1), features(1, 1, 3).repeat(1, 2, 1)
        both = lambda r, t: sum(late_interaction_similarity(r, t)).sum()  # noqa: E731
        _, to_regions, to_tokens = values_and_gradients(both, regions, tokens)
        assert to_tokens[0].norm(dim=1).tolist() == pytest.approx([1.5, 0.5])  # all the regions' share, and its own
        assert to_regions[0].norm(dim=1).tolist() == pytest.approx([4 / 3, 1 / 3, 1 / 3])

    def test_padding_wins_nothing_by_a_rounding_error(self):
        regions, tokens = features(7, 49, 37, dtype=torch.float32), features(9, 33, 37, dtype=torch.float32)
        one = torch.ones(7, dtype=torch.int64), torch.ones(9, dtype=torch.int64)
        both = lambda r, t: sum(late_interaction_similarity(r, t, *one)).sum()  # noqa: E731
        _, to_regions, to_tokens = values_and_gradients(both, regions, tokens)
        assert to_regions[:, 1:].abs().sum() == to_tokens[:, 1:].abs().sum() == 0
        assert_close(to_regions[:, 0], 2 * tokens[:, 0].sum(0).expand(7, -1), 1e-5)

    def test_of_features_that_are_not_contiguous(self):
        regions, tokens = pairs()
        crossed = lambda r, t: weighted(late_interaction_similarity)(r.mT.contiguous().mT, t[:1].expand(3, -1, -1))  # noqa: E731
        plain = lambda r, t: weighted(late_interaction_similarity)(r, t[:1].repeat(3, 1, 1))  # noqa: E731
        for x, y in zip(
            values_and_gradients(crossed, regions, tokens), values_and_gradients(plain, regions, tokens), strict=True
        ):
            assert_close(x, y, 1e-12)

    def test_of_one_direction_alone(self):
        regions, tokens = (x.requires_grad_() for x in pairs())
        by_region = late_interaction_similarity(regions, tokens)[0].sum()
        want = naive.late_interaction(regions, tokens, torch.tensor([6, 6]), torch.tensor([4, 4, 4]))[0].sum()
        for x, y in zip(*(torch.autograd.grad(v, (regions, tokens)) for v in (by_region, want)), strict=True):
            assert_close(x, y, 1e-12)

    def test_a_second_derivative_is_refused(self):
        regions, tokens = (x.requires_grad_() for x in pairs())
        loss = late_interaction_similarity(regions, tokens)[0].square().sum()
        (grad,) = torch.autograd.grad(loss, regions, create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            grad.sum().backward()


class TestPrecision:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_computed_in_float32(self, dtype):
        inputs = pairs(dtype)
        got = values_and_gradients(lambda r, t: ragged(r, t)[1].float().sum(), *inputs)
        want = values_and_gradients(lambda r, t: ragged(r.float(), t.float())[1].to(dtype).float().sum(), *inputs)
        assert ragged(*inputs)[0].dtype == got[1].dtype == got[2].dtype == dtype
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))

    def test_float32(self):
        for x, y in zip(ragged(*pairs(torch.float32)), ragged(*pairs()), strict=True):
            assert_close(x.double(), y, 1e-5)

    def test_autocast_changes_nothing(self):
        inputs = pairs(torch.float32)
        want = values_and_gradients(weighted(ragged), *inputs)
        with torch.autocast("cpu", torch.bfloat16):
            got = values_and_gradients(weighted(ragged), *inputs)
        assert all(torch.equal(x, y) for x, y in zip(got, want, strict=True))


def test_all_similarities_are_never_held_at_once(monkeypatch):
    Bi, Bt, M, N = 12, 16, 64, 10
    monkeypatch.setattr(late_interaction, "CPU_BLOCK", 6 * M * N)
    everything, largest, saved = Bi * Bt * M * N, [0], []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, arguments=(), options=None):
            out = op(*arguments, **(options or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                largest.append(x.numel() if isinstance(x, torch.Tensor) else 0)
            return out

    def keep(x):
        saved.append(x)
        return x

    regions = features(Bi, M, 4, dtype=torch.float32).requires_grad_()
    tokens = features(Bt, N, 4, dtype=torch.float32).requires_grad_()
    with Sizes(), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        sum(x.sum() for x in late_interaction_similarity(regions, tokens)).backward()
    assert max(largest) < everything / 8
    storages = {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in saved}
    assert Bi * Bt * (M + N) < sum(storages.values()) < everything  # bytes: a quarter of what those cosines take


def test_torch_compile_traces_it_whole():
    loss = weighted(lambda r, t: late_interaction_similarity(2 * r, t))
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    got, want = (values_and_gradients(f, *pairs()) for f in (compiled, loss))
    for x, y in zip(got, want, strict=True):
        assert_close(x, y, 1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_cuda(dtype, monkeypatch):
    inputs = normalize(torch.randn(9, 49, 32), dim=-1).to(dtype), normalize(torch.randn(7, 30, 32), dim=-1).to(dtype)
    loss = weighted(lambda r, t: late_interaction_similarity(r, t, None, torch.arange(1, 8, device=r.device)))
    want = values_and_gradients(loss, *inputs)
    monkeypatch.setattr(late_interaction, "GPU_BLOCK", 6 * 49 * 30)
    with torch.device("cuda"):
        got = values_and_gradients(loss, *(x.cuda() for x in inputs))
    for x, y in zip(got, want, strict=True):
        assert_close(x.cpu(), y, 1e-4 if dtype == torch.float32 else 1e-12)


class TestLoss:
    def test_scores_each_way_by_its_own_similarity(self):
        regions, tokens = features(3, 6, 5), features(3, 4, 5, seed=1)
        lengths = torch.tensor([6, 2, 3]), TOKEN_LENGTHS
        by_region, by_token = naive.late_interaction(regions, tokens, *lengths)
        got = late_interaction_loss(regions, tokens, 5.0, *lengths)
        assert_close(got, naive.contrast(5 * by_region, 5 * by_token), 1e-12)


class TestBadInput:
    @pytest.mark.parametrize(
        ("call", "error", "message"),
        [
            (lambda x, y: (x[:, :0], y), ValueError, r"regions: expected shape .* got \(2, 0, 5\)"),
            (lambda x, y: (x, y[0]), ValueError, r"tokens: expected shape \[B, N, d\], .* got \(4, 5\)"),
            (lambda x, y: (x, y[..., :3]), ValueError, r"tokens: expected the d of regions \(5\)"),
            (lambda x, y: (x, y.bool()), TypeError, "tokens: expected dtype"),
            (lambda x, y: (x.long(), y), TypeError, "regions: expected dtype"),
            (lambda x, y: (x, y, TOKEN_LENGTHS), ValueError, r"region_lengths: expected shape \(2,\)"),
            (lambda x, y: (x, y, None, REGION_LENGTHS), ValueError, r"token_lengths: expected shape \(3,\)"),
            (
                lambda x, y: (x, y, REGION_LENGTHS + 1),
                ValueError,
                r"region_lengths: expected lengths in 1..6, got 3..7",
            ),
            (lambda x, y: (x, y, None, [2, 4, 1]), TypeError, "token_lengths: expected a torch.Tensor, got list"),
        ],
    )
    def test_names_the_argument(self, call, error, message):
        with pytest.raises(error, match=message):
            late_interaction_similarity(*call(*pairs()))
