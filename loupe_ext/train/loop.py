"""The training loop: batches in, a trained model out, the same numbers each time."""

import contextlib
import itertools
import math
import os
import signal
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_choice, check_flag, check_int, check_kind, shown, unchecked
from loupe_ext._settings import flat
from loupe_ext.data.batch import Batch, checked
from loupe_ext.data.pairs import Pairs
from loupe_ext.model.features import VisionLanguageModel
from loupe_ext.objective import Objective
from loupe_ext.train import checkpoint, parallel, pretrained
from loupe_ext.train.build import build
from loupe_ext.train.check import check_device_there, check_folder, check_run
from loupe_ext.train.config import Config, OptimConfig
from loupe_ext.train.interrupt import Interrupted, signals_held
from loupe_ext.train.metrics import FILE, Metrics, Progress
from loupe_ext.train.step import Step, own_logit_scale


@dataclass
class Trained:
    model: Any
    objective: Objective
    history: dict[str, Tensor]  # "step", and of each loss and metric its means since it was last read
    seconds_per_step: float  # the median over the readings, also of those before an interruption


def learning_rate(step: int, optim: OptimConfig) -> float:
    """Linear warm-up, then a cosine to zero."""
    warm = min(1.0, (step + 1) / max(1, optim.warmup))
    return optim.lr * warm * 0.5 * (1 + math.cos(math.pi * step / optim.steps))


def fit(pairs: Pairs, config: Config, **options: Any) -> Trained:
    """Train the model of a configuration on captioned images in memory; no box is in reach.

    Args:
        pairs: the training set.
        config: the run; its `data` section is not read.
        options: of `train`.

    Raises:
        As `train` and `check_run`; TypeError: `pairs` are something else, such as scenes with their boxes.
    """
    check_kind("pairs", pairs, Pairs, "Pairs")
    check_run(config, options.get("device", "cpu"), options.get("path"))
    batches = pairs.batches(config.optim.batch_size, config.seed, parallel.rank(), parallel.world_size())
    model, objective = build(config, pairs.vocabulary)
    return train(model, objective, batches, config.optim, config=config, **options)


def train(
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    optim: OptimConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    path: str | os.PathLike[str] | None = None,
    save_every: int = 200,
    log_every: int = 10,
    report: Callable[[Progress], None] | None = None,
    validate: Callable[[Any, Objective], dict[str, float]] | None = None,
    validate_every: int = 0,
    extend: bool = False,
    parallel_by: str = "ddp",
    config: Config | None = None,
) -> Trained:
    """Train a model with an objective on batches of pairs.

    Under `torchrun` (inside `loupe_ext.train.processes`) each process takes its own part of every global batch from its
    own `batches`; all contrast with the whole, and their gradients are averaged.

    Args:
        model: a `VisionLanguageModel` that is a module; it is moved to `device` and changed.
        objective: its terms; its temperatures and learners learn too.
        batches: any iterable of `Batch`, repeated if it ends: `Pairs.batches`, a stream, a DataLoader, a list. With
            `state_dict` and `load_state_dict`, a resumed run goes on from there at once; without, it takes and drops
            the batches that were seen. With `fingerprint() -> dict[str, str]`, other data are refused then.
        optim: None: the defaults.
        device: where to train. The model starts from the same weights on each, but rounds differently.
        path: the run's folder. If it holds a state, the run goes on from there, exactly as if it had never stopped; it
            is written every `save_every` steps and at the end: "state.safetensors" to go on from, "metrics.jsonl", and
            what `from_pretrained` reads.
        log_every: steps between readings of the losses, which wait for the device.
        report: called after each reading, on the main process.
        validate: gives metrics of the model, which are logged; called every `validate_every` steps (0: never), on the
            main process, in evaluation mode and without gradients.
        extend: go on from a state of fewer `steps`, finished or not, or of other settings of the optimisation.
        parallel_by: "ddp", or "fsdp" for models that do not fit one device.
        config: what the model was built from, for `from_pretrained`.

    The first SIGINT or SIGTERM (in the main thread) lets the step end, saves it, and raises `Interrupted`; a second one
    acts at once, as without this function.

    Raises:
        Interrupted: by a signal.
        TypeError, ValueError: an argument has the wrong type or value; the state at `path` is of another run or of
            other data (the message says what differs); or torch has no such device here.
        OSError, ImportError: `path` cannot be written, or a package is missing.
        FloatingPointError: a loss is no longer finite.
    """
    for kind in (nn.Module, VisionLanguageModel):
        check_kind("model", model, kind, "a module with encode_image and encode_text")
    check_kind("objective", objective, Objective, "an Objective")
    if not isinstance(batches, Iterable) or isinstance(batches, Tensor):
        raise TypeError(f"batches: expected an iterable of Batch, got {type(batches).__name__}")
    optim = OptimConfig() if optim is None else optim
    check_kind("optim", optim, OptimConfig, "an OptimConfig")
    check_kind("config", config, (Config, type(None)), "a Config")
    check_kind("report", report, (Callable, type(None)), "None or a callable")
    check_kind("validate", validate, (Callable, type(None)), "None or a callable")
    save_every, log_every = check_int("save_every", save_every, 1, 2**31), check_int("log_every", log_every, 1, 2**31)
    validate_every = check_int("validate_every", validate_every, 0, 2**31)
    extend = check_flag("extend", extend)
    check_choice("parallel_by", parallel_by, parallel.PARALLEL)
    device = check_device_there(device)
    folder = None if path is None else check_folder(path)
    run = _Run(model, objective, batches, optim, device, folder, parallel_by, config)
    first = run.resume(extend)
    pace = time.perf_counter()
    with signals_held() as held:
        for step in range(first, optim.steps):
            run.step(step)
            done, last = step + 1, step + 1 == optim.steps
            due = last or done % save_every == 0
            look = due or done % log_every == 0 or (run.group is None and bool(held))
            if look:
                losses = run.read(done)
                if due:
                    run.save(done)
                if report is not None and run.main:
                    each = (time.perf_counter() - pace) / (done - first)
                    report(Progress(done, optim.steps, losses, run.pairs_per_step / each, each * (optim.steps - done)))
                if parallel.agreed(bool(held), run.group):
                    if not due:
                        run.save(done)
                    raise Interrupted(held[0] if held else signal.SIGTERM, done, optim.steps, path)
            if validate is not None and validate_every and done % validate_every == 0 and run.main:
                run.validate(validate, done)
    return run.trained()


