"""`explain_dual_encoder` beside the definition of its game, and what its standard errors and refusals say."""

import functools
import math

import pytest
import torch

from loupe_ext.explain import MaskedEncoder, designs, explain_dual_encoder, fits, within
from python_ref import dual_encoder as ref

INDICES = [("banzhaf", 0.5), ("banzhaf", 0.3), ("shapley", 0.5)]


class Encoder:
    """A nonlinear function of a mask: the direction of a sum of players' vectors and products of neighbours."""

    def __init__(self, n, d=6, seed=0, dtype=torch.float64):
        draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        self.weights, self.pairs, self.bias = draw(n, d), 2 * draw(n, d), 2 * draw(d)
        self.seen, self.dtype = [], dtype

    def __call__(self, masks):
        self.seen.append(masks)
        x = masks.double()
        y = self.bias + x @ self.weights + (x * x.roll(1, 1)) @ self.pairs
        return torch.nn.functional.normalize(y, dim=-1).to(self.dtype)


def sides(m, n, **options):
    return MaskedEncoder(Encoder(m, seed=1, **options), m), MaskedEncoder(Encoder(n, seed=2, **options), n)


def everything(found):
    """All results of an explanation, and all errors."""
    names = [f"{kind}{what}" for kind in ("image_", "text_") for what in ("value", "pair")] + ["pair"]
    names = [name for name in names if getattr(found, f"{name}s") is not None]
    values, errors = (torch.cat([getattr(found, name + end).flatten() for name in names]) for end in ("s", "_errors"))
    return values, errors


@pytest.mark.parametrize(("m", "n"), [(4, 3), (1, 5), (1, 1), (6, 2)])
@pytest.mark.parametrize(("index", "p"), [*INDICES, ("banzhaf", 1e-6)])
def test_enumeration_is_the_definition(m, n, index, p):
    image, text = sides(m, n)
    found = explain_dual_encoder(image, text, index=index, p=p, within=("image", "text"))
    values, pairs = ref.explain(image, text, m, n, index, p)
    for got, want in (
        (found.image_values, values[:m]),
        (found.text_values, values[m:]),
        (found.pairs, pairs[:m, m:]),
        (found.image_pairs, pairs[:m, :m]),
        (found.text_pairs, pairs[m:, m:]),
    ):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    assert everything(found)[1].abs().max() == 0
    assert (found.method, found.image_passes, found.text_passes) == ("exact, by enumeration", 2**m, 2**n)
    ends = [[side(torch.full((1, side.n), there))[0] for side in (image, text)] for there in (True, False)]
    torch.testing.assert_close([found.score, found.baseline], [(f @ g).item() for f, g in ends], rtol=0, atol=1e-12)


@functools.cache
def truth(m, n, index, p, own):
    found = explain_dual_encoder(*sides(m, n), index=index, p=p, within=own, num_coalitions=2 ** max(m, n))
    return everything(found)[0]


@pytest.mark.parametrize(("index", "p"), INDICES)
@pytest.mark.parametrize(("m", "n", "K", "own"), [(10, 9, 128, ()), (10, 3, 256, ("image",)), (4, 10, 128, ("text",))])
def test_errors_are_what_they_say(m, n, K, own, index, p):
    """Over seeds: nothing systematic, and 95 % intervals that cover about as much."""
    image, text = sides(m, n)
    runs = [
        everything(explain_dual_encoder(image, text, index=index, p=p, num_coalitions=K, within=own, seed=seed))
        for seed in range(12)
    ]
    right = truth(m, n, index, p, own)
    off = right != 0  # not the diagonal of a side's own pairs
    errors, deviations = (torch.stack(x)[:, off] for x in zip(*runs, strict=True))
    errors -= right[off]
    assert deviations.min() > 0
    assert errors.square().mean().sqrt() < 0.5 * right.square().mean().sqrt()
    assert 0.9 < (errors.abs() < 1.96 * deviations).double().mean() < 0.998
    if not own:  # a Gaussian process shrinks
        z = errors.mean(0) / (deviations.square().mean(0) / len(runs)).sqrt()
        assert z.abs().max() < 4.5


def test_two_fits_are_the_joint_fit():
    encoders = sides(7, 6)
    drawn = [designs.design(side.n, "banzhaf", 0.5, 0, stream, 40) for stream, side in enumerate(encoders)]
    f, g = (side(d.masks) for side, d in zip(encoders, drawn, strict=True))
    a, b = (fits.fit(d, y, 0.5).players.estimate for d, y in zip(drawn, (f, g), strict=True))
    joint = ref.joint_least_squares(drawn[0].masks, drawn[1].masks, f, g, 0.5)
    torch.testing.assert_close(a @ b.T, joint, rtol=0, atol=1e-11)


