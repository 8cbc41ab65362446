"""What both data sets share: places for objects, textured backgrounds, pasting, captions, and sets made in chunks.

A caption belongs to one split, by a hash of its words, and none comes twice among the scenes that judge a model: so it
is judged on captions that it has not seen, each of which is one scene's alone.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from loupe_ext.data.grounded import Grounded
from loupe_ext.data.pairs import Pairs, Vocabulary

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]

SIDE = 64  # pixels
OBJECTS = (3, 5)  # fewest and most in a scene
APART = 500  # scenes of validation and test, from the first on, among which no caption comes twice; then the next ones
TRIES = 8  # choices of what a caption names, before a scene is left out
CHUNK = 1024  # scenes tried with one random generator, so that a set's first scenes don't depend on its size
COMMON_WORDS = ("a", "an", "and", ",", "above", "below", "left", "right", "of")


@dataclass
class Layout:
    """The objects of n scenes: their kinds (a data set's own numbering), radii and centres; absent from `counts` on."""

    counts: Ints  # [n]
    kinds: Ints  # [n, most]
    radii: Floats  # [n, most], pixels
    centres: Floats  # [n, most, 2], x and y in pixels

    def __len__(self) -> int:
        return len(self.counts)

    def select(self, keep: Mask) -> "Layout":
        return Layout(self.counts[keep], self.kinds[keep], self.radii[keep], self.centres[keep])

    @property
    def present(self) -> Mask:
        return np.arange(self.kinds.shape[1]) < self.counts[:, None]


@dataclass
class Drawn:
    """Some scenes of a chunk: images [n, SIDE, SIDE, 3] in 0..1, their layout, tight boxes [n, most, 4] and names."""

    images: Floats
    layout: Layout
    boxes: Floats
    classes: Ints  # [n, most], the class of each kind
    name: Callable[[int], str]  # the phrase of a kind


def place(counts: Ints, kinds: Ints, radii: Floats, rng: np.random.Generator, gap: float = 1.0) -> Layout:
    """Random centres for objects in circles inside the image, `gap` apart. Scenes where one fails are left out."""
    n, most = radii.shape
    tries = 24
    centres = np.zeros((n, most, 2), np.float32)
    placed = np.ones(n, bool)
    for k in range(most):
        margin = radii[:, k, None, None]
        tried = margin + (SIDE - 2 * margin) * rng.random((n, tries, 2), dtype=np.float32)
        apart = np.hypot(*np.moveaxis(tried[:, :, None] - centres[:, None, :k], -1, 0))
        free = (apart > radii[:, None, :k] + radii[:, k, None, None] + gap).all(-1)
        placed &= free.any(1) | (k >= counts)
        centres[:, k] = tried[np.arange(n), free.argmax(1)]
    return Layout(counts, kinds, radii, centres).select(placed)


def textures(n: int, rng: np.random.Generator, side: int = SIDE) -> Floats:
    """Backgrounds [n, side, side, 3]: a muted colour, soft blotches and slanted waves."""
    at = (np.arange(side, dtype=np.float32) + 0.5) / side
    base = rng.uniform(0.25, 0.65, (n, 1, 1, 1)) + rng.uniform(-0.08, 0.08, (n, 1, 1, 3))
    cells = 7
    hat = np.maximum(0, 1 - np.abs(at[:, None] * (cells - 1) - np.arange(cells))).astype(np.float32)  # bilinear
    blotches = np.einsum("yi,nijc,xj->nyxc", hat, rng.normal(0, 0.07, (n, cells, cells, 3)), hat, optimize=True)
    slant = rng.uniform(0, 2 * np.pi, (n, 1, 1))
    along = np.cos(slant) * at + np.sin(slant) * at[:, None]
    waves = np.sin(2 * np.pi * (rng.uniform(2, 9, (n, 1, 1)) * along + rng.random((n, 1, 1))))
    return (base + blotches + (rng.uniform(0, 0.08, (n, 1, 1)) * waves)[..., None]).astype(np.float32)


def paste(images: Floats, scenes: Ints, covers: Floats, colours: Floats, centres: Floats) -> Floats:
    """Blend one object into each of the images at `scenes` [m], and return its box [m, 4], tight around what was drawn.

    `covers` [m, w, w] says how much of a pixel the object covers, in the window of w pixels that `window` places;
    `colours` broadcasts to [m, w, w, 3].
    """
    left, top = window(centres, covers.shape[-1])
    here = (scenes[:, None, None], top[:, :, None], left[:, None, :])
    images[here] += covers[..., None] * (colours - images[here])
    solid = covers > 0.5
    across, down = np.any(solid, axis=1), np.any(solid, axis=2)
    x0, y0 = left[:, 0] + across.argmax(1), top[:, 0] + down.argmax(1)
    x1, y1 = left[:, -1] + 1 - across[:, ::-1].argmax(1), top[:, -1] + 1 - down[:, ::-1].argmax(1)
    return np.stack([x0, y0, x1, y1], -1).astype(np.float32)


def window(centres: Floats, width: int) -> tuple[Ints, Ints]:
    """The pixel columns and rows [m, width] of windows around centres [m, 2], pushed inside the image."""
    origin = np.clip((centres - width / 2).round(), 0, SIDE - width).astype(np.int64)
    return origin[:, 0, None] + np.arange(width), origin[:, 1, None] + np.arange(width)


def noun_phrase(*words: str) -> str:
    """The words behind their article."""
    article = "an" if words[0][0] in "aeiou" and words[0] != "one" else "a"
    return " ".join([article, *words])


def relation(first: Floats, second: Floats) -> str:
    """Where the centre (x, y) `first` lies, seen from `second`: on the axis on which they are farther apart."""
    dx, dy = second - first
    if abs(dx) > abs(dy):
        return "left of" if dx > 0 else "right of"
    return "above" if dy > 0 else "below"


def caption(phrases: list[str], centres: Floats, relations: bool = False) -> tuple[str, list[tuple[int, int]]]:
    """A caption and the span of words of each phrase.

    "a X above a Y" or "a X , a Y and a Z"; with `relations`, "a X above a Y and left of a Z".
    """
    if relations or len(phrases) == 2:
        where = [relation(centres[0], other) for other in centres[1:]]
        joints = [where[0], *(f"and {joint}" for joint in where[1:])]
    else:
        joints = [","] * (len(phrases) - 2) + ["and"]
    words: list[str] = []
    spans = []
    for phrase, joint in zip(phrases, [*joints, ""], strict=True):
        start = len(words)
        words += phrase.split()
        spans.append((start, len(words)))
        words += joint.split()
    return " ".join(words), spans


def split_of_caption(text: str) -> int:
    """0 training (8 of 10), 1 validation, 2 test."""
    return max(0, zlib.crc32(text.encode()) % 10 - 7)


def assemble(
    draw: Callable[[np.random.Generator], Drawn],
    vocabulary: Vocabulary,
    longest: int,
    size: int,
    key: tuple[int, int],
    prompts: tuple[str, ...],
    relations: bool = False,
) -> Grounded:
    """A set of `size` captioned scenes of a split, from as many chunks of `draw` as it takes; `key` seeds them.

    Each caption names two or three of its scene's objects, in random order; with `relations` (of `caption`) three.
    Captions are padded to `longest` words. `prompts` names the classes.
    """
    images = torch.empty(size, 3, SIDE, SIDE, dtype=torch.uint8)
    words = torch.zeros(size, longest, dtype=torch.int64)
    spans = torch.zeros(size, 3, 2, dtype=torch.int64)
    boxes = torch.full((size, 3, 4), torch.nan)
    lengths = torch.zeros(size, dtype=torch.int64)
    objects = torch.full((size, OBJECTS[1], 4), torch.nan)
    classes = torch.full((size, OBJECTS[1]), -1)
    fewest, split = 3 if relations else 2, key[1]
    said: set[str] = set()
    filled = chunk = 0
    while filled < size:
        rng = np.random.default_rng((*key, chunk))
        drawn = draw(rng)
        noisy = drawn.images + 0.02 * rng.standard_normal(drawn.images.shape, dtype=np.float32)
        pixels = torch.from_numpy((np.clip(noisy, 0, 1) * 255).round().astype(np.uint8)).permute(0, 3, 1, 2)
        there = np.where(drawn.layout.present, drawn.classes, -1)
        layout = zip(drawn.layout.counts, drawn.layout.kinds, drawn.layout.centres, strict=True)
        for k, (count, kinds, centres) in enumerate(layout):
            if filled % APART == 0:
                said.clear()
            for _ in range(TRIES):
                named = rng.permutation(count)[: rng.integers(fewest, 4)]
                text, where = caption([drawn.name(kind) for kind in kinds[named]], centres[named], relations)
                if split_of_caption(text) == split and text not in said:
                    break
            else:
                continue
            if split:
                said.add(text)
            ids = vocabulary.encode(text)
            images[filled] = pixels[k]
            words[filled, : len(ids)] = torch.tensor(ids)
            spans[filled, : len(where)] = torch.tensor(where)
            boxes[filled, : len(where)] = torch.from_numpy(drawn.boxes[k][named])
            objects[filled] = torch.from_numpy(drawn.boxes[k])
            classes[filled] = torch.from_numpy(there[k])
            lengths[filled] = len(where)
            filled += 1
            if filled == size:
                break
        chunk += 1
    return Grounded(Pairs(images, words, spans, lengths, vocabulary), boxes, objects, classes, prompts)
