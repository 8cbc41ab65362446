"""Pictures of explanations, by matplotlib: a heat map, links between the two sides, bars of the top pairs."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from loupe_ext._checks import check_int, shown
from loupe_ext.explain.explanations import DualEncoderExplanation, Explanation, LateInteractionExplanation
from loupe_ext.explain.players import Players
from loupe_ext.extras import needs

MORE, LESS = "#d55e00", "#0072b2"  # told apart by everyone
PLAIN: Any = {"parse_math": False}  # a price of $5 is no formula
WIDTH = 56  # characters in a line of a text


class Sides(NamedTuple):
    """What both kinds have: a document or image of m players, a query or caption of n, and what each pair has."""

    one: Players
    other: Players
    matrix: Tensor  # [m, n]
    errors: Tensor  # [m, n]
    values: Tensor  # [m]
    name: str


def sides(explanation: Explanation) -> Sides:
    if isinstance(explanation, LateInteractionExplanation):
        content = ~torch.tensor(explanation.query.special)
        values = explanation.credit[:, content].sum(1)
        errors = torch.zeros_like(explanation.credit)
        return Sides(explanation.document, explanation.query, explanation.credit, errors, values, "credit")
    assert isinstance(explanation, DualEncoderExplanation)
    x = explanation
    return Sides(x.image, x.text, x.pairs, x.pair_errors, x.image_values, "interaction")


def heat_map(explanation: Explanation, word: str | int | None = None, axes: Any = None) -> Any:
    """The picture or the text, coloured by what each part has with a word; None: by its value (credit in all).

    Args:
        word: of the query or caption, by name or, where several have one name, by number.
        axes: matplotlib's; None: new ones.

    Returns:
        The axes. Special tokens are left white, NaN is grey.
    """
    one, other, matrix, _, values, name = sides(explanation)
    title = f"{name} over the whole query" if name == "credit" else "value of each part"
    if word is not None:
        at = _number(other, word)
        values, title = matrix[:, at], f"{name} with “{other.names[at]}”"
    values = values.masked_fill(torch.tensor(one.special), 0.0)
    axes, colours = _axes(axes), _colours(values)
    if one.picture is not None:
        _over_picture(axes, one, values, colours)
    else:
        _over_text(axes, one, values, colours)
    axes.set_title(title, **PLAIN)
    axes.figure.colorbar(colours, ax=axes, shrink=0.8)
    return axes


def links(explanation: Explanation, k: int = 10, axes: Any = None) -> Any:
    """Lines between the parts of the `k` largest pairs, as wide as their interactions are large, on `axes`."""
    found = sides(explanation)
    axes, pairs = _axes(axes), top(found, k)
    most = max((abs(x) for _, _, x, _ in pairs), default=0.0) or 1.0
    if found.one.picture is None:
        left = _listed(axes, found.one, sorted({i for i, _, _, _ in pairs}), 0.45, "right")
    else:
        axes.imshow(_grey(found.one.picture), extent=(-1.0, 0.5, 0.0, 1.0), cmap="gray", vmin=0, vmax=255)
        left = {i: _centre(found.one, i) for i, _, _, _ in pairs}
    words = [j for j in range(found.other.n) if not found.other.special[j]]
    right = _listed(axes, found.other, words if len(words) <= 16 else sorted({j for _, j, _, _ in pairs}), 1.05, "left")
    for i, j, x, _ in reversed(pairs):
        if left[i] is not None:
            ends = tuple(zip(left[i], right[j], strict=True))
            axes.plot(*ends, color=MORE if x > 0 else LESS, linewidth=0.5 + 4 * abs(x) / most, alpha=0.75, marker=".")
    axes.set(xlim=(-1.05, 1.6), ylim=(-0.03, 1.03), aspect="auto" if found.one.picture is None else _aspect(found.one))
    axes.axis("off")
    axes.set_title(f"largest of {found.name}: {most:.3g}")
    return axes


def bars(explanation: Explanation, k: int = 10, axes: Any = None) -> Any:
    """The `k` largest pairs, on `axes`: with standard errors, or beside winner-takes-all for late interaction."""
    found = sides(explanation)
    axes, pairs = _axes(axes), top(found, k)
    places = range(len(pairs))
    values = [x for _, _, x, _ in pairs]
    axes.barh(places, values, color=[MORE if x > 0 else LESS for x in values], label=found.name)
    if isinstance(explanation, LateInteractionExplanation):
        winners = [explanation.winners[i, j].item() for i, j, _, _ in pairs]
        axes.plot(winners, places, "o", markerfacecolor="none", color="black", label="winner takes all")
        axes.legend()
    elif any(error > 0 for _, _, _, error in pairs):
        axes.errorbar(values, places, xerr=[error for *_, error in pairs], fmt="none", color="black", capsize=3)
    axes.set_yticks(places, [f"{found.one.names[i]} & {found.other.names[j]}" for i, j, _, _ in pairs], **PLAIN)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set_xlabel(found.name)
    return axes


def _axes(axes: Any) -> Any:
    with needs("matplotlib"):
        import matplotlib.pyplot as plt
    return plt.subplots(layout="constrained")[1] if axes is None else axes


def _colours(values: Tensor) -> Any:
    """White at 0, one hue above it and, where there is any, another below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import LinearSegmentedColormap, Normalize

    most = values.nan_to_num().abs().max().item() or 1.0
    signed = bool((values < -0.005 * most).any())
    hues = LinearSegmentedColormap.from_list("loupe", [LESS, "white", MORE] if signed else ["white", MORE], bad="grey")
    return ScalarMappable(Normalize(-most if signed else 0.0, most), hues)


