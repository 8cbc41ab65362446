"""The progress of several runs at once, on a terminal or line by line in a log."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from loupe_ext.train import Progress as Step


class Display:
    """A bar for all runs and one for each that is under way; on no terminal, lines, one per run in `pause` seconds."""

    def __init__(self, total: int, already_done: int, console: Console | None = None, pause: float = 30.0) -> None:
        self.pause = pause
        self.last: dict[str, float] = {}
        self.console = console or Console(stderr=True)
        self.bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.all = self.bars.add_task("[bold]all runs", total=total, completed=already_done, note="", visible=total > 1)
        self.tasks: dict[str, TaskID] = {}
        self.start = time.perf_counter()

    def __enter__(self) -> "Display":
        self.bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.bars.stop()

    def update(self, run: str, state: str, step: Step | None) -> None:
        task = self.tasks.get(run)
        if task is None:
            task = self.tasks[run] = self.bars.add_task(run, total=None, note=state)
            self._say(f"{run}: started")
        if step is None:
            self.bars.update(task, note=state)
        else:
            note = (
                f"loss {step.losses['loss']:.3f}  {step.items_per_second:.0f} items/s  {step.seconds_left:.0f} s left"
            )
            self.bars.update(task, total=step.steps, completed=step.step, note=note)
            if time.perf_counter() - self.last.get(run, -math.inf) >= self.pause:
                self.last[run] = time.perf_counter()
                self._say(f"{run}: step {step.step}/{step.steps}  {note}")

    def finished(self, run: str, outcome: str = "done") -> None:
        if run in self.tasks:
            self.bars.remove_task(self.tasks.pop(run))
        self.bars.advance(self.all)
        self._say(f"{run}: {outcome}")

    def _say(self, text: str) -> None:
        """Where there is no terminal to redraw, one line per event."""
        if not self.console.is_terminal:
            self.console.print(f"[{time.perf_counter() - self.start:6.1f} s] {text}", highlight=False, markup=False)