class _Run:
    """The state of a run, and what is done with it."""

    def __init__(
        self,
        model: Any,
        objective: Objective,
        batches: Any,
        optim: OptimConfig,
        device: torch.device,
        folder: Path | None,
        parallel_by: str,
        config: Config | None,
    ) -> None:
        self.model, self.objective, self.batches, self.optim, self.device = model, objective, batches, optim, device
        self.folder, self.config, self.parallel_by = folder, config, parallel_by
        self.group, self.main = parallel.world(), parallel.rank() == 0
        if not objective.config.learns_boxes and isinstance(getattr(model, "region_head", None), nn.Module):
            model.region_head.requires_grad_(False)  # nothing would give it a gradient
        if own_logit_scale(model) is not None:
            objective.logit_scale.requires_grad_(False)  # the model's own is used
        self.module = Step(model, objective, optim.precision, optim.compile).to(device).train()
        objective.bound()
        self.wrapped = parallel.wrapped(self.module, parallel_by)
        betas = (optim.beta1, optim.beta2)
        learned = [x for x in self.module.parameters() if x.requires_grad]
        self.optimizer = torch.optim.AdamW(learned, optim.lr, betas, weight_decay=optim.weight_decay)
        self.average = _average(model, optim.ema)
        self.metrics = Metrics(folder / FILE if folder and self.main else None)
        self.pairs_per_step = 0
        self.waited = self.began = 0.0
        self.since = 0  # the step that was read last
        self.iterator: Iterator[Batch] = iter(())

    @property
    def settings(self) -> dict[str, Any]:
        """What a state must agree with to be this run's, by dotted name."""
        sections: dict[str, Any] = {"model": type(self.model).__name__}
        if self.config is not None:
            sections = self.config.to_dict()
        sections |= {"optim": self.optim.to_dict(), "objective": self.objective.config.to_dict()}
        return flat({**sections, "seed": self.objective.seed})

    def resume(self, extend: bool) -> int:
        """The steps that were taken; the state, if there is one, is taken up."""
        fingerprint = getattr(self.batches, "fingerprint", None)
        self.data = fingerprint() if callable(fingerprint) and self.folder is not None else None
        step = 0
        if self.folder is not None and (self.folder / checkpoint.STATE).exists():
            found = checkpoint.load(self.folder)
            _agree(found, self.settings, self.data, extend)
            step = found.step
            self._restore(found)
            if found.position is not None and hasattr(self.batches, "load_state_dict"):
                self.batches.load_state_dict(_own_position(found, parallel.rank(), parallel.world_size()))
            else:
                for _ in range(step * self.optim.accumulate):
                    self._next()
        self.metrics.resume(step)
        self.since, self.began, self.waited = step, time.perf_counter(), 0.0
        return step

    def _restore(self, found: checkpoint.State) -> None:
        averages = {name: x for name, x in found.tensors.items() if name.startswith("ema.")}
        found.tensors = {name: x for name, x in found.tensors.items() if not name.startswith("ema.")}
        found.restore(self.module, self.optimizer)
        if self.average is not None:
            checkpoint.compare(self._averages(), averages, found.path)
            self.average.load_state_dict({name[4:]: x for name, x in averages.items()})

    def _averages(self) -> dict[str, Tensor]:
        return {} if self.average is None else {f"ema.{n}": x for n, x in self.average.state_dict().items()}

    def _next(self) -> Batch:
        began = time.perf_counter()
        batch = next(self.iterator, None)
        if batch is None:
            self.iterator = iter(self.batches)
            batch = next(self.iterator, None)
        if not isinstance(batch, Batch):
            got = "none" if batch is None else type(batch).__name__
            raise (ValueError if batch is None else TypeError)(f"batches: expected Batch after Batch, got {got}")
        self.waited += time.perf_counter() - began
        return batch

    def step(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.optim)
        self.optimizer.zero_grad(set_to_none=True)
        count, self.pairs_per_step = self.optim.accumulate, 0
        totals: dict[str, Tensor] = {}
        for i in range(count):
            batch = parallel.padded(checked(self._next()), self.group)
            first = parallel.rank() * len(batch)
            self.pairs_per_step += len(batch) * parallel.world_size()
            with self._synchronised(i == count - 1):
                at = step * count + i
                with unchecked():  # which would wait for the device
                    losses = self.wrapped(batch.to(self.device), at, first, self.group)
                (losses["loss"] / count).backward()
            totals = {name: totals.get(name, 0) + value.detach() / count for name, value in losses.items()}
        norms = [nn.utils.clip_grad_norm_(part, self.optim.clip) for part in self.module.parts() if part]
        totals["gradient_norm"] = torch.stack([parallel.whole(norm) for norm in norms]).max()
        self.optimizer.step()
        self.objective.bound()
        if self.average is not None:
            self.average.update_parameters(self.model)
        self.metrics.add(totals)

    def _synchronised(self, now: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients of batches that are only added up need not travel."""
        if now or not isinstance(self.wrapped, nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return self.wrapped.no_sync()

    def read(self, step: int) -> dict[str, float]:
        now, steps = time.perf_counter(), max(1, step - self.since)
        seconds = {"seconds": (now - self.began) / steps, "seconds_waiting": self.waited / steps}
        means = self.metrics.read(step, self.group, **seconds)
        self.since, self.began, self.waited = step, time.perf_counter(), 0.0
        return means

    def save(self, step: int) -> None:
        if self.folder is None:
            return
        tensors = checkpoint.tensors_of(self.module, self.optimizer)
        tensors = {name: parallel.whole(x) for name, x in (tensors | self._averages()).items()}
        position = None
        if hasattr(self.batches, "state_dict"):
            position = {"processes": parallel.everyones(self.batches.state_dict(), self.group)}
        if not self.main:
            return
        checkpoint.save(self.folder / checkpoint.STATE, tensors, step, self.settings, self.data, position)
        weights = {name: x for name, x in tensors.items() if name.startswith(("model.", "objective."))}
        if self.average is not None:
            weights |= {
                name.replace("ema.module.", "model."): x for name, x in tensors.items() if "ema.module." in name
            }
        pretrained.save(self.folder, weights, self.settings, self.model, step)

    def validate(self, call: Callable[[Any, Objective], dict[str, float]], step: int) -> None:
        began = time.perf_counter()
        self.module.eval()
        with torch.no_grad():
            found = call(self.model if self.average is None else self.average.module, self.objective)
        self.module.train()
        self.metrics.note(step, {f"validation/{name}": float(value) for name, value in found.items()})
        self.began += time.perf_counter() - began  # not the steps' time

    def trained(self) -> Trained:
        history = self.metrics.history()
        seconds = [x for x in history.get("seconds", torch.empty(0)).tolist() if not math.isnan(x)]
        model = self.model if self.average is None else self.average.module
        median = statistics.median(seconds) if seconds else math.nan
        return Trained(model.eval(), self.objective.eval(), history, median)


def _own_position(found: checkpoint.State, rank: int, world_size: int) -> Any:
    """Where the batches of this process go on."""
    positions = (found.position or {}).get("processes")
    if not isinstance(positions, list) or len(positions) != world_size:
        got = len(positions) if isinstance(positions, list) else shown(positions)
        raise ValueError(f"path: expected the positions of {world_size} processes, got {got} in {found.path}")
    return positions[rank]


def _average(model: nn.Module, decay: float) -> Any:
    """The moving average of the weights, if there is one."""
    if not decay:
        return None
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)


def _agree(found: checkpoint.State, settings: dict[str, Any], data: dict[str, str] | None, extend: bool) -> None:
    """Raise ValueError unless the state is of these settings and these data; `extend` allows another optimisation."""
    old = {**found.settings, **{f"data: {name}": line for name, line in (found.data or {}).items()}}
    new = {**settings, **{f"data: {name}": line for name, line in (data or {}).items()}}
    clauses = []
    for name in {**old, **new}:
        value, got = old.get(name), new.get(name)
        if value == got:
            continue
        more = name == "optim.steps" and isinstance(got, int) and isinstance(value, int) and value < got
        if extend and (more or (name.startswith("optim.") and name != "optim.steps")):
            continue
        hint = " (extend=True goes on with more steps)" if more else ""
        if not name.startswith("data: ") and (name not in old or name not in new):
            hint = " (another version of loupe_ext began it, with other settings)"
        had, has = (shown(each[name]) if name in each else "none" for each in (old, new))
        clauses.append(f"{name}: expected {had} as in {found.path}, got {has}{hint}")
    if clauses:
        rest = f"; and {len(clauses) - 5} more" if len(clauses) > 5 else ""
        raise ValueError("; ".join(itertools.islice(clauses, 5)) + rest)
