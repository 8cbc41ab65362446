"""The rows of the table: objectives that are trained on the same data, from the same start, for the same steps."""

from dataclasses import dataclass
from typing import Any

from loupe_ext.data import DATASETS
from loupe_ext.objective import ObjectiveConfig
from loupe_ext.train import Config


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    changes: dict[str, Any]  # from the default recipe

    @property
    def objective(self) -> ObjectiveConfig:
        return ObjectiveConfig().but(self.changes)


DATA = DATASETS  # those of the ablation

NO_REGIONS = {"region_phrase": 0.0, "proposal_phrase": 0.0}
CMC = {**NO_REGIONS, "fsa": 0.0, "boxes": 0.0}

ROWS = (
    Row("cmc", "CMC", CMC),
    Row("cmc-fsa", "CMC + FSA (exact)", {**NO_REGIONS, "boxes": 0.0}),
    Row("late", "Late interaction (FILIP-like)", {**CMC, "cmc": 0.0, "late_interaction": 1.0}),
    Row("default-without-fsa", "Default recipe without FSA", {"fsa": 0.0}),
    Row("default", "Default recipe", {}),
)
# The rows that the demo has time for, without `--all`.
SHORT = {"scenes": ("cmc", "default-without-fsa", "default"), "digits": ("default",), "pictograms": ("default",)}
PICTOGRAMS = 0.4  # the share of the steps and of the pairs that it has time for on the pictograms, in the default row


@dataclass(frozen=True)
class Run:
    """One row, trained and evaluated on one data set with one seed."""

    row: Row
    data: str
    seed: int
    steps: int
    train_size: int
    evaluation_scenes: int

    @property
    def key(self) -> str:
        return f"{self.data}-{self.row.key}-{self.seed}"

    @property
    def config(self) -> Config:
        same = {"dataset": self.data, "train_size": self.train_size, "seed": self.seed, "steps": self.steps}
        return Config(name=self.row.key, objective=self.row.objective).but(same)


def plan(seeds: int, steps: int, train_size: int, evaluation_scenes: int, short: bool = False) -> list[Run]:
    """All rows, or those of `SHORT`, on the rendered scenes and the digits, a short default on the pictograms.

    Those that take longest come first.
    """
    few = max(1, round(PICTOGRAMS * steps)), max(min(64, train_size), round(PICTOGRAMS * train_size))
    runs = [
        Run(row, data, seed, *(few if data == "pictograms" else (steps, train_size)), evaluation_scenes)
        for seed in range(seeds)
        for data in DATA
        for row in ROWS
        if row.key in SHORT[data] or not (short or data == "pictograms")
    ]
    return sorted(runs, key=lambda run: run.row.key != "late" and run.data != "pictograms")