def _over_picture(axes: Any, one: Players, values: Tensor, colours: Any) -> None:
    assert one.picture is not None
    assert one.cells is not None
    height, width, _ = one.picture.shape
    area = (0, width, height, 0)
    axes.imshow(_grey(one.picture), extent=area, cmap="gray", vmin=0, vmax=255)
    colour = torch.from_numpy(colours.to_rgba(values.double().numpy()))
    limit = max(abs(colours.norm.vmin), colours.norm.vmax)
    colour[:, 3] = (values.abs() / limit).nan_to_num(1.0).clamp(max=1.0) * 0.85
    none = torch.zeros(1, 4, dtype=colour.dtype)  # the last: where the cells have no player, -1
    axes.imshow(torch.cat([colour, none])[one.cells].numpy(), extent=area, interpolation="nearest")
    axes.axis("off")


def _over_text(axes: Any, one: Players, values: Tensor, colours: Any) -> None:
    from matplotlib.patches import Rectangle

    text, spans = _written(one)
    lines = list(_lines(text))
    for i, pieces in enumerate(spans):
        for start, stop in pieces:
            for row, (first, last) in enumerate(lines):
                low, high = max(start, first), min(stop, last)
                if low < high:
                    colour = colours.to_rgba(float(values[i]))
                    axes.add_patch(Rectangle((low - first, row - 0.45), high - low, 0.9, color=colour, linewidth=0))
    axes.set(xlim=(0, WIDTH), ylim=(max(len(lines), 10) - 0.4, -0.6))
    inches = axes.get_window_extent().width / axes.figure.dpi
    size = 0.9 * min(14.0, 72 * inches / WIDTH / 0.602)  # of which a letter of this family is .602 wide
    for row, (first, last) in enumerate(lines):
        for at, letter in enumerate(text[first:last]):
            if not letter.isspace():
                axes.text(at + 0.5, row, letter, family="monospace", size=size, ha="center", va="center")
    axes.axis("off")


def _written(one: Players) -> tuple[str, list[list[tuple[int, int]]]]:
    """The text and where each player is in it; those that are not in it are named on a line of their own."""
    text = one.text or ""
    spans = [list(of) for of in one.spans or [()] * one.n]
    absent = [i for i in range(one.n) if not any(start < stop for start, stop in spans[i])]
    text += "\n" if text and absent else ""
    for i in absent:
        spans[i] = [(len(text), len(text) + len(one.names[i]))]
        text += one.names[i] + " "
    return text, spans


def _lines(text: str) -> Iterator[tuple[int, int]]:
    """First and one after the last character of each line of at most WIDTH, broken at spaces if there are any."""
    for paragraph in re.finditer(r"[^\n]+", text):
        at, end = paragraph.span()
        while end - at > WIDTH:
            space = text.rfind(" ", at + 1, at + WIDTH + 1)
            stop = at + WIDTH if space < 0 else space + 1
            yield at, min(stop, at + WIDTH)
            at = stop
        yield at, end


def _listed(axes: Any, players: Players, shown: list[int], x: float, align: str) -> dict[int, Any]:
    """Names one below the other; where each is."""
    places = {i: (x, 1 - (at + 0.5) / len(shown)) for at, i in enumerate(shown)}
    for i, (_, y) in places.items():
        at = x + (0.02 if align == "left" else -0.02)
        axes.text(at, y, players.names[i], ha=align, va="center", fontsize=8, **PLAIN)
    return places


def _centre(one: Players, i: int) -> tuple[float, float] | None:
    assert one.cells is not None
    rows, columns = one.cells.shape
    y, x = (one.cells == i).nonzero().double().add(0.5).mean(0).tolist()
    return None if x != x else (-1 + 1.5 * x / columns, 1 - y / rows)


def _aspect(one: Players) -> float:
    """Of a picture that is 1.5 wide and 1 high in the axes' units."""
    assert one.picture is not None
    return 1.5 * one.picture.shape[0] / one.picture.shape[1]


def _grey(picture: Tensor) -> Any:
    return picture.double().mean(2).mul(0.75).add(64).numpy()


def top(found: Sides, k: int) -> list[tuple[int, int, float, float]]:
    """The largest pairs of content, as (i, j, interaction, standard error); without NaN."""
    k = check_int("k", k, 1, 2**31)
    special = torch.tensor(found.one.special)[:, None] | torch.tensor(found.other.special)
    size = found.matrix.abs().masked_fill(special, -1.0).nan_to_num(-1.0).flatten()
    order = [at for at in size.argsort(descending=True, stable=True)[:k].tolist() if size[at] >= 0]
    places = [divmod(at, found.other.n) for at in order]
    return [(i, j, found.matrix[i, j].item(), found.errors[i, j].item()) for i, j in places]


def _number(players: Players, word: object) -> int:
    if not isinstance(word, str):
        return check_int("word", word, 0, players.n - 1)
    count = players.names.count(word)
    if count != 1:
        got = f"{shown(word)}, the name of {count}" + (" (give its number)" if count else "")
        raise ValueError(f"word: expected the name of one word, got {got}")
    return players.names.index(word)
