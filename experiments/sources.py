"""FSA from exact, sampled and predicted interactions: what they cost, how far off they are, and what they teach.

python experiments/sources.py [--seeds 3] [--steps 500] [--rows default cmc-fsa]

Trains recipes of `rows.py` from each source, and prints a table a recipe, means over the seeds; every
run is a line of bench/results/sources.csv. A run that was interrupted, or is done, goes on from its checkpoint.

ms/step: the median of steps of all sources in turn, on one thread; "own", of the source alone (of UNSIL with its
    learner's gradient), and its share of the step. UNSIL's are of the end of its training.
error: mean |I - exact I| over the root mean square of the exact ones, of validation scenes in the trained model.
computed: the share of images whose interactions UNSIL computed, over all steps; at the end of training.
1 s, 2 s, 3 s: the share of UNSIL's errors below so many sigma, of images checked in the last fifth of the steps (a
    normal distribution: 68.3, 95.4, 99.7); cal.: the calibration error.
The rest: percent, on validation scenes other than those that the heat's threshold is chosen on.
"""

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from loupe_experiments.rows import ROWS
from torch import Tensor

from loupe_ext import sample_coalitions, unpack_coalitions
from loupe_ext.data import Grounded, Pairs, load
from loupe_ext.losses import alignment_interactions, sampled_interactions
from loupe_ext.objective import FSA, Seen
from loupe_ext.train import Config, build, fit
from loupe_ext.train.step import Step
from loupe_ext.zeroshot.evaluate import choose_heat, evaluate

SOURCES = {
    "exact": {},
    "sampled 16": {"fsa.source": "sampled", "fsa.coalitions": 16},
    "sampled 64": {"fsa.source": "sampled", "fsa.coalitions": 64},
    "sampled 256": {"fsa.source": "sampled", "fsa.coalitions": 256},
    "UNSIL": {"fsa.source": "unsil", "fsa.coalitions": 64},
}
METRICS = ("i2t_r1", "t2i_r1", "pointing", "acc50", "miou", "proposal_acc50", "proposal_miou")
CALIBRATION = ("within_1", "within_2", "within_3", "calibration_error")
RESULTS = Path("bench/results/sources.csv")


def part_of(scenes: Grounded, part: slice) -> Grounded:
    pairs = scenes.pairs
    fields = (x[part] for x in (pairs.images, pairs.tokens, pairs.spans, pairs.phrase_lengths))
    truth = (x[part] for x in (scenes.boxes, scenes.objects, scenes.classes))
    return Grounded(Pairs(*fields, pairs.vocabulary), *truth, scenes.prompts)


def milliseconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


@torch.no_grad()
def seen_of(step: Step, pairs: Pairs, part: slice, at: int = 0) -> Seen:
    """What FSA sees of these pairs."""
    batch = pairs.batch(part)
    text = step.model.encode_text(batch.tokens, batch.spans, batch.phrase_lengths)
    return step.objective.see(step.model.encode_image(batch.images), text, step=at)


def fsa_of(step: Step) -> FSA:
    return step.objective.config.fsa


def source_alone(step: Step, seen: Seen) -> None:
    estimate = fsa_of(step).interactions(seen)
    if estimate is None:
        alignment_interactions(seen.alignment, None, seen.text.phrase_lengths)
    elif fsa_of(step).learns:
        estimate.loss.backward()


@torch.no_grad()
def relative_error(step: Step, pairs: Pairs, batch_size: int) -> float:
    """Of the source's interactions, over the exact ones' root mean square."""
    errors, squares = [], []
    for start in range(0, len(pairs) - batch_size + 1, batch_size):
        seen = seen_of(step, pairs, slice(start, start + batch_size), start)
        exact = alignment_interactions(seen.alignment, None, seen.text.phrase_lengths)
        estimate = fsa_of(step).interactions(seen)
        there = seen.text.phrase_mask[:, None].expand_as(exact)
        errors.append(((exact if estimate is None else estimate.interactions) - exact)[there].abs())
        squares.append(exact[there].square())
    return (torch.cat(errors).mean() / torch.cat(squares).mean().sqrt()).item()


