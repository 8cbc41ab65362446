"""Embedded data sets of captioned scenes, made on the spot, with true boxes kept apart for evaluation."""

from loupe_ext.data.pairs import Batch, Grounded, Pairs, Vocabulary

__all__ = ["DATASETS", "SPLITS", "Batch", "Grounded", "Pairs", "Vocabulary", "load"]

SPLITS = ("train", "validation", "test")
DATASETS = ("scenes", "digits")


def load(name: str, split: str, size: int, seed: int = 0) -> Grounded:
    """The data set `name` ("scenes" or "digits"): `size` scenes of a split, the same ones for the same seed."""
    if split not in SPLITS:
        raise ValueError(f"split: expected one of {SPLITS}, got {split!r}")
    if not isinstance(size, int) or isinstance(size, bool) or size < 1:
        raise ValueError(f"size: expected a positive int, got {size!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed: expected an int, 0 or more, got {seed!r}")
    if name == "scenes":
        from loupe_ext.data.scenes import rendered_scenes

        return rendered_scenes(SPLITS.index(split), size, seed)
    if name == "digits":
        from loupe_ext.data.digits import digit_scenes

        return digit_scenes(SPLITS.index(split), size, seed)
    raise ValueError(f"name: expected one of {DATASETS}, got {name!r}")