@pytest.mark.parametrize("n", [3, 12, 49, 196])
def test_folded_blocks_are_orthogonal(n):
    h = 1 << n.bit_length()
    masks = designs._hadamard(n, 2 * h, 3, 0)
    for block in (2 * masks.double() - 1).split(h):
        assert torch.equal(block.T @ block, h * torch.eye(n, dtype=torch.float64))
    assert not torch.equal(masks[:h], masks[h:])
    assert torch.equal(designs._hadamard(n, h + 3, 3, 0), masks[: h + 3])


@pytest.mark.parametrize(("index", "p"), [("banzhaf", 0.3), ("shapley", 0.5)])
@pytest.mark.parametrize(("n", "K"), [(9, 300), (10, 100), (30, 500)])
def test_coalitions_by_size(n, K, index, p):
    drawn = designs.design(n, index, p, 5, 0, K)
    assert K - n - 2 <= len(drawn.masks) <= K
    assert len(drawn.masks.unique(dim=0)) == len(drawn.masks)
    assert torch.equal(torch.bincount(drawn.masks.sum(1), minlength=n + 1), drawn.counts)
    larger = {tuple(row) for row in designs.design(n, index, p, 5, 0, 2 * K).masks.tolist()}
    assert all(tuple(row) in larger for row in drawn.masks.tolist())
    if index == "shapley":  # all alike, but where there are not so many
        there = torch.tensor([math.comb(n, size) for size in range(n + 1)])
        assert (drawn.counts - torch.minimum(there, drawn.counts.max())).abs().max() <= 1


def test_linear_encoders_are_fitted_without_error():
    f, g = (torch.randn(n, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) for n in (14, 11))
    image, text = (MaskedEncoder(lambda masks, w=w: 1 + masks.double() @ w, len(w)) for w in (f, g))
    for index, p in INDICES:
        found = explain_dual_encoder(image, text, index=index, p=p, num_coalitions=256)
        exact = index == "banzhaf" and p == 0.5  # the others have a ridge
        torch.testing.assert_close(found.pairs, f @ g.T, rtol=1e-11 if exact else 5e-3, atol=1e-11 if exact else 1e-2)
        assert found.pair_errors.max() < (1e-12 if exact else 1e-2)


@pytest.mark.parametrize(("index", "p"), INDICES)
def test_players_that_do_nothing_and_constant_encoders(index, p):
    image, text = sides(5, 4)
    idle = MaskedEncoder(lambda masks: image.function(masks[:, :5]), 12)
    found = explain_dual_encoder(idle, text, index=index, p=p, num_coalitions=200, within=("image",))
    assert (found.pairs[5:].abs() <= 4 * found.pair_errors[5:]).all()
    constant = MaskedEncoder(lambda masks: torch.ones(len(masks), 6), 12)
    found = explain_dual_encoder(constant, text, index=index, p=p, num_coalitions=200, within=("image",))
    assert all(x.abs().max() < 1e-12 for x in (found.pairs, found.pair_errors, found.image_values, found.image_pairs))
    assert found.text_values.abs().max() > 0.1


@pytest.mark.parametrize("p", [5e-324, 1e-12, 1e-6, 1 - 1e-6, 1 - 1e-16])
def test_rare_players_and_rare_absences(p):
    image, text = sides(12, 5)
    found = explain_dual_encoder(image, text, p=p, num_coalitions=200)
    want = explain_dual_encoder(image, text, p=p, num_coalitions=2**12).pairs
    torch.testing.assert_close(found.pairs, want, rtol=0, atol=2e-3)  # the ridge
    inside = explain_dual_encoder(image, text, p=p, num_coalitions=200, within=("image", "text"))
    want = explain_dual_encoder(image, text, p=p, num_coalitions=2**12, within=("image", "text"))
    assert found.p == p
    assert want.image_pairs.abs().max() > 0.1
    assert (inside.image_pairs - want.image_pairs).abs().max() < 0.3 * want.image_pairs.abs().max()
    torch.testing.assert_close(inside.text_pairs, want.text_pairs, rtol=0, atol=2e-3)


def test_a_side_s_own_pairs_do_not_stop_before_they_may():
    image, text = sides(14, 3)
    found = explain_dual_encoder(image, text, num_coalitions=1024, tolerance=10.0, within=("image",))
    assert 14**2 <= found.image_passes < 2 * 14**2