def by_definition(rows: Tensor, columns: Tensor, samples: int, lengths: Tensor) -> Tensor:
    """`sampled_interactions` as it is written down: the game's value four times a coalition, for each pair."""
    B, M, N = rows.shape
    drawn = unpack_coalitions(sample_coalitions(M + N, samples, B, antithetic=False), M + N)
    regions, phrases = drawn[..., :M], drawn[..., M:] & (torch.arange(N) < lengths[:, None])[:, None]

    def value(inside: Tensor, present: Tensor) -> Tensor:
        both = (inside.any(-1) & present.any(-1)).float()
        by_row = rows[:, None].masked_fill(~present[:, :, None], -torch.inf).amax(3).nan_to_num(0, 0, 0)
        by_column = columns[:, None].masked_fill(~inside[..., None], -torch.inf).amax(2).nan_to_num(0, 0, 0)
        means = ((x * m).sum(-1) / m.sum(-1).clamp(min=1) for x, m in ((by_row, inside), (by_column, present)))
        return both * sum(means) / 2

    out = torch.zeros_like(rows)
    for i in range(M):
        for j in range(N):
            one, other = (torch.arange(n) == k for n, k in ((M, i), (N, j)))
            with_i, with_j, i_less, j_less = regions | one, phrases | other, regions & ~one, phrases & ~other
            difference = value(with_i, with_j) - value(with_i, j_less) - value(i_less, with_j) + value(i_less, j_less)
            out[:, i, j] = difference.mean(1)
    return torch.where((torch.arange(N) < lengths[:, None])[:, None], out, 0)


def learn(row: str, seed: int, options: argparse.Namespace) -> list[dict[str, object]]:
    """A recipe from every source: trained, judged, and timed in turn."""
    changes = next(x.changes for x in ROWS if x.key == row)
    pairs = load("scenes", "train", options.pairs).pairs
    validation = load("scenes", "validation", 2 * options.scenes)
    held = [part_of(validation, part) for part in (slice(options.scenes), slice(options.scenes, None))]
    lines, steps = [], []
    for source, of_source in SOURCES.items():
        same = {"seed": seed, "steps": options.steps, "train_size": options.pairs}
        config = Config(name=source).but(changes).but({**same, **of_source})
        folder = options.out / f"{row}-{source.replace(' ', '-')}-{seed}"
        trained = fit(pairs, config, path=folder)
        step = Step(trained.model, trained.objective)
        scores = evaluate(trained.model, held[1], trained.objective, *choose_heat(trained.model, held[0]))
        late = trained.history["step"] > options.steps * 4 / 5
        logged = {name: trained.history.get(f"fsa_unsil_{name}") for name in ("computed", *CALIBRATION)}
        logged = {name: value for name, value in logged.items() if value is not None}
        error = relative_error(step, held[1].pairs, config.optim.batch_size)
        line = {"row": row, "source": source, "seed": seed, "error": error, "ms_step": 0.0, "ms_own": 0.0, "share": 0.0}
        if logged:
            line |= {
                "computed": logged["computed"].mean().item(),
                "computed_late": logged["computed"][late].mean().item(),
            }
        line |= {name: logged[name][late].nanmean().item() for name in CALIBRATION if name in logged}
        lines.append(line | {name: scores[name] for name in METRICS if name in scores})
        steps.append(step.train())
        print(f"{row}, {source}, seed {seed}: {1000 * trained.seconds_per_step:.0f} ms/step", flush=True)
    time_in_turn(steps, lines, pairs, Config().optim.batch_size, options.rounds)
    return lines


