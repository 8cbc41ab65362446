"""The command `loupe`. Each subcommand is a call that could be made from Python."""

import argparse
import sys
import time
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

from loupe_ext._io import write


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; errors that a user can mend end in one line and status 2."""
    parser = argparse.ArgumentParser(prog="loupe", description="Fine-grained vision-language alignment from captions.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_demo, _add_ablate, _add_train, _add_evaluate):
        add(commands)
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError, BrokenExecutor) as error:
        print(f"loupe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("loupe: interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def _add_demo(commands: Any) -> None:
    command = commands.add_parser("demo", help="train and compare all rows of the table, and write a report")
    command.add_argument("--out", type=Path, default=Path("demo"), help="folder of results; finished runs are kept")
    command.add_argument("--seeds", type=_positive, default=1)
    command.add_argument("--steps", type=_positive, default=500)
    command.add_argument("--pairs", type=_positive, default=20_000, help="captioned images to train on")
    command.add_argument("--scenes", type=_positive, default=500, help="test scenes of the evaluation")
    command.add_argument("--workers", type=_positive, default=2, help="runs at a time, one thread each")
    command.add_argument("--all", action="store_true", help="also the rows on digits that the demo leaves out")
    command.set_defaults(run=_demo)


def _demo(options: argparse.Namespace) -> None:
    from loupe_ext.demo import rows, runs, table
    from loupe_ext.demo.report import TITLES, write_report

    start = time.perf_counter()
    digit_rows = None if options.all else rows.DEMO_DIGITS
    plan = rows.plan(options.seeds, options.steps, options.pairs, options.scenes, digit_rows)
    results = runs.perform_all(plan, options.out, options.workers)
    write(options.out / "results.csv", table.comma_separated(results))
    sections = [f"**{TITLES[data]}**\n\n{table.markdown(table.lines(results, data))}\n" for data in TITLES]
    write(options.out / "table.md", "\n".join(sections))
    write_report(options.out / "report.html", plan, results, options.out)
    for data in TITLES:
        table.show(TITLES[data], table.lines(results, data))
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"{minutes} min {seconds:02d} s. The report: {options.out / 'report.html'}")


def _add_ablate(commands: Any) -> None:
    command = commands.add_parser("ablate", help="train every objective on every data set, and write tables and a plot")
    command.add_argument("--out", type=Path, default=Path("ablation"), help="folder of results; finished runs are kept")
    command.add_argument("--seeds", type=_positive, default=3)
    command.add_argument("--steps", type=_positive, default=500)
    command.add_argument("--pairs", type=_positive, default=20_000, help="captioned images to train on")
    command.add_argument("--scenes", type=_positive, default=500, help="test scenes of the evaluation")
    command.add_argument("--workers", type=_positive, default=2, help="runs at a time, one thread each")
    command.add_argument("--data", nargs="+", metavar="NAME", help="of the data sets; default: all")
    command.add_argument("--rows", nargs="+", metavar="NAME", help="of the rows; default: all")
    command.add_argument("--equal-time", action="store_true", help="then also for as long as the default recipe takes")
    command.set_defaults(run=_ablate)


def _ablate(options: argparse.Namespace) -> int:
    from loupe_ext.demo.ablation import Ablation

    chosen = {name: tuple(getattr(options, name)) for name in ("data", "rows") if getattr(options, name)}
    ablation = Ablation(
        options.seeds, options.steps, options.pairs, options.scenes, equal_time=options.equal_time, **chosen
    )
    failures = ablation.perform(options.out, options.workers)
    print(f"The tables: {options.out / 'table.md'}")
    for run, error in failures:
        print(f"loupe: {run.key}: {type(error).__name__}: {error}", file=sys.stderr)
    if failures:
        print(f"loupe: {len(failures)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0


def _add_train(commands: Any) -> None:
    command = commands.add_parser("train", help="train one model", description="Train on an embedded data set.")
    command.add_argument("out", type=Path, help="checkpoint file; an interrupted run goes on from it")
    command.add_argument("changes", nargs="*", metavar="name=value", help="changes to the configuration: seed=1 fsa=0")
    source = command.add_mutually_exclusive_group()
    source.add_argument("--preset", default="tiny", metavar="NAME", help="tiny (the default), small or paper")
    source.add_argument("--config", type=Path, help="YAML file of the configuration, instead of a preset")
    command.add_argument("--device", default="cpu", help="where to train: cpu (the default), cuda, cuda:1, ...")
    command.add_argument("--tensorboard", type=Path, metavar="DIR", help="write the losses there")
    command.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from loupe_ext.data import load
    from loupe_ext.extras import needs
    from loupe_ext.train import Config, train
    from loupe_ext.train.loop import Progress

    config = Config.load(options.config) if options.config else Config.preset(options.preset)
    config = config.but(**dict(_change(text) for text in options.changes))
    pairs = load(config.data, "train", config.train_size).pairs
    with needs("rich"):
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar
    writer = None
    if options.tensorboard:
        with needs("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        writer = SummaryWriter(options.tensorboard)
    bar = Bar(BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    shown = bar.add_task("", total=config.steps)

    def report(progress: Progress) -> None:
        bar.update(
            shown,
            completed=progress.step,
            description=f"loss {progress.losses['loss']:.3f}  {progress.items_per_second:.0f} items/s  "
            f"{progress.seconds_left:.0f} s left",
        )
        if writer is not None:
            for name, value in progress.losses.items():
                writer.add_scalar(f"loss/{name}", value, progress.step)

    with bar:
        train(pairs, config, device=options.device, path=options.out, report=report)
    if writer is not None:
        writer.close()


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="evaluate a checkpoint on test scenes")
    command.add_argument("checkpoint", type=Path)
    command.add_argument("--scenes", type=_positive, default=1000)
    command.add_argument("--data", help="data set; default: the one it was trained on")
    command.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from loupe_ext.data import load
    from loupe_ext.train import checkpoint
    from loupe_ext.zeroshot.evaluate import choose_threshold, evaluate

    found = checkpoint.load(options.checkpoint)
    data = options.data or found.config.data
    task = found.task()
    test = load(data, "test", options.scenes)
    if test.pairs.vocabulary.words != found.vocabulary.words:
        raise ValueError(f"--data: expected a data set with the checkpoint's words, got {data}")
    threshold = choose_threshold(task, load(data, "validation", max(1, options.scenes // 2)))
    for name, value in evaluate(task, test, threshold).items():
        print(f"{name:16} {value:.4f}")


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text}")
    return value


def _change(text: str) -> tuple[str, Any]:
    """A name and a value of the type that `Config` has for it."""
    from loupe_ext.train import Config

    name, equals, value = text.partition("=")
    kinds: dict[str, Any] = {field.name: type(field.default) for field in fields(Config)}
    if not equals or name not in kinds:
        raise ValueError(f"name=value: expected a name of {', '.join(kinds)}, got {text!r}")
    if kinds[name] is bool:
        if value not in ("true", "false"):
            raise ValueError(f"{name}: expected true or false, got {value!r}")
        return name, value == "true"
    try:
        return name, kinds[name](value)
    except ValueError:
        raise ValueError(f"{name}: expected {kinds[name].__name__}, got {value!r}") from None
