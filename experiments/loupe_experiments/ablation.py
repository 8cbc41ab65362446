"""The ablation: one objective a row, on every data set, for equal steps and then for equal time."""

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loupe_experiments import table
from loupe_experiments.report import TITLES
from loupe_experiments.rows import DATA, NO_REGIONS, Row, Run
from loupe_experiments.runs import Result, perform_all, stored
from loupe_ext._io import write
from loupe_ext.data import load
from loupe_ext.extras import needs
from loupe_ext.train import Config, fit

NO_FSA = {"fsa": 0.0}
CMC = {**NO_REGIONS, **NO_FSA}
LATE = {"late_interaction": 1.0}
TSA = {"tsa": 1.0}
LITERAL = {"tsa": 1.0, "literal": True}
BY_GRADIENT = {"regions": "proposals", "proposal_phrase": 0.0, "boxes": 0.0}

# Every row learns its boxes from its own heat, as the default recipe does; but for those by gradient, the paper's
# objective among them, whose boxes are the regions of the other losses.
ROWS = (
    Row("cmc", "CMC", CMC),
    Row("cmc-late", "CMC + late interaction (FILIP-like)", {**CMC, **LATE}),
    Row("cmc-sparc", "CMC + sparse grouping (SPARC-like)", {**CMC, "sparse_grouping": 1.0}),
    Row("cmc-tsa", "CMC + TSA", {**CMC, **TSA}),
    Row("cmc-tsa-literal", "CMC + TSA, the paper's sign", {**CMC, **LITERAL}),
    Row("cmc-fsa", "CMC + FSA, exact", NO_REGIONS),
    Row("cmc-fsa-sampled", "CMC + FSA, sampled (64)", {**NO_REGIONS, "fsa.source": "sampled", "fsa.coalitions": 64}),
    Row("cmc-fsa-unsil", "CMC + FSA, UNSIL", {**NO_REGIONS, "fsa.source": "unsil"}),
    Row("cmc-tsa-fsa", "CMC + TSA + FSA", {**NO_REGIONS, **TSA}),
    Row("cmc-tsa-fsa-late", "CMC + TSA + FSA + late interaction", {**NO_REGIONS, **TSA, **LATE}),
    Row("paper", "The paper's objective", {**NO_REGIONS, **LITERAL, **BY_GRADIENT}),
    Row("default", "Default recipe", {}),
    Row("default-without-fsa", "Default recipe without FSA", NO_FSA),
    Row("default-tsa", "Default recipe + TSA", TSA),
    Row("default-windows", "Default recipe, phrases with windows alone", {"proposal_phrase": 0.0}),
    Row("default-heat-boxes", "Default recipe, boxes of heat without colour", {"boxes.colour": 0.0}),
    Row("default-tsa-gradient-boxes", "Default recipe + TSA, boxes by gradient alone", {**TSA, **BY_GRADIENT}),
)
HEADS = {
    "i2t_r1": "I→T R@1",
    "t2i_r1": "T→I R@1",
    "pointing": "Pointing",
    "pointing_shuffled": "(shuffled)",
    "acc50": "Acc@.5",
    "miou": "mIoU",
    "proposal_acc50": "Prop. Acc@.5",
    "proposal_miou": "Prop. mIoU",
    "recall": "Prop. recall",
    "ap30": "AP@.3",
    "ap50": "AP@.5",
    "milliseconds_per_step": "ms/step",
    "steps": "Steps",
}
PLOTTED = ("i2t_r1", "pointing", "acc50", "proposal_miou")
COLOURS = {"scenes": "#2563eb", "digits": "#d97706", "pictograms": "#7c3aed"}
STEPS, TIME = "equal steps", "equal time"  # the passes
ROUNDS, TIMED = 5, 5  # of the pace: how often all rows take their turn, and for how many steps


@dataclass(frozen=True)
class Trial(Run):
    """A run of either pass; one of as many steps in both is the same run."""

    @property
    def key(self) -> str:
        return f"{super().key}-{self.steps}"


