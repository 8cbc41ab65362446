"""torch.func over the ops and over the losses that are built on them."""

import pytest
import torch
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from loupe_ext import (
    coalition_moments,
    maxsim_credit,
    pairwise_interactions,
    region_interactions,
    sample_coalitions,
    shapley_values,
)
from loupe_ext.losses import fsa_loss, late_interaction_loss, late_interaction_similarity
from tests.samples import random_pairs

COALITIONS = sample_coalitions(6, 8)
LENGTHS = torch.tensor([[1, 3], [2, 3], [3, 1]])  # of three calls of two problems
TOKENS = random_pairs(2, 4, 5, 3)


def both(x):
    return torch.cat(shapley_values(x), -1)


def moments(x):
    return coalition_moments(COALITIONS, x.flatten(-2)[..., :8], 6)


def late(x):
    return torch.stack(late_interaction_similarity(x, TOKENS))


def fsa(x, lengths=None, phrase_lengths=None, negatives=True):
    return fsa_loss(x, TOKENS, 3.0, lengths, phrase_lengths, negatives=negatives)


DIFFERENTIABLE = {
    "pairwise": pairwise_interactions,
    "all pairs": lambda x: pairwise_interactions(x, pairs="all"),
    "two directions": lambda x: pairwise_interactions(x, x.cos(), index="banzhaf", p=0.3),
    "lengths": lambda x: pairwise_interactions(x, region_lengths=LENGTHS[0], phrase_lengths=LENGTHS[1]),
    "sides": both,
    "credit": lambda x: maxsim_credit(x, document_lengths=LENGTHS[0], index="banzhaf", p=0.3),
    "moments": moments,
    "late interaction": late,
    "late interaction loss": lambda x: late_interaction_loss(x, TOKENS, 2.0),
    "fsa": fsa,
    "fsa of own phrases": lambda x: fsa(x, LENGTHS[0], negatives=False),
}
ONCE = {name: f for name, f in DIFFERENTIABLE.items() if not name.startswith("fsa")}  # its labels are constants
every = pytest.mark.parametrize("function", DIFFERENTIABLE.values(), ids=DIFFERENTIABLE)
every_once = pytest.mark.parametrize("function", ONCE.values(), ids=ONCE)


def problems(*batch):
    return random_pairs(torch.Size(batch).numel(), 3, 5).view(*batch, 3, 5)


def scalar(function):
    return lambda x: function(x).sin().sum()


