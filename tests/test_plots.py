"""Pictures of explanations show the numbers that they are of; and shapiq takes the numbers."""

import numpy as np
import pytest
import torch

from tests.explained import dual, late, picture_players, text_players

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def closed():
    yield
    matplotlib.pyplot.close("all")


def test_a_heat_map_is_darkest_where_the_word_has_most():
    explanation = dual()
    word = explanation.pairs[:, 2]
    axes = explanation.plot("on")
    over = axes.images[1].get_array()
    opacity = torch.from_numpy(np.asarray(over[..., 3])).flatten()
    assert torch.allclose(opacity, 0.85 * word.abs() / word.abs().max(), atol=1e-6)
    red, blue = over[..., 0].flatten(), over[..., 2].flatten()
    assert np.array_equal(red > blue, word.numpy() > 0)
    assert axes.get_title() == "interaction with “on”"
    by_number = explanation.plot(2).images[1].get_array()
    assert np.array_equal(over, by_number)


def test_cells_without_a_player_stay_clear():
    image = picture_players()
    image.cells[0, 0] = -1
    assert dual(image).plot().images[1].get_array()[0, 0, 3] == 0


@pytest.mark.parametrize("word", [None, "dog"])
def test_a_text_is_coloured_where_its_players_are(word):
    text = "a dog and " + "a very " * 20 + "green frog"
    explanation = late(text_players(text))
    axes = explanation.plot(word)
    values = explanation.credit[:, 1:].sum(1) if word is None else explanation.credit[:, 2]
    boxes = axes.patches
    assert len(boxes) == len(text.split()) + 1  # [CLS] too
    assert "".join(letter.get_text() for letter in axes.texts).startswith("adogandavery")
    darkest = min(boxes, key=lambda box: box.get_facecolor()[2])
    which = 1 + values[1:].argmax().item()
    assert darkest.get_width() == len(explanation.document.names[which])
    assert all(box.get_x() + box.get_width() <= 56 for box in boxes)


def test_bars_are_the_top_pairs_of_content():
    explanation = late()
    axes = explanation.plot_bars(3)
    content = explanation.credit[1:, 1:]
    assert torch.tensor([bar.get_width() for bar in axes.patches]).equal(content.flatten().sort(descending=True)[0][:3])
    assert not any("[CLS]" in label.get_text() for label in axes.get_yticklabels())
    axes = dual().plot_bars(4)
    assert axes.containers[1].has_xerr
    names = [f"{one} & {other}" for one, other, _, _ in dual().top(4)]
    assert [label.get_text() for label in axes.get_yticklabels()] == names


@pytest.mark.parametrize("explanation", [late(), late(picture_players(special=2)), dual()])
def test_links_are_as_many_and_as_wide_as_asked(explanation):
    lines = explanation.plot_links(5).lines
    assert len(lines) == 5
    assert max(line.get_linewidth() for line in lines) == 4.5


def test_a_nan_stays_in_its_own_pair():
    explanation = dual()
    explanation.pairs[3, 1] = torch.nan
    assert "patch 3 & dog" not in [label.get_text() for label in explanation.plot_bars(100).get_yticklabels()]
    over = explanation.plot("dog").images[1].get_array()
    assert np.allclose(over[0, 3], [0.5, 0.5, 0.5, 0.85], atol=0.01)  # grey
    assert np.array_equal(explanation.plot("on").images[1].get_array(), dual().plot("on").images[1].get_array())


def test_a_dollar_is_a_dollar():
    explanation = dual(text=text_players("$\\frac{$ from $5_ to $6", special=False))
    for axes in (explanation.plot(0), explanation.plot_links(), explanation.plot_bars(100)):
        axes.figure.canvas.draw()


def test_wrong_arguments_are_named():
    explanation = dual(text=text_players("the cat on the mat", special=False))
    for word, said in (("dog", "the name of 0"), ("the", r"the name of 2 \(give its number\)"), (7, "0 to 4, got 7")):
        with pytest.raises(ValueError, match=f"word: expected .*{said}"):
            explanation.plot(word)
    with pytest.raises(TypeError, match="word: expected an int"):
        explanation.plot(1.5)
    for method in (explanation.plot_bars, explanation.plot_links):
        with pytest.raises(ValueError, match="k: expected 1 to"):
            method(0)


@pytest.mark.parametrize("within", [False, True])
def test_shapiq_takes_a_dual_encoders_explanation(within):
    pytest.importorskip("shapiq")
    explanation = dual(within=within, image_passes=64, text_passes=16)
    found = explanation.to_shapiq()
    m = explanation.image.n
    assert (found.index, found.estimated, found.estimation_budget) == ("BII", True, 80)
    assert found.baseline_value == explanation.baseline
    assert found[(3,)] == explanation.image_values[3]
    assert found[(m + 1,)] == explanation.text_values[1]
    assert found[(3, m + 1)] == explanation.pairs[3, 1]
    assert found[(1, 3)] == (explanation.image_pairs[1, 3] if within else 0)
    assert found[(m, m + 2)] == (explanation.text_pairs[0, 2] if within else 0)
    with pytest.raises(ValueError, match=r"p: expected 0\.5"):
        dual(p=0.3).to_shapiq()
