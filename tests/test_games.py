"""A user's own games: `value_function` and `exact` overridden, and what is made of what they return."""

import pytest
import torch

import loupe_ext
from loupe_ext import games

ALL = (torch.arange(2**4)[:, None] >> torch.arange(4) & 1).bool()


class Squares(games.Game):
    """The square of how many players there are: every pair adds 2, every value is 4."""

    def __init__(self, returned=lambda x: x, known=None):
        super().__init__(4)
        self.returned, self.known, self.seen = returned, known, []

    def value_function(self, coalitions):
        self.seen.append(len(coalitions))
        return self.returned(coalitions.sum(1).double().square())

    def exact(self, index="shapley", p=0.5):
        return self.known


KNOWN = 2 * torch.ones(4, 4) + 2 * torch.eye(4)


@pytest.mark.parametrize("options", [{}, {"method": "closed form"}, {"method": "stratified", "control": Squares()}])
def test_interactions_of_a_game_of_ones_own(options):
    if "control" in options:
        options["control"].known = KNOWN
    found = loupe_ext.interactions(Squares(known=KNOWN if "method" in options else None), **options)
    torch.testing.assert_close(found.pairs + torch.diag(found.values), KNOWN.double(), rtol=0, atol=1e-12)
    assert ("closed form" in found.method) == (options.get("method") == "closed form")


def test_values_come_in_batches_in_any_dtype_and_without_gradients():
    weight = torch.tensor(2.0, requires_grad=True)
    game = Squares(lambda x: (x * weight).half())
    game.batch_size = 7
    values = game(ALL)
    assert game.seen == [7, 7, 2]
    assert values.dtype == torch.float64
    assert not values.requires_grad
    torch.testing.assert_close(values, 2 * ALL.sum(1).double().square(), rtol=0, atol=0)


def test_a_value_function_may_change_its_coalitions_and_sees_none_without_any():
    game = games.Function(lambda masks: masks.logical_not_().amax(0)[:1].expand(len(masks)).double(), 3)
    masks = torch.ones(2, 3, dtype=torch.bool)
    game(masks)
    assert masks.all()
    assert game(masks[:0]).shape == (0,)


def test_a_game_without_a_value_function_is_none():
    with pytest.raises(TypeError, match="abstract"):
        games.Game(3)


@pytest.mark.parametrize(
    ("game", "error", "said"),
    [
        (Squares(lambda x: x[:-1]), ValueError, r"value_function: expected a result of shape \[16\], got \(15,\)"),
        (Squares(lambda x: x[:, None]), ValueError, "value_function: expected a result of shape"),
        (Squares(lambda x: x.long()), TypeError, "value_function: expected dtype"),
        (Squares(lambda x: x.tolist()), TypeError, "value_function: expected a torch.Tensor, got list"),
        (games.Function(lambda x: None, 4), TypeError, "function: expected a torch.Tensor, got NoneType"),
        (Squares(known=KNOWN[0]), ValueError, r"exact: expected a result of shape \(4, 4\), got \(4,\)"),
        (Squares(known=KNOWN.long()), TypeError, "exact: expected dtype"),
        (Squares(known=[1.0]), TypeError, "exact: expected a torch.Tensor"),
    ],
)
def test_what_a_game_returns_is_checked(game, error, said):
    with pytest.raises(error, match=f"^{said}"):
        loupe_ext.interactions(game)
    if said.startswith("exact"):
        plan = loupe_ext.plan(4, 16)
        with pytest.raises(error, match=f"^{said}"):
            loupe_ext.aggregate(plan, torch.zeros(16), control=game)
