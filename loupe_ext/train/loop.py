"""The training loop: captioned images in, a trained task out, the same numbers each time."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loupe_ext.data.pairs import Pairs
from loupe_ext.train import checkpoint
from loupe_ext.train.config import Config
from loupe_ext.train.task import Task


@dataclass(frozen=True)
class Progress:
    """Where a run stands after a step."""

    step: int  # taken so far
    steps: int
    losses: dict[str, float]  # and metrics
    items_per_second: float
    seconds_left: float


@dataclass
class Trained:
    task: Task
    history: dict[str, Tensor]  # of each loss and metric at each step, NaN where it was off
    seconds_per_step: float  # the median of all steps, also of those before an interruption


def batch_indices(step: int, n: int, batch: int, seed: int) -> Tensor:
    """The pairs of a step: a fresh permutation each epoch, a function of nothing but its arguments."""
    epoch, at = divmod(step, n // batch)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
    return order[at * batch : (at + 1) * batch]


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, config.warmup))
    return config.lr * warm * 0.5 * (1 + math.cos(math.pi * step / config.steps))


def train(
    pairs: Pairs,
    config: Config,
    *,
    device: torch.device | str = "cpu",
    path: Path | None = None,
    save_every: int = 200,
    report: Callable[[Progress], None] | None = None,
) -> Trained:
    """Train `config` on captioned images; no box is in reach.

    Args:
        pairs: the training set.
        config: the run.
        device: where to train. The model starts from the same weights on each, but rounds differently.
        path: a checkpoint file. If it exists, the run goes on from there, exactly as if it had never stopped; it is
            written every `save_every` steps and at the end.
        report: called after each step.

    Raises:
        TypeError: `pairs` are something else, such as scenes with their boxes.
        ValueError: the checkpoint at `path` is of another run, or torch has no such device here.
        FloatingPointError: the loss is no longer finite.
    """
    if not isinstance(pairs, Pairs):
        raise TypeError(f"pairs: expected Pairs, got {type(pairs).__name__}")
    if len(pairs) < config.batch:
        raise ValueError(f"pairs: expected at least a batch of {config.batch}, got {len(pairs)}")
    device = _device(device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = Task(config, len(pairs.vocabulary)).to(device)
    task.vocabulary = pairs.vocabulary
    optimizer = torch.optim.AdamW(
        task.parameters(), config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    first, history = 0, {"loss": torch.full((config.steps,), torch.nan)}
    seconds = torch.full((config.steps,), torch.nan)
    if path is not None and path.exists():
        found = checkpoint.load(path)
        if found.config != config or found.vocabulary.words != pairs.vocabulary.words:
            raise ValueError(f"path: expected a checkpoint of this run, got one of another configuration in {path}")
        found.restore(task, optimizer)
        first, history, seconds = found.step, found.history, found.tensors.get("seconds", seconds)
    start = time.perf_counter()
    for step in range(first, config.steps):
        begun = time.perf_counter()
        losses = _step(task, optimizer, pairs, step)
        seconds[step] = time.perf_counter() - begun
        for name, value in losses.items():
            history.setdefault(name, torch.full((config.steps,), torch.nan))[step] = value
        if path is not None and ((step + 1) % save_every == 0 or step + 1 == config.steps):
            checkpoint.save(path, task, pairs.vocabulary, step + 1, history, optimizer, seconds)
        if report is not None:
            pace = (time.perf_counter() - start) / (step + 1 - first)
            report(Progress(step + 1, config.steps, losses, config.batch / pace, pace * (config.steps - step - 1)))
    return Trained(task.eval(), history, seconds.nanmedian().item())


def _device(device: torch.device | str) -> torch.device:
    try:
        torch.empty(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that torch has here, got {str(device)!r} ({reason})") from error


def _step(task: Task, optimizer: torch.optim.Optimizer, pairs: Pairs, step: int) -> dict[str, float]:
    config = task.config
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, config)
    batch = pairs.batch(batch_indices(step, len(pairs), config.batch, config.seed))
    losses = task(batch.to(next(task.parameters()).device), step)
    values = {name: loss.item() for name, loss in losses.items()}
    if not math.isfinite(values["loss"]):
        raise FloatingPointError(f"the loss is {values['loss']} at step {step} ({values})")
    optimizer.zero_grad(set_to_none=True)
    losses["loss"].backward()
    for part in task.parts():
        norm = torch.nn.utils.clip_grad_norm_(part, config.clip)
        if not math.isfinite(norm.item()):
            raise FloatingPointError(f"the gradient's norm is {norm.item()} at step {step} ({values})")
    optimizer.step()
    return values
