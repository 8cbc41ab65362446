"""Captioned pictures: embedded data sets, made on the spot, with true boxes kept apart for evaluation; and streams of
people's own files.
"""

import sys

from loupe_ext._checks import check_choice, check_int
from loupe_ext.data.batch import Batch
from loupe_ext.data.grounded import Grounded
from loupe_ext.data.pairs import PairBatches, Pairs, Vocabulary
from loupe_ext.data.pictures import BadPicture, read_picture
from loupe_ext.data.shards import Shards
from loupe_ext.data.sources import Listing, Sample, Skip, Skipped, Source, read_folder, read_table
from loupe_ext.data.stream import Stream, WordTokenizer, collate

__all__ = [
    "DATASETS",
    "SPLITS",
    "BadPicture",
    "Batch",
    "Grounded",
    "Listing",
    "PairBatches",
    "Pairs",
    "Sample",
    "Shards",
    "Skip",
    "Skipped",
    "Source",
    "Stream",
    "Vocabulary",
    "WordTokenizer",
    "collate",
    "load",
    "read_folder",
    "read_picture",
    "read_table",
]

SPLITS = ("train", "validation", "test")
DATASETS = ("scenes", "digits", "pictograms")
HELD_OUT = "held-out"  # a split of the pictograms alone


def load(name: str, split: str, size: int, seed: int = 0) -> Grounded:
    """The data set `name`: `size` scenes of a split, the same ones for the same seed.

    Args:
        name: "scenes" (coloured shapes), "digits" (handwritten ones) or "pictograms" (everyday things on photographs).
        split: "train", "validation" or "test"; of the pictograms also "held-out", test scenes with names that no other
            split has.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value. ImportError: a package that it needs is missing.
    """
    check_choice("name", name, DATASETS)
    splits = (*SPLITS, HELD_OUT) if name == "pictograms" else SPLITS
    check_choice("split", split, splits)
    size, seed = check_int("size", size, 1, 2**31 - 1), check_int("seed", seed, 0, sys.maxsize)
    if name == "scenes":
        from loupe_ext.data.scenes import rendered_scenes as scenes
    elif name == "digits":
        from loupe_ext.data.digits import digit_scenes as scenes
    else:
        from loupe_ext.data.pictograms import pictogram_scenes as scenes
    return scenes(splits.index(split), size, seed)
