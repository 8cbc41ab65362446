"""The table: mean and spread of each row over its seeds, as text, Markdown and CSV."""

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loupe_experiments.rows import ROWS, Row
from loupe_experiments.runs import Result
from loupe_ext.extras import needs

# Metrics in 0..1, shown in percent.
COLUMNS = {
    "i2t_r1": "I→T R@1",
    "i2t_r5": "R@5",
    "t2i_r1": "T→I R@1",
    "t2i_r5": "R@5",
    "pointing": "Pointing",
    "pointing_shuffled": "(shuffled)",
    "acc50": "Acc@.5",
    "acc30": "Acc@.3",
    "miou": "mIoU",
    "proposal_acc50": "Prop. Acc@.5",
    "proposal_acc30": "Prop. Acc@.3",
    "proposal_miou": "Prop. mIoU",
    "recall": "Prop. recall",
    "ap50": "AP@.5",
    "ap30": "AP@.3",
}
COUNTS = ("milliseconds_per_step", "steps")  # the rest of what a table can show: not in percent, and none is best
CONTROL = "pointing_shuffled"  # with another caption's phrases: no merit
BRIEF = ("i2t_r1", "t2i_r1", "pointing", CONTROL, "acc50", "miou", "proposal_acc50", "proposal_miou", "recall")


@dataclass(frozen=True)
class Cell:
    """Mean and standard deviation over seeds (0 for one seed) of a metric or of one of the `COUNTS`."""

    mean: float
    spread: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Cell":
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0)

    def show(self, seeds: int, unit: float, digits: int) -> str:
        spread = f" ± {unit * self.spread:.{digits}f}" if seeds > 1 else ""
        return f"{unit * self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Line:
    """One row on one data set."""

    row: Row
    seeds: int
    cells: dict[str, Cell]  # by metric, without those that the row does not have; and by name of the `COUNTS`

    def text(self, name: str) -> str:
        """What the table shows in a column."""
        if name not in self.cells:
            return "-"
        return self.cells[name].show(self.seeds, *((1, 0) if name in COUNTS else (100, 1)))

    def texts(self) -> dict[str, str]:
        """What the table shows in each column."""
        return {name: self.text(name) for name in HEADS}


HEADS = {**COLUMNS, "milliseconds_per_step": "ms/step"}


def lines(results: Sequence[Result], data: str, rows: Sequence[Row] = ROWS) -> list[Line]:
    """Those of `rows` that were run on `data`, in their order."""
    found = []
    for row in rows:
        ours = [result for result in results if (result["row"], result["data"]) == (row.key, data)]
        if ours:
            values = [{**r["metrics"], **{name: r[name] for name in COUNTS if name in r}} for r in ours]
            names = [name for name in values[0] if all(name in others for others in values)]
            found.append(Line(row, len(ours), {name: Cell.of([value[name] for value in values]) for name in names}))
    return found


def is_best(line: Line, found: Sequence[Line], name: str) -> bool:
    """Whether no line's mean of the metric is higher; False if there is nothing to compare."""
    means = [other.cells[name].mean for other in found if name in other.cells]
    return (
        name not in (*COUNTS, CONTROL) and name in line.cells and len(means) > 1 and line.cells[name].mean == max(means)
    )


def markdown(found: Sequence[Line], heads: Mapping[str, str] | None = None) -> str:
    """A Markdown table of the columns `heads`, or of `BRIEF`. The best mean of each metric is bold."""
    heads = heads or {name: HEADS[name] for name in BRIEF}
    rows = []
    for line in found:
        shown = [f"**{line.text(name)}**" if is_best(line, found, name) else line.text(name) for name in heads]
        rows.append([line.row.title, *shown])
    align = ["---", *["---:"] * len(heads)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [["", *heads.values()], align, *rows])


def comma_separated(results: Sequence[Result]) -> str:
    """Every run, unrounded, one a line."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ["data", "row", "seed", "threshold", "centred", "milliseconds_per_step"]
    writer.writerow([*names, *COLUMNS])
    for result in results:
        writer.writerow([*(result[name] for name in names), *(result["metrics"].get(name, "") for name in COLUMNS)])
    return out.getvalue()


def show(title: str, found: Sequence[Line]) -> None:
    """Print the table."""
    with needs("rich"):
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
    console = Console()
    if not console.is_terminal:
        console = Console(width=165)
    grid = Table(title=title, box=SIMPLE_HEAD, title_justify="left", title_style="bold", padding=(0, 1, 0, 0))
    grid.add_column(no_wrap=True)
    for head in HEADS.values():
        grid.add_column(head, justify="right")
    for line in found:
        grid.add_row(line.row.title, *line.texts().values())
    console.print(grid)
