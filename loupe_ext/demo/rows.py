"""The rows of the table: objectives that are trained on the same data, from the same start, for the same steps."""

from dataclasses import dataclass
from typing import Any

from loupe_ext.train.config import Config


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    changes: dict[str, Any]  # from the preset `tiny`, the default recipe


# Box thresholds were chosen on validation scenes: with FSA, heat falls off sooner from its peak.
ROWS = (
    Row("cmc", "CMC", {"region_phrase": 0.0, "fsa": 0.0, "boxes": 0.0}),
    Row("cmc-fsa", "CMC + FSA (exact)", {"region_phrase": 0.0, "boxes": 0.0}),
    Row(
        "late",
        "Word-patch late interaction (FILIP-like)",
        {"cmc": 0.0, "late_interaction": 1.0, "region_phrase": 0.0, "fsa": 0.0, "boxes": 0.0},
    ),
    Row("cmc-fsa-boxes", "CMC + FSA (exact) + boxes", {"region_phrase": 0.0}),
    Row("default-without-fsa", "Default without FSA", {"fsa": 0.0, "box_threshold": 0.5}),
    Row("default", "Default: CMC + region-phrase + FSA (exact) + boxes", {}),
)


@dataclass(frozen=True)
class Run:
    """One row, trained and evaluated on one data set with one seed."""

    row: Row
    data: str
    seed: int
    steps: int
    evaluation_scenes: int

    @property
    def key(self) -> str:
        return f"{self.data}-{self.row.key}-{self.seed}"

    @property
    def config(self) -> Config:
        return Config(name=self.row.key, data=self.data, seed=self.seed, steps=self.steps, **self.row.changes)


def plan(seeds: int, steps: int, evaluation_scenes: int, digits: tuple[str, ...]) -> list[Run]:
    """All rows on the rendered scenes, and the rows named in `digits` on the digits; the slowest first."""
    runs = [
        Run(row, data, seed, steps, evaluation_scenes)
        for seed in range(seeds)
        for data in ("scenes", "digits")
        for row in ROWS
        if data == "scenes" or row.key in digits
    ]
    return sorted(runs, key=lambda run: run.row.key != "late")
