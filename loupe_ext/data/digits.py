"""Scenes of real handwritten digits, three to five on a textured background: "a three above a seven and left of a one".

The digits are the 1797 images of scikit-learn's `load_digits` (8 x 8 pixels, UCI "Optical Recognition of Handwritten
Digits"), cut once into training (6 of 10), validation and test images; a split's scenes hold only its own images.
"""

import functools

import numpy as np
from numpy.typing import NDArray

from loupe_ext.data.compose import (
    CHUNK,
    COMMON_WORDS,
    OBJECTS,
    Drawn,
    Floats,
    Ints,
    assemble,
    noun_phrase,
    paste,
    place,
    textures,
    window,
)
from loupe_ext.data.grounded import Grounded
from loupe_ext.data.pairs import Vocabulary
from loupe_ext.extras import needs

NUMERALS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(noun_phrase(numeral) for numeral in NUMERALS)
VOCABULARY = Vocabulary([*COMMON_WORDS, *NUMERALS])
LONGEST = 11  # words: three phrases of two, "left of" and "and left of"
PIXEL = (1.8, 2.7)  # smallest and largest size of a digit's own pixel, in the scene's pixels


@functools.cache
def handwritten() -> tuple[Floats, Ints]:
    """Images [1797, 8, 8] in 0..1 and the digits [1797] they show."""
    with needs("scikit-learn"):
        from sklearn.datasets import load_digits
    data = load_digits()
    return (data.images / 16).astype(np.float32), data.target.astype(np.int64)


def images_of(split: int) -> Ints:
    """Which of the handwritten digits belong to a split: 0 training, 1 validation, 2 test."""
    order = np.random.default_rng(0).permutation(len(handwritten()[1]))
    fifth = len(order) // 5
    return np.split(order, [3 * fifth, 4 * fifth])[split]


def _weights(pixels: Ints, centres: Floats, scales: Floats) -> NDArray[np.float32]:
    """Bilinear weights [m, w, 8] of a digit's 8 rows (or columns) at the scene's pixels [m, w]."""
    at = (pixels + 0.5 - centres[:, None]) / scales[:, None] + 3.5
    return np.maximum(0, 1 - np.abs(at[..., None] - np.arange(8))).astype(np.float32)


def _draw(rng: np.random.Generator, split: int) -> Drawn:
    digits, labels = handwritten()
    ours = images_of(split)
    fewest, most = OBJECTS
    shown = rng.random((CHUNK, 10)).argsort(axis=1)[:, :most]  # distinct: a phrase means one digit
    of_digit = [ours[labels[ours] == digit] for digit in range(10)]
    kinds = np.select([shown == digit for digit in range(10)], [rng.choice(of, shown.shape) for of in of_digit])
    low, high = 4 * PIXEL[0], 4 * PIXEL[1]
    radii = low + (high - low) * rng.random(shown.shape, dtype=np.float32)
    layout = place(rng.integers(fewest, most + 1, CHUNK), kinds, radii, rng)
    n = len(layout)
    images = textures(n, rng)
    inks = rng.uniform(0.8, 1, (n, most, 3)).astype(np.float32)  # lighter than any background
    boxes = np.full((n, most, 4), np.nan, np.float32)
    width = 2 * int(high) + 4
    for k in range(most):
        (scenes,) = np.nonzero(layout.present[:, k])
        centres, scales = layout.centres[scenes, k], layout.radii[scenes, k] / 4
        left, top = window(centres, width)
        across, down = _weights(left, centres[:, 0], scales), _weights(top, centres[:, 1], scales)
        ink = down @ digits[layout.kinds[scenes, k]] @ across.transpose(0, 2, 1)
        covers = np.clip((ink - 0.25) / 0.4, 0, 1)
        boxes[scenes, k] = paste(images, scenes, covers, inks[scenes, k, None, None], centres)
    return Drawn(images, layout, boxes, labels[layout.kinds], lambda kind: CLASSES[labels[kind]])


def digit_scenes(split: int, size: int, seed: int) -> Grounded:
    """`size` scenes of a split (0 training, 1 validation, 2 test), the same ones for the same seed."""
    return assemble(lambda rng: _draw(rng, split), VOCABULARY, LONGEST, size, (seed, split), CLASSES, relations=True)
