"""Runs in worker processes, one thread each, with their progress on one screen. A finished run is never repeated."""

import datetime
import functools
import json
import multiprocessing
import os
import platform
import signal
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from queue import Empty
from typing import Any

import torch

from loupe_experiments.rows import Run
from loupe_ext._io import write
from loupe_ext.data import Grounded, load
from loupe_ext.extras import needs
from loupe_ext.train import Interrupted, Progress, checkpoint, fit
from loupe_ext.zeroshot.evaluate import choose_heat, evaluate

Result = dict[str, Any]

_messages: Any = None  # the worker's end of the queue to the parent


def folder_of(out: Path, run: Run) -> Path:
    """Where a run keeps its state and its model."""
    return out / "runs" / run.key


def result_path(out: Path, run: Run) -> Path:
    return out / "runs" / f"{run.key}.json"


@functools.lru_cache(maxsize=9)
def _scenes(name: str, split: str, size: int) -> Grounded:
    return load(name, split, size)


def _identity(run: Run) -> Result:
    """What a stored result must agree with to be this run's."""
    return {"config": run.config.to_yaml(), "evaluation_scenes": run.evaluation_scenes}


def _circumstances() -> Result:
    """Where and when a run was made."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "date": datetime.date.today().isoformat(),
    }


def _cpu() -> str:
    """The processor's model name, or at least its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def perform(run: Run, out: Path) -> Result:
    """Train on the training split, choose on validation how heat is read, and report on test."""
    _tell(run, "drawing scenes")
    pairs = _scenes(run.data, "train", run.config.data.train_size).pairs

    def report(progress: Progress) -> None:
        _tell(run, "training", progress)

    trained = fit(pairs, run.config, path=folder_of(out, run), report=report)
    _tell(run, "evaluating")
    validation = _scenes(run.data, "validation", max(1, run.evaluation_scenes // 2))
    rule = choose_heat(trained.model, validation)
    test = _scenes(run.data, "test", run.evaluation_scenes)
    result = {
        "row": run.row.key,
        "data": run.data,
        "seed": run.seed,
        **_identity(run),
        **_circumstances(),
        "steps": run.steps,
        **rule._asdict(),
        "milliseconds_per_step": 1000 * trained.seconds_per_step,
        "metrics": evaluate(trained.model, test, trained.objective, *rule),
    }
    write(result_path(out, run), json.dumps(result, indent=1))
    return result


def _work(run: Run, out: Path) -> Result:
    """`perform` in a worker: one that is told to end takes no further run."""
    try:
        return perform(run, out)
    except Interrupted:
        os._exit(1)


def stored(run: Run, out: Path) -> Result | None:
    """The result of an earlier, identical run."""
    try:
        result = json.loads(result_path(out, run).read_text())
    except FileNotFoundError:
        return None
    return result if all(result.get(name) == value for name, value in _identity(run).items()) else None


def _tell(run: Run, state: str, progress: Progress | None = None) -> None:
    if _messages is not None:
        _messages.put((run.key, state, progress))


def _start_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def perform_all(
    runs: Iterable[Run], out: Path, workers: int, failed: Callable[[Run, Exception], None] | None = None
) -> list[Result]:
    """All runs, in order of `runs`, `workers` at a time; those already stored in `out` are taken from there.

    `failed` is told of a run that raises, which is then left out, and the others go on; None: it ends them all.
    """
    with needs("rich"):
        from loupe_ext.train.display import Display
    runs = list(runs)
    results = {run.key: stored(run, out) for run in runs}
    todo = [run for run in runs if results[run.key] is None]
    for run in todo:
        _forget_other(run, out)
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    others = set(multiprocessing.active_children())
    with (
        Display(len(runs), len(runs) - len(todo)) as display,
        ProcessPoolExecutor(workers, context, _start_worker, (messages,)) as pool,
    ):
        pending: dict[Future[Result], Run] = {pool.submit(_work, run, out): run for run in todo}
        try:
            while pending:
                done, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                _relay(messages, display)
                for future in done:
                    run = pending.pop(future)
                    try:
                        results[run.key] = future.result()
                    except Exception as error:
                        if failed is None:
                            raise
                        failed(run, error)
                    display.finished(run.key, "done" if results[run.key] else "failed")
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(multiprocessing.active_children()) - others:
                worker.terminate()
            raise
    return [result for run in runs if (result := results[run.key]) is not None]


def _forget_other(run: Run, out: Path) -> None:
    """Remove the state of another configuration or an older format that stands where this run's would."""
    state = folder_of(out, run) / checkpoint.STATE
    if state.exists():
        try:
            same = checkpoint.load(state).settings == run.config.flat()
        except ValueError:
            same = False
        if not same:
            state.unlink()


def _relay(messages: Any, display: Any) -> None:
    while True:
        try:
            display.update(*messages.get_nowait())
        except Empty:
            return