@dataclass(frozen=True)
class Ablation:
    """`rows` x `data` x seeds, trained for `steps` of them, and with `equal_time` for the default recipe's time.

    Raises:
        ValueError: a data set or row that does not exist, no default recipe to take the time from, or a size too small.
    """

    seeds: int
    steps: int
    train_size: int
    evaluation_scenes: int
    data: tuple[str, ...] = DATA
    rows: tuple[str, ...] = tuple(row.key for row in ROWS)
    equal_time: bool = False

    def __post_init__(self) -> None:
        for name, known in (("data", DATA), ("rows", tuple(row.key for row in ROWS))):
            if not set(getattr(self, name)) <= set(known):
                raise ValueError(f"{name}: expected some of {', '.join(known)}, got {', '.join(getattr(self, name))}")
        if self.equal_time and "default" not in self.rows:
            raise ValueError(f"rows: expected default among them, for equal time, got {', '.join(self.rows)}")

        # What is wrong for every row is said before any starts.
        Config().but(steps=self.steps, train_size=self.train_size)

    def runs(self) -> list[Trial]:
        """The runs of equal steps, a whole seed after the other."""
        return [
            Trial(row, data, seed, self.steps, self.train_size, self.evaluation_scenes)
            for seed in range(self.seeds)
            for data in DATA
            for row in ROWS
            if data in self.data and row.key in self.rows
        ]

    def perform(self, out: Path, workers: int) -> list[tuple[Run, Exception]]:
        """Make the runs that are not yet stored in `out`, and write there all results so far.

        Writes "runs.csv", every run unrounded; "table.md", means and standard deviations over seeds; "ablation.png".

        Returns:
            The runs that failed, and why.
        """
        failures: list[tuple[Run, Exception]] = []

        def failed(run: Run, error: Exception) -> None:
            failures.append((run, error))

        runs = self.runs()
        passes = {STEPS: perform_all(runs, out, workers, failed)}
        self._write(passes, out, workers)
        if self.equal_time:
            pace = paces([run for run in runs if stored(run, out) is not None], out / "pace.json")
            passes[TIME] = perform_all(equal_time(runs, pace), out, workers, failed)
            self._write(passes, out, workers)
        return failures

    def _write(self, passes: dict[str, list[Result]], out: Path, workers: int) -> None:
        write(out / "runs.csv", comma_separated(passes))
        write(out / "table.md", f"{self._facts(passes, workers)}\n{markdown(passes)}")
        write(out / "ablation.png", plot(passes))

    def _facts(self, passes: dict[str, list[Result]], workers: int) -> str:
        command = f"loupe ablate --seeds {self.seeds} --steps {self.steps} --pairs {self.train_size}"
        command += f" --scenes {self.evaluation_scenes} --workers {workers}"
        if set(self.data) != set(DATA):
            command += f" --data {' '.join(self.data)}"
        if len(set(self.rows)) < len(ROWS):
            command += f" --rows {' '.join(self.rows)}"
        if self.equal_time:
            command += " --equal-time"
        results = [result for found in passes.values() for result in found]
        machines = sorted({f"{r['cpu']}, {r['cores']} cores" for r in results})
        versions = sorted({f"Python {r['python']}, torch {r['torch']}" for r in results})
        dates = sorted({r["date"] for r in results})
        when = " to ".join(dict.fromkeys([*dates[:1], *dates[-1:]]))
        return (
            f"`{command}`; mean ± standard deviation over seeds, percent; the time of a step is its run's median.\n"
            f"{'; '.join([*machines, *versions])}; one thread a run; {when}.\n"
        )


def paces(runs: Sequence[Trial], path: Path) -> dict[tuple[str, str], float]:
    """By row and data set of `runs`, how long a step takes, as a multiple of the default recipe's.

    All rows take a few steps in turn, with one thread, so that what else the machine does slows all of them: the median
    over `ROUNDS` of the ratio within a round. What was measured is kept at `path`. A data set whose runs lack the
    default recipe has no pace.
    """
    known = json.loads(path.read_text()) if path.exists() else {}
    found: dict[tuple[str, str], float] = {}
    for data in dict.fromkeys(run.data for run in runs):
        configs = {run.row.key: run.config.but(seed=0, steps=TIMED) for run in runs if run.data == data}
        if "default" not in configs:
            continue
        compared = {row: [config.to_yaml(), configs["default"].to_yaml()] for row, config in configs.items()}
        todo = [row for row in configs if known.get(f"{data}-{row}", {}).get("compared") != compared[row]]
        if todo:
            seconds = _seconds_per_step(data, {row: configs[row] for row in ("default", *todo)})
            for row in todo:
                ratios = [own / default for own, default in zip(seconds[row], seconds["default"], strict=True)]
                known[f"{data}-{row}"] = {"compared": compared[row], "pace": statistics.median(ratios)}
            write(path, json.dumps(known, indent=1))
        found |= {(row, data): known[f"{data}-{row}"]["pace"] for row in configs}
    return found


