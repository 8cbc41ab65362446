"""What every public function says of wrong arguments, one at a time; and integers of other kinds than int."""

import numpy as np
import pytest
import torch

import loupe_ext
from loupe_ext import games, losses

GAME = games.MaxMean(torch.rand(2, 3))


def test_integers_of_numpy_are_ints(tmp_path):
    i = np.int64
    planned = loupe_ext.plan(i(8), i(256), seed=i(3))
    assert planned == loupe_ext.plan(8, 256, seed=3)
    planned.save(tmp_path / "plan.json")
    assert loupe_ext.Plan.load(tmp_path / "plan.json") == planned
    assert planned.split(np.uint8(200)) == planned.split(200)  # whose products with lengths overflow 8 bits
    game = games.Function(lambda masks: masks.double().sum(1), i(3), batch=i(2))
    assert type(game.n) is int
    found = loupe_ext.interactions(game, budget=i(8), seed=i(0), order=i(1))
    assert found.pairs is None
    found.save(tmp_path / "found.json")
    assert len(loupe_ext.interactions(GAME).top(i(2))) == 2


@pytest.mark.parametrize("integer", [np.int64, np.uint64, torch.tensor], ids=["int64", "uint64", "a tensor"])
def test_other_integers_draw_the_same(integer):
    for sample in (loupe_ext.sample_coalitions, loupe_ext.sample_permutations):
        numbers = {
            "num_players": 5,
            "num_samples": 4,
            "num_problems": 2,
            "seed": 7,
            "first_problem": 1,
            "first_sample": 2,
        }
        drawn = sample(**{name: integer(n) for name, n in numbers.items()})
        torch.testing.assert_close(drawn, sample(**numbers), rtol=0, atol=0)
    packed = loupe_ext.pack_coalitions(torch.ones(3, 6, dtype=torch.bool))
    assert loupe_ext.unpack_coalitions(packed, integer(6)).shape == (3, 6)
    assert loupe_ext.coalition_moments(packed, torch.ones(3), integer(6)).shape == (6, 6)
    boxes = torch.rand(2, 4)
    assert loupe_ext.boxes_to_regions(boxes, integer(2), integer(3)).shape == (2, 6)
    masks = loupe_ext.boxes_to_regions(boxes, 2, 3)
    given = torch.rand(6, 5), torch.rand(5), masks
    numbers = {"num_samples": 4, "max_samples": 8, "seed": 1, "first_problem": 2}
    found = loupe_ext.region_interactions(*given, standard_error=1e-9, **{k: integer(n) for k, n in numbers.items()})
    expected = loupe_ext.region_interactions(*given, standard_error=1e-9, **numbers)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    scores = torch.rand(2, 3, 4)
    found = losses.sampled_interactions(scores, scores, integer(4), integer(1))
    torch.testing.assert_close(found, losses.sampled_interactions(scores, scores, 4, 1), rtol=0, atol=0)