def test_no_coalition_is_embedded_twice_and_an_image_once():
    image, text = sides(12, 5)
    texts = [text, MaskedEncoder(Encoder(11, seed=3), 11), MaskedEncoder(Encoder(12, seed=4), 12)]
    found = explain_dual_encoder(image, texts, num_coalitions=256, batch_size=50)
    for side, passes in ((image, found[0].image_passes), (texts[2], found[2].text_passes)):
        seen = torch.cat(side.function.seen)
        assert len(seen) == len(seen.unique(dim=0)) == passes <= 258
        assert max(map(len, side.function.seen)) <= 50
    masks = torch.cat(image.function.seen), torch.cat(texts[2].function.seen)
    assert not torch.equal(*(x.unique(dim=0) for x in masks))  # each side draws its own
    again = explain_dual_encoder(sides(12, 5)[0], texts[::-1], num_coalitions=256, batch_size=7)
    for one, other in zip(found, again[::-1], strict=True):
        assert all(torch.equal(x, y) for x, y in zip(everything(one), everything(other), strict=True))
    assert not torch.equal(found[0].pairs, explain_dual_encoder(image, text, num_coalitions=256, seed=1).pairs)
    assert explain_dual_encoder(image, []) == []


@pytest.mark.parametrize(("index", "p"), INDICES)
def test_stops_at_the_tolerance(index, p):
    image, text = sides(14, 11)
    every = explain_dual_encoder(image, text, index=index, p=p, num_coalitions=4096)
    tolerance = 3 * every.pair_errors.max().item()
    found = explain_dual_encoder(image, text, index=index, p=p, num_coalitions=4096, tolerance=tolerance)
    assert 0 < found.pair_errors.max() <= tolerance
    assert found.image_passes < every.image_passes
    image, text = sides(14, 11)
    strict = explain_dual_encoder(image, text, index=index, p=p, num_coalitions=4096, tolerance=0)
    assert torch.equal(strict.pairs, every.pairs)
    assert len(torch.cat(image.function.seen)) == strict.image_passes <= 4098


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_embeddings(dtype):
    found = explain_dual_encoder(*sides(9, 4, dtype=dtype), num_coalitions=128)
    assert found.pairs.dtype == torch.float64
    want = explain_dual_encoder(*sides(9, 4), num_coalitions=128).pairs
    torch.testing.assert_close(found.pairs, want, rtol=0, atol=1e-6 if dtype == torch.float32 else 5e-3)


def test_an_encoder_may_reuse_its_buffer():
    image, text = sides(8, 3)
    buffer = torch.empty(64, 6, dtype=torch.float64)
    reusing = MaskedEncoder(lambda masks: buffer[: len(masks)].copy_(image.function(masks)), 8)
    assert torch.equal(explain_dual_encoder(reusing, text).pairs, explain_dual_encoder(image, text).pairs)


def test_bar(capsys):
    pytest.importorskip("rich")
    explain_dual_encoder(*sides(5, 4), progress=True)
    assert capsys.readouterr().out == ""


def test_refusals():
    image, text = sides(12, 40)
    few = MaskedEncoder(Encoder(4, d=5), 4)
    broken = MaskedEncoder(lambda m: torch.where(m.any(1, keepdim=True), 1.0, torch.nan).expand(-1, 6), 3)
    growing = MaskedEncoder(lambda masks: torch.ones(len(masks), 6 if len(masks) == 2 else 5), 12)
    none = MaskedEncoder(Encoder(0), 0)
    for message, arguments, options in (
        (r"image: expected a MaskedEncoder, got str", ("x", text), {}),
        (r"text: expected a MaskedEncoder or a sequence", (image, image.function), {}),
        (r"text\[1\]: expected a MaskedEncoder, got int", (image, [text, 3]), {}),
        (r"image: expected 1 to 1023 players, got 0", (none, text), {}),
        (
            r"num_coalitions: expected at least 128 for the 40 players of text, got 127",
            (image, text),
            {"num_coalitions": 127},
        ),
        (r"expected at least 352 for the 40 players", (image, text), {"num_coalitions": 99, "index": "shapley"}),
        (r"expected at least 1600 for the pairs within the 40 players of text", (image, text), {"within": ["text"]}),
        (r"within: expected 'image' or 'text', got 'both'", (image, text), {"within": ["both"]}),
        (r"text: expected embeddings of the image's length 6, got 5", (image, few), {}),
        (r"image: expected embeddings of one length, got 6 and 5", (growing, text), {"num_coalitions": 128}),
        (r"text\[0\]: expected finite embeddings, .* where 0 of 3 players are there", (image, [broken]), {}),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            explain_dual_encoder(*arguments, **options)
    with pytest.raises(ValueError, match="within: expected at most 90 players of image, got 91"):
        explain_dual_encoder(MaskedEncoder(Encoder(91), 91), image, num_coalitions=2**14, within=("image",))
    assert within.MOST >= 90**2
    assert explain_dual_encoder(image, text, num_coalitions=128).pairs.isfinite().all()
    assert fits.RIDGE < 0.01