def gradient(function, x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(function(x), x)[0]


@every
def test_grad_and_vjp_are_autograd(function):
    x, f = problems(2), scalar(function)
    want = gradient(f, x)
    assert torch.equal(grad(f)(x), want)
    assert torch.equal(vjp(f, x)[1](x.new_ones(()))[0], want)


@every
def test_jacrev_is_a_gradient_for_each_result(function):
    x = problems(2)
    got, results = jacrev(function)(x), function(x).numel()
    want = [gradient(lambda x, k=k: function(x).flatten()[k], x) for k in range(results)]
    torch.testing.assert_close(got.flatten(0, -4) if got.dim() > 3 else got[None], torch.stack(want))


@every
def test_vmap_is_a_loop(function):
    x, f = problems(3, 2), scalar(function)
    assert torch.equal(vmap(function)(x), torch.stack([function(each) for each in x]))
    assert torch.equal(vmap(function, in_dims=2, out_dims=-1)(x.movedim(0, 2)), vmap(function, out_dims=-1)(x))
    want = torch.stack([gradient(f, each) for each in x])
    assert torch.equal(vmap(grad(f))(x), want)
    assert torch.equal(grad(lambda x: vmap(f)(x).sum())(x), want)
    x = x.requires_grad_()  # torch.autograd outside
    assert torch.equal(torch.autograd.grad(vmap(f)(x).sum(), x)[0], want)


def test_vmap_of_vmap_and_of_none():
    x = problems(3, 2)
    want = torch.stack([pairwise_interactions(each, region_lengths=n) for each, n in zip(x, LENGTHS, strict=True)])
    each = vmap(vmap(lambda x, region_lengths: pairwise_interactions(x, region_lengths=region_lengths)))
    assert torch.equal(each(x, LENGTHS), want)
    assert vmap(pairwise_interactions)(x[:0]).shape == x[:0].shape


def test_vmap_over_what_has_no_batch_dimension():
    held = torch.stack([sample_coalitions(6, 8, seed=seed) for seed in range(3)])
    values, offsets = random_pairs(1, 3, 8)[0], torch.tensor([[0, 2, 8], [0, 0, 8], [0, 8, 8]])

    def call(held, values, offsets):
        return coalition_moments(held, values, 6, offsets=offsets)

    every = list(zip(held, values, offsets, strict=True))
    assert torch.equal(vmap(call)(held, values, offsets), torch.stack([call(*each) for each in every]))
    weighted = lambda values, held, offsets: call(held, values, offsets).sin().sum()  # noqa: E731
    want = torch.stack([gradient(lambda v, h=h, o=o: weighted(v, h, o), v) for h, v, o in every])
    assert torch.equal(vmap(grad(weighted))(values, held, offsets), want)
    with pytest.raises(RuntimeError, match="loupe::moments: vmap expected a dimension of at least one"):
        vmap(call)(held[:0], values[:0], offsets[:0])


@pytest.mark.parametrize("negatives", [False, True])
def test_vmap_over_lengths_of_a_loss(negatives):
    x = problems(3, 2)
    got = vmap(grad(lambda x, n: fsa(x, n, n, negatives)))(x, LENGTHS)
    want = [gradient(lambda x, n=n: fsa(x, n, n, negatives), each) for each, n in zip(x, LENGTHS, strict=True)]
    torch.testing.assert_close(got, torch.stack(want))
    with pytest.raises(ValueError, match=r"region_lengths: expected lengths in 1\.\.3, got 2\.\.4"):
        vmap(fsa)(x, LENGTHS + 1)


def test_gradients_of_a_model_per_sample():
    model, x = torch.nn.Linear(5, 5).double(), problems(4)
    tokens = TOKENS[:1]

    def loss(parameters, x):
        return fsa_loss(functional_call(model, parameters, x[None]), tokens, 3.0)

    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = vmap(grad(loss), in_dims=(None, 0))(parameters, x)["weight"]
    want = [torch.autograd.grad(loss(dict(model.named_parameters()), each), model.weight)[0] for each in x]
    torch.testing.assert_close(got, torch.stack(want))


@pytest.mark.parametrize("game", ["pooled-cosine", "late-interaction"])
def test_labels_of_regions(game):
    patches, masks = random_pairs(6, 6, 4).view(3, 2, 6, 4), random_pairs(2, 3, 6) > 0
    text = patches[0, :, 0] if game == "pooled-cosine" else patches[0, :, :3]

    def call(x, **options):
        return region_interactions(x, text, masks, game=game, num_samples=8, **options)[0]

    torch.testing.assert_close(vmap(call)(patches), torch.stack([call(x) for x in patches]))
    assert not jacrev(call)(patches[0]).any()
    assert not jacfwd(call)(patches[0]).any()
    if game == "pooled-cosine":
        with pytest.raises(RuntimeError, match="standard_error: region_interactions expected None"):
            vmap(lambda x: call(x, standard_error=0.1, max_samples=32))(patches)


@every_once
def test_forward_mode_names_the_op(function):
    x = problems(2)
    refused = pytest.raises(RuntimeError, match=r"forward-mode .* by (loupe::|late_)|^(loupe::|late_)\w+: forward-mode")
    for call in (
        lambda: jvp(function, (x,), (x,)),
        lambda: jacfwd(function)(x),
        lambda: hessian(scalar(function))(x),
        lambda: jvp(vmap(function), (x[None],), (x[None],)),
    ):
        with refused:
            call()


@every_once
def test_double_backward_names_the_op(function):
    with pytest.raises(RuntimeError, match=r"^(loupe::|late_).* has no derivative: double backward"):
        grad(scalar(grad(scalar(function))))(problems(2))


def test_forward_mode_of_a_loss_whose_labels_are_constants():
    x = problems(2)
    torch.testing.assert_close(jvp(fsa, (x,), (x,))[1], (gradient(fsa, x) * x).sum())
    torch.testing.assert_close(jacfwd(jacrev(fsa))(x), jacrev(jacrev(fsa))(x))
