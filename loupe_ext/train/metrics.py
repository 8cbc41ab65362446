"""What a run says as it goes: losses that are read every few steps, a line of JSON each time, and progress."""

import json
import math
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loupe_ext._io import write

FILE = "metrics.jsonl"  # of a run's folder


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step whose metrics were read."""

    step: int  # taken so far
    steps: int
    losses: dict[str, float]  # and metrics: the means since they were last read
    items_per_second: float
    seconds_left: float


@dataclass
class Metrics:
    """Losses stay on the device until they are read, all at once; what was read is a line of a file and of `lines`."""

    path: Path | None = None
    lines: list[dict[str, float]] = field(default_factory=list)
    pending: list[dict[str, Tensor]] = field(default_factory=list)

    def resume(self, step: int) -> None:
        """Take up the lines of an earlier process, without those of steps that were not kept."""
        if self.path is not None and self.path.exists():
            self.lines = [line for line in read(self.path) if line["step"] <= step]
            write(self.path, "".join(_line(line) for line in self.lines))

    def add(self, values: dict[str, Tensor]) -> None:
        """Of a step, without waiting for the device."""
        self.pending.append({name: value.detach() for name, value in values.items()})

    def read(self, step: int, group: Any, **more: float) -> dict[str, float]:
        """The means since the last reading, over processes too, which become a line with `more`.

        Raises:
            FloatingPointError: a loss or a gradient's norm is not finite: in which step, and all of its values.
        """
        first = step - len(self.pending)
        tensors = [x.reshape(()).float() for values in self.pending for x in values.values()]
        flat = torch.stack(tensors) if tensors else torch.empty(0)
        if tensors and group is not None:
            torch.distributed.all_reduce(flat, group=group)
            flat /= torch.distributed.get_world_size(group)
        numbers = iter(flat.tolist())
        steps = [{name: next(numbers) for name in values} for values in self.pending]
        self.pending.clear()
        for i, values in enumerate(steps):
            for name in ("loss", "gradient_norm"):
                if not math.isfinite(values.get(name, 0)):
                    what = "loss" if name == "loss" else "gradient's norm"
                    raise FloatingPointError(f"the {what} is {values[name]} at step {first + i} ({values})")
        names = dict.fromkeys(name for values in steps for name in values)
        means = {name: _mean([values[name] for values in steps if name in values]) for name in names}
        self._append({"step": step, **means, **more})
        return means

    def note(self, step: int, values: dict[str, float]) -> None:
        """A line of its own, such as of validation."""
        self._append({"step": step, **values})

    def _append(self, line: dict[str, float]) -> None:
        self.lines.append(line)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.path, "a", encoding="utf-8") as file:
                file.write(_line(line))

    def history(self) -> dict[str, Tensor]:
        """Of each name, its values in the lines, float64 [lines]; NaN in those without it."""
        names = dict.fromkeys(name for line in self.lines for name in line)
        return {
            name: torch.tensor([line.get(name, math.nan) for line in self.lines], dtype=torch.float64) for name in names
        }


def _mean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return statistics.fmean(known) if known else math.nan


def _line(values: dict[str, float]) -> str:
    return json.dumps({name: value if math.isfinite(value) else None for name, value in values.items()}) + "\n"


def read(path: Path) -> list[dict[str, float]]:
    """The lines of a file, without one that a killed process left unfinished, or that is none of these."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict) and type(values.get("step")) is int:
            numbers = {name: math.nan if value is None else value for name, value in values.items()}
            if all(type(value) in (int, float) for value in numbers.values()):
                found.append(numbers)
    return found
