"""Rendered scenes: three to five objects of several shapes, colours and sizes on a textured background.

A caption names two or three of the objects, each by colour, shape and (unless medium) size. A scene belongs to a split
by its content: the set of its objects (colour, shape and size of each) hashes to one split, so no test scene has the
objects of a training scene, whatever the seeds and sizes of the sets.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from loupe_ext.data.compose import (
    CHUNK,
    COMMON_WORDS,
    OBJECTS,
    Drawn,
    Ints,
    Layout,
    assemble,
    noun_phrase,
    paste,
    place,
    textures,
    window,
)
from loupe_ext.data.grounded import Grounded
from loupe_ext.data.pairs import Vocabulary

Reals = NDArray[np.floating]

COLOURS = {
    "red": (214, 40, 40),
    "orange": (245, 130, 32),
    "yellow": (250, 220, 50),
    "green": (50, 160, 70),
    "blue": (45, 90, 210),
    "purple": (125, 55, 165),
    "pink": (245, 140, 190),
    "white": (245, 245, 245),
}
SIZES = {"small": (6.0, 7.0), "medium": (7.5, 9.0), "large": (9.5, 12.0)}  # radius in pixels


def _star(x: Reals, y: Reals) -> Reals:
    fifth = 2 * np.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)  # from the nearest of the five points
    radius = np.hypot(x, y)
    valley = 0.45 * np.array([np.cos(fifth / 2), np.sin(fifth / 2)])
    normal = np.array([valley[1], 1 - valley[0]]) / np.hypot(valley[1], 1 - valley[0])
    return (radius * np.cos(angle) - 1) * normal[0] + radius * np.sin(angle) * normal[1]


def _heart(x: Reals, y: Reals) -> Reals:
    x = np.abs(x)
    lobes = np.hypot(x - 0.36, y + 0.21) - 0.51
    return np.minimum((x + np.abs(y - 0.15) - 0.72) / np.sqrt(2), lobes)


# Signed distance to the outline (exact near it) of a shape in the unit circle, negative inside; y points down.
SHAPES: dict[str, Callable[[Reals, Reals], Reals]] = {
    "circle": lambda x, y: np.hypot(x, y) - 0.92,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.82,
    "triangle": lambda x, y: np.maximum(y - 0.6, 0.866 * np.abs(x) - 0.5 * y - 0.5),
    "star": _star,
    "cross": lambda x, y: np.minimum(
        np.maximum(np.abs(x) - 0.3, np.abs(y) - 0.92), np.maximum(np.abs(x) - 0.92, np.abs(y) - 0.3)
    ),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.68) - 0.26,
    "heart": _heart,
    "moon": lambda x, y: np.maximum(np.hypot(x, y) - 0.95, 0.8 - np.hypot(x - 0.5, y)),
}

PHRASES = [
    noun_phrase(*([] if size == "medium" else [size]), colour, shape)
    for colour in COLOURS
    for shape in SHAPES
    for size in SIZES
]
CLASSES = tuple(noun_phrase(colour, shape) for colour in COLOURS for shape in SHAPES)  # whatever the size
VOCABULARY = Vocabulary([*COMMON_WORDS, *COLOURS, *SHAPES, "small", "large"])
LONGEST = 14  # words: three phrases of four, and two joints


def split_of(layout: Layout) -> Ints:
    """The split of each scene by the set of its objects: 0 training (8 of 10), 1 validation, 2 test."""
    keys = np.random.default_rng(0).integers(2**63, size=len(PHRASES))
    content = np.bitwise_xor.reduce(np.where(layout.present, keys[layout.kinds], 0), axis=1)  # Zobrist hashing
    return np.maximum(content % 10 - 7, 0)


def _lay_out(rng: np.random.Generator) -> Layout:
    fewest, most = OBJECTS
    few = 3  # colours and shapes in a scene, so that its objects look alike, yet each colour and shape means one
    colours, shapes = (rng.random((CHUNK, len(of))).argsort(axis=1)[:, :few] for of in (COLOURS, SHAPES))
    pairs = rng.random((CHUNK, few * few)).argsort(axis=1)[:, :most]
    looks = np.take_along_axis(colours, pairs // few, 1) * len(SHAPES) + np.take_along_axis(shapes, pairs % few, 1)
    sizes = rng.integers(len(SIZES), size=looks.shape)
    low, high = np.array(list(SIZES.values()), np.float32).T
    radii = low[sizes] + (high - low)[sizes] * rng.random(looks.shape, dtype=np.float32)
    return place(rng.integers(fewest, most + 1, CHUNK), looks * len(SIZES) + sizes, radii, rng)


def _draw(rng: np.random.Generator, split: int) -> Drawn:
    layout = _lay_out(rng)
    layout = layout.select(split_of(layout) == split)
    n, most = layout.kinds.shape
    looks = layout.kinds // len(SIZES)
    colours = np.array(list(COLOURS.values()), np.float32)[looks // len(SHAPES)] / 255
    colours += rng.normal(0, 0.03, colours.shape).astype(np.float32)
    angles = rng.uniform(-0.25, 0.25, (n, most)).astype(np.float32)
    images = textures(n, rng)
    boxes = np.full((n, most, 4), np.nan, np.float32)
    width = 2 * int(SIZES["large"][1]) + 2
    for k in range(most):
        for s, distance in enumerate(SHAPES.values()):
            (scenes,) = np.nonzero(layout.present[:, k] & (looks[:, k] % len(SHAPES) == s))
            centres, radii = layout.centres[scenes, k], layout.radii[scenes, k, None, None]
            left, top = window(centres, width)
            x = (left[:, None, :] + 0.5 - centres[:, 0, None, None]) / radii
            y = (top[:, :, None] + 0.5 - centres[:, 1, None, None]) / radii
            cos, sin = np.cos(angles[scenes, k, None, None]), np.sin(angles[scenes, k, None, None])
            outside = distance(cos * x + sin * y, cos * y - sin * x) * radii
            covers = np.clip(0.5 - outside, 0, 1).astype(np.float32)
            shaded = colours[scenes, k, None, None] * (1 - 0.15 * y[..., None])
            boxes[scenes, k] = paste(images, scenes, covers, shaded.astype(np.float32), centres)
    return Drawn(images, layout, boxes, looks, PHRASES.__getitem__)


def rendered_scenes(split: int, size: int, seed: int) -> Grounded:
    """`size` scenes of a split (0 training, 1 validation, 2 test), the same ones for the same seed."""
    return assemble(lambda rng: _draw(rng, split), VOCABULARY, LONGEST, size, (seed, split), CLASSES)