def _seconds_per_step(data: str, configs: Mapping[str, Config]) -> dict[str, list[float]]:
    """Of each configuration in every round."""
    pairs = load(data, "train", 4 * max(config.optim.batch_size for config in configs.values())).pairs
    seconds: dict[str, list[float]] = {row: [] for row in configs}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(ROUNDS):
            for row, config in configs.items():
                seconds[row].append(fit(pairs, config, log_every=1).seconds_per_step)
    finally:
        torch.set_num_threads(threads)
    return seconds


def equal_time(runs: Sequence[Trial], pace: Mapping[tuple[str, str], float]) -> list[Trial]:
    """`runs` with as many steps as take as long as the default recipe's take on the same data, by `paces`.

    A run without a pace is left out.
    """
    return [
        replace(run, steps=max(1, round(run.steps / pace[run.row.key, run.data])))
        for run in runs
        if (run.row.key, run.data) in pace
    ]


def markdown(passes: dict[str, list[Result]]) -> str:
    """A table for each data set and pass."""
    sections = []
    for data, title in TITLES.items():
        for name, results in passes.items():
            found = table.lines(results, data, ROWS)
            if found:
                sections.append(f"**{title}, {name}**\n\n{table.markdown(found, HEADS)}\n")
    return "\n".join(sections)


def comma_separated(passes: dict[str, list[Result]]) -> str:
    """Every run, unrounded, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    facts = ("data", "row", "seed", "steps", "threshold", "centred", "milliseconds_per_step")
    circumstances = ("cpu", "cores", "python", "torch", "date")
    metrics = list(dict.fromkeys([*table.COLUMNS, *(name for name in HEADS if name not in table.COUNTS)]))
    writer.writerow(["pass", *facts, *metrics, *circumstances])
    for name, results in passes.items():
        for result in results:
            values = [result["metrics"].get(metric, "") for metric in metrics]
            writer.writerow([name, *(result[f] for f in facts), *values, *(result[c] for c in circumstances)])
    return out.getvalue()


def plot(passes: dict[str, list[Result]]) -> bytes:
    """A PNG with a panel a metric and a line a row: every seed a small dot, their mean a large one.

    Dots of equal steps are full, those of equal time, just below, hollow.
    """
    with needs("matplotlib"):
        from matplotlib.figure import Figure
    present = {result["row"] for results in passes.values() for result in results}
    rows = [row for row in ROWS if row.key in present]
    figure = Figure(figsize=(13, 1.6 + 0.42 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(PLOTTED), sharey=True)
    shifts = {which: i for i, which in enumerate((data, name) for data in DATA for name in passes)}
    handles = {}
    for axes, metric in zip(panels, PLOTTED, strict=True):
        for (data, name), i in shifts.items():
            shift = 0.6 * ((i + 0.5) / len(shifts) - 0.5)
            for y, row in enumerate(rows):
                values = [
                    100 * result["metrics"][metric]
                    for result in passes[name]
                    if (result["row"], result["data"]) == (row.key, data) and metric in result["metrics"]
                ]
                if not values:
                    continue
                colour, at = COLOURS[data], y + shift
                axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=1, alpha=0.6)
                axes.plot(values, [at] * len(values), ".", color=colour, markersize=3, alpha=0.6)
                face = colour if name == STEPS else "white"
                (handles[f"{TITLES[data]}, {name}"],) = axes.plot(
                    [statistics.fmean(values)], [at], "o", color=colour, markerfacecolor=face, markersize=6
                )
        axes.set_title(HEADS[metric], fontsize=10)
        axes.set_yticks(range(len(rows)), [row.title for row in rows], fontsize=9)
        axes.set_xlabel("%", fontsize=9)
        axes.tick_params(labelsize=8, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.grid(axis="x", alpha=0.25)
        for y in range(0, len(rows), 2):
            axes.axhspan(y - 0.5, y + 0.5, color="0.96", zorder=0)
    if rows:
        panels[0].set_ylim(len(rows) - 0.5, -0.5)
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=150, metadata={"Software": None})
    return picture.getvalue()
