"""What a run shows: a summary at its start, a bar or lines as it goes, and the trackers that people use."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from loupe_ext._checks import check_choice
from loupe_ext.data.pairs import Pairs
from loupe_ext.extras import TRACKERS, needs
from loupe_ext.train import parallel
from loupe_ext.train.build import build
from loupe_ext.train.config import Config
from loupe_ext.train.metrics import Progress


def summary(config: Config, pairs: Pairs, device: torch.device) -> str:
    """Parameters, data, devices and steps of a run, in two lines."""
    with torch.device("meta"):
        model, objective = build(config, len(pairs.vocabulary), pretrained=False)
    count = sum(x.numel() for part in (model, objective) for x in part.parameters())
    terms = ", ".join(f"{name} {term.weight:g}" for name, term in config.objective.terms.items() if term.weight)
    optim, world = config.optim, parallel.world_size()
    return (
        f"{config.name}: {count:,} parameters; {len(pairs):,} pairs of {config.data.dataset}; terms: {terms}\n"
        f"{optim.steps:,} steps of {optim.batch_size * optim.accumulate} pairs on {world} x {device}"
    )


@contextmanager
def reporter(path: Path, config: Config, to: str | None = None) -> Iterator[Callable[[Progress], None]]:
    """A `report` for `train`: a progress bar (lines, without a terminal), and a tracker.

    Args:
        path: the run's folder, which names it, and where TensorBoard's files go.
        to: "tensorboard", "wandb" or "trackio".

    Raises:
        ImportError: rich or the tracker is missing.
    """
    with needs("rich"):
        from loupe_ext.train.display import Display
    log, close = _tracker(path, config, to)
    with Display(1, 0) as display:

        def report(progress: Progress) -> None:
            display.update(path.name, "training", progress)
            log(progress)

        try:
            yield report
        finally:
            close()


def _tracker(path: Path, config: Config, to: str | None) -> tuple[Callable[[Progress], None], Callable[[], Any]]:
    if to is None:
        return lambda progress: None, lambda: None
    check_choice("to", to, TRACKERS)
    with needs(to):
        if to == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(path / "tensorboard")

            def write(progress: Progress) -> None:
                for name, value in progress.losses.items():
                    writer.add_scalar(f"train/{name}", value, progress.step)

            return write, writer.close
        if to == "wandb":
            import wandb as tracker
        else:
            import trackio as tracker
    run = tracker.init(project="loupe_ext", name=path.name, config=config.flat())
    return lambda progress: run.log(
        {f"train/{n}": x for n, x in progress.losses.items()}, step=progress.step
    ), run.finish
