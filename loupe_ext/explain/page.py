"""One page that needs no network: hover a word, see what in the document or the picture goes with it."""

import base64
import io
import json
import math
import os
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import shown
from loupe_ext._io import check_path, write
from loupe_ext.explain.explanations import Explanation
from loupe_ext.extras import needs

LONGEST = 1280  # pixels, of a picture's longer side on the page


class _Page(Template):
    delimiter = "@@"  # a script is full of dollars


def write_page(
    path: str | os.PathLike[str], explanations: Explanation | Sequence[Explanation], title: str | None = None
) -> None:
    """Write explanations, of both kinds if you like, as one HTML file, in one piece.

    The file holds everything: numbers (to four digits), texts, pictures, and the script that draws them. Explanations
    of one query share what is pinned and their scale. A picture needs pillow.

    Raises:
        TypeError, ValueError: `explanations` are none; `title` is no str.
        OSError: `path` cannot be written.
    """
    check_path("path", path)
    if isinstance(explanations, Explanation):
        explanations = [explanations]
    if not isinstance(explanations, Sequence) or not all(isinstance(x, Explanation) for x in explanations):
        raise TypeError(f"explanations: expected explanations of scores, got {shown(explanations)}")
    if not explanations:
        raise ValueError("explanations: expected at least one, got none")
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title: expected a str, got {type(title).__name__}")
    if title is None:
        title = "Why this score" if len(explanations) == 1 else f"Why these {len(explanations)} scores"
    pictures: dict[int, str] = {}  # one image beside many captions is kept once
    stored = [{"kind": x.kind, **_plain(x, pictures)} for x in explanations]
    data = {"pictures": list(pictures.values()), "explanations": stored}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template = _Page(files("loupe_ext.explain").joinpath("page.html").read_text(encoding="utf-8"))
    write(path, template.substitute(title=escape(title).encode("utf-8", "replace").decode(), data=text))


def _plain(value: Any, pictures: dict[int, str]) -> Any:
    """What JSON holds: numbers to four digits, None where one is not finite, of a picture its number."""
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name), pictures) for field in fields(value)}
    if isinstance(value, float):
        return _plain(torch.tensor(value, dtype=torch.float64), pictures)
    if not isinstance(value, Tensor):
        return value
    if value.dtype == torch.uint8:
        pictures[id(value)] = pictures.get(id(value)) or _data_url(value)
        return list(pictures).index(id(value))
    return _finite(_rounded(value).tolist()) if value.is_floating_point() else value.tolist()


def _rounded(value: Tensor) -> Tensor:
    value = value.detach().cpu().double()
    places = 3 - value.abs().log10().floor().nan_to_num(neginf=0.0).clamp(-300, 300)
    unit = 10.0**places
    return (value * unit).round() / unit


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(x) for x in value]
    return value if math.isfinite(value) else None


def _data_url(picture: Tensor) -> str:
    """The picture no larger than a page shows it, as PNG or as JPEG, whichever is smaller."""
    with needs("pillow"):
        from PIL import Image
    image = Image.fromarray(picture.numpy())
    image.thumbnail((LONGEST, LONGEST))
    found = []
    for kind in ("png", "jpeg"):
        file = io.BytesIO()
        image.save(file, kind, quality=88)
        found.append((len(file.getvalue()), kind, file.getvalue()))
    _, kind, content = min(found)
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
