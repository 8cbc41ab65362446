"""The training loop: captioned images in, a trained task out, the same numbers each time."""

import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from loupe_ext._checks import check_flag, check_int, shown
from loupe_ext.data.pairs import Pairs
from loupe_ext.train import checkpoint
from loupe_ext.train.check import check_run
from loupe_ext.train.config import Config
from loupe_ext.train.interrupt import Interrupted, signals_held
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
    path: str | os.PathLike[str] | None = None,
    save_every: int = 200,
    report: Callable[[Progress], None] | None = None,
    extend: bool = False,
) -> Trained:
    """Train `config` on captioned images; no box is in reach.

    Args:
        pairs: the training set.
        config: the run.
        device: where to train. The model starts from the same weights on each, but rounds differently.
        path: a checkpoint file. If it exists, the run goes on from there, exactly as if it had never stopped; it is
            written every `save_every` steps and at the end. One without its optimiser or the fingerprint of its data
            (format loupe-1) is refused.
        report: called after each step.
        extend: go on from a checkpoint of fewer `steps`, finished or not, with the learning rates that the new `steps`
            give. Where nothing is there yet it changes nothing.

    The first SIGINT or SIGTERM (in the main thread) lets the step end, saves it, and raises `Interrupted`; a second one
    acts at once, as without this function.

    Raises:
        Interrupted: by a signal.
        TypeError: `pairs` are something else, such as scenes with their boxes.
        ValueError: the checkpoint at `path` is of another run or other data (the message says what differs), or torch
            has no such device here.
        OSError, ImportError: as `check_run`.
        FloatingPointError: the loss is no longer finite.
    """
    if not isinstance(pairs, Pairs):
        raise TypeError(f"pairs: expected Pairs, got {type(pairs).__name__}")
    device = check_run(config, device, path)
    if len(pairs) < config.batch:
        raise ValueError(f"pairs: expected at least a batch of {config.batch}, got {len(pairs)}")
    extend = check_flag("extend", extend)
    if report is not None and not callable(report):
        raise TypeError(f"report: expected None or a callable, got {type(report).__name__}")
    save_every = check_int("save_every", save_every, 1, 2**31)
    path = None if path is None else Path(path)
    data = {} if path is None else pairs.fingerprint()
    found = None if path is None or not path.exists() else _found(path, config, data, extend)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task = Task(config, len(pairs.vocabulary)).to(device)
    task.vocabulary = pairs.vocabulary
    optimizer = torch.optim.AdamW(
        task.parameters(), config.lr, (config.beta1, config.beta2), weight_decay=config.weight_decay
    )
    first, history = 0, {"loss": torch.full((config.steps,), torch.nan)}
    seconds = torch.full((config.steps,), torch.nan)
    if found is not None:
        found.restore(task, optimizer)
        first = found.step
        for name, values in found.history.items():
            history.setdefault(name, torch.full((config.steps,), torch.nan))[:first] = values[:first]
        seconds[:first] = found.tensors.get("seconds", seconds)[:first]
    task.bound_scales()

    def keep(step: int) -> None:
        if path is not None:
            checkpoint.save(path, task, pairs.vocabulary, step, history, optimizer, seconds, data)

    start = time.perf_counter()
    with signals_held() as held:
        for step in range(first, config.steps):
            begun = time.perf_counter()
            losses = _step(task, optimizer, pairs, step)
            seconds[step] = time.perf_counter() - begun
            for name, value in losses.items():
                history.setdefault(name, torch.full((config.steps,), torch.nan))[step] = value
            due = (step + 1) % save_every == 0 or step + 1 == config.steps
            if due:
                keep(step + 1)
            if report is not None:
                pace = (time.perf_counter() - start) / (step + 1 - first)
                report(Progress(step + 1, config.steps, losses, config.batch / pace, pace * (config.steps - step - 1)))
            if held:
                if not due:
                    keep(step + 1)
                raise Interrupted(held[0], step + 1, config.steps, path)
    return Trained(task.eval(), history, seconds.nanmedian().item())


def _found(path: Path, config: Config, data: dict[str, str], extend: bool) -> checkpoint.Checkpoint:
    """The checkpoint to go on from, if it is of this configuration and of the data with this fingerprint."""
    found = checkpoint.load(path)
    if found.data is None:
        raise ValueError(f"path: expected a checkpoint that says what data it was trained on, got none in {path}")
    if "loss" not in found.history:
        raise ValueError(f"path: expected a checkpoint with the history of the loss, got none in {path}")
    old = asdict(found.config) | found.data
    if extend and old["steps"] < config.steps:
        old["steps"] = config.steps
    new = asdict(config) | data
    clauses = [
        f"{name}: expected {shown(value)} as in {path}, got {shown(new[name])}"
        + (" (extend=True goes on with more steps)" if name == "steps" and value < new[name] else "")
        for name, value in old.items()
        if value != new[name]
    ]
    if clauses:
        more = f"; and {len(clauses) - 5} more" if len(clauses) > 5 else ""
        raise ValueError("; ".join(clauses[:5]) + more)
    return found


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
    task.bound_scales()
    return values