def time_in_turn(modules: list[Step], lines: list[dict], pairs: Pairs, batch_size: int, rounds: int) -> None:
    """Adds the medians to the lines."""
    optimizers = [torch.optim.AdamW(module.parameters(), 0.0) for module in modules]
    batches = pairs.batches(batch_size)
    games = [seen_of(module, pairs, slice(batch_size)) for module in modules]
    steps, own = ([[] for _ in modules] for _ in range(2))

    def take(i: int, k: int) -> None:
        optimizers[i].zero_grad(set_to_none=True)
        modules[i](pairs.batch(batches.indices(k)), k)["loss"].backward()
        optimizers[i].step()

    for k in range(rounds + 2):
        for i, module in enumerate(modules):
            steps[i].append(milliseconds(lambda: take(i, k)))  # noqa: B023
            own[i].append(milliseconds(lambda: source_alone(module, games[i])))  # noqa: B023
    for line, step, alone in zip(lines, steps, own, strict=True):
        line["ms_step"], line["ms_own"] = statistics.median(step[2:]), statistics.median(alone[2:])
        line["share"] = line["ms_own"] / line["ms_step"]


def written_down(pairs: Pairs, config: Config) -> str:
    """The time that 64 coalitions take if no value is shared, beside `sampled_interactions`, which must agree."""
    seen = seen_of(Step(*build(config, pairs.vocabulary)), pairs, slice(config.optim.batch_size))
    text, alignment, lengths = seen.text, seen.alignment, seen.text.phrase_lengths
    rows = alignment.masked_fill(~text.phrase_mask[:, None], -torch.inf).softmax(2)
    columns, found = alignment.softmax(1), []
    plain = milliseconds(lambda: found.append(by_definition(rows, columns, 64, lengths)))
    ours = milliseconds(lambda: found.append(sampled_interactions(rows, columns, 64, 0, None, lengths)))
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)
    return (
        f"64 coalitions of {len(rows)} games of {rows.shape[1]} regions and {rows.shape[2]} phrases: {plain:.0f} ms by "
        f"four values per pair and coalition, {ours:.0f} ms as sampled_interactions shares them."
    )


def table(lines: list[dict[str, object]], row: str) -> str:
    """Markdown: a line a source, means over seeds."""
    heads = ["ms/step", "own", "share %", "error %", "computed %", "late", "1 s", "2 s", "3 s", "cal."]
    names = ["ms_step", "ms_own", "share", "error", "computed", "computed_late", *CALIBRATION, *METRICS]
    out = ["| " + " | ".join([row, *heads, *METRICS]) + " |", "| --- |" + " ---: |" * len(names)]
    for source in SOURCES:
        ours = [line for line in lines if (line["row"], line["source"]) == (row, source)]
        cells = []
        for name in names:
            values = [line[name] for line in ours if name in line]
            unit, digits = (1, 2) if name == "ms_own" else (1, 0) if name == "ms_step" else (100, 1)
            cells.append(f"{unit * statistics.fmean(values):.{digits}f}" if values else "-")
        out.append("| " + " | ".join([source, *cells]) + " |")
    return "\n".join(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--pairs", type=int, default=20_000, help="captioned images to train on")
    parser.add_argument("--scenes", type=int, default=500, help="to judge by, and as many for thresholds")
    parser.add_argument("--rounds", type=int, default=15, help="of timing")
    parser.add_argument("--rows", nargs="+", default=["default", "cmc-fsa"], choices=("default", "cmc-fsa"))
    parser.add_argument("--out", type=Path, default=Path("build/sources"), help="folder of checkpoints")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [line for seed in range(options.seeds) for row in options.rows for line in learn(row, seed, options)]
    names = list(dict.fromkeys(name for line in lines for name in line))
    with open(options.results, "w", newline="") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)
    for row in options.rows:
        print("\n" + table(lines, row))
    print("\n" + written_down(load("scenes", "train", 64).pairs, Config().but(train_size=64)))


if __name__ == "__main__":
    main()
