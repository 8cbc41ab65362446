"""How far the default recipe comes on the pictograms: the curve and the cases of docs/pictograms.md.

python experiments/pictograms.py RUN --seeds 3 --style FOLDER [--drawings FOLDER ...] [boxes.centred=true ...]

It trains in the folders RUN/seed-0, RUN/seed-1, ... (started again, it goes on from there), and writes in RUN what test
scenes say: table.md, means and standard deviations over the seeds, and runs.csv, every run; curve.csv and curve.png,
the means on validation scenes; and cases.png, of the first seed. A folder of drawings holds PNG or SVG files named by
lower-case code points, such as img/google/64 of the npm package emoji-datasource-google. Test scenes are drawn with
those of --style too; training scenes with those of each --drawings, equally many with each and with OpenMoji. Settings
are those of `loupe train`. How heat is read is chosen on validation scenes.
"""

import argparse
import csv
import io
import textwrap
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
import yaml
from loupe_experiments.report import look
from loupe_experiments.table import BRIEF, HEADS, Cell
from matplotlib.figure import Figure
from PIL import Image

from loupe_ext._io import write
from loupe_ext.data import Grounded, Pairs, load
from loupe_ext.data.pictograms import Pixels, Sprites, cut, groups, openmoji, pictogram_scenes, rendered
from loupe_ext.model.regions import box_iou
from loupe_ext.train import Config, Pretrained, Progress, fit, from_pretrained, metrics
from loupe_ext.zeroshot.evaluate import choose_heat, evaluate
from loupe_ext.zeroshot.grounding import chosen_boxes

SHOWN = {
    "pointing": "pointing",
    "acc50": "heat's box, Acc@.5",
    "proposal_acc50": "proposals, Acc@.5",
    "ap50": "detection, AP@.5",
    "i2t_r1": "I→T R@1",
}
TABLE = {name: HEADS[name] for name in (*BRIEF[2:], "ap50", *BRIEF[:2])}
CASES = 6  # of each kind


def style(folder: Path) -> Sprites:
    """Drawings of all names by the files of a folder; those that it lacks are OpenMoji's."""
    codes = [code.lower() for group in groups().values() for code in group.values()]
    found = [drawing(folder, code) for code in codes]
    print(f"{folder}: {sum(image is None for image in found)} of {len(found)} names are missing")
    pairs = zip(found, openmoji().images, strict=True)
    return Sprites(tuple(other if image is None else image for image, other in pairs))


def drawing(folder: Path, code: str) -> Pixels | None:
    for name in (code, f"{code}-fe0f", code.zfill(4), code.removesuffix("-fe0f")):
        if (folder / f"{name}.png").exists():
            return cut(Image.open(folder / f"{name}.png"))
        if (folder / f"{name}.svg").exists():
            return rendered((folder / f"{name}.svg").read_text())
    return None


def training(size: int, folders: list[Path]) -> Pairs:
    if not folders:
        return load("pictograms", "train", size).pairs
    sprites = [openmoji(), *map(style, folders)]
    parts = [pictogram_scenes(0, size // len(sprites), seed, each).pairs for seed, each in enumerate(sprites)]
    fields = ("images", "tokens", "spans", "phrase_lengths")
    return Pairs(*(torch.cat([getattr(part, field) for part in parts]) for field in fields), parts[0].vocabulary)


def tests(trained: Pretrained, validation: Grounded, scenes: int, other: Path | None) -> dict[str, dict[str, float]]:
    """The metrics on test scenes, on those with held-out names, and on test scenes in the other style."""
    sets = {split: load("pictograms", split, scenes) for split in ("test", "held-out")}
    if other is not None:
        sets["other style"] = pictogram_scenes(2, scenes, 0, style(other))
    rule = choose_heat(trained.model, validation)
    return {
        name: evaluate(trained.model, each, trained.objective, *rule) | rule._asdict() for name, each in sets.items()
    }


def curve(runs: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
    """Step and metrics of each validation, means over the runs, from the lines of their records."""
    prefix = "validation/"
    validations = [[line for line in lines if f"{prefix}pointing" in line] for lines in runs]
    return [
        {"step": at[0]["step"], **{name: fmean(line[prefix + name] for line in at) for name in SHOWN}}
        for at in zip(*validations, strict=True)
    ]


def comma_separated(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def markdown(found: list[dict[str, dict[str, float]]]) -> str:
    """Means and standard deviations over the seeds, a line per set of test scenes."""
    lines = [["", *TABLE.values()], ["---", *["---:"] * len(TABLE)]]
    for name in found[0]:
        cells = [Cell.of([of_seed[name][metric] for of_seed in found]) for metric in TABLE]
        lines.append([name, *(cell.show(len(found), 100, 1) for cell in cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw_curve(points: list[dict[str, float]], path: Path) -> None:
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, title in SHOWN.items():
        axes.plot([p["step"] for p in points], [100 * p[name] for p in points], marker="o", markersize=3, label=title)
    axes.set(xlabel="steps", ylabel="%, 500 validation scenes", ylim=(0, 100), xlim=(0, None))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=110)


def draw_cases(trained: Pretrained, scenes: Grounded, path: Path) -> None:
    """The first phrases that a proposal grounds (IoU of .5 or more), and the first that none does."""
    right: list[tuple[int, int]] = []
    wrong: list[tuple[int, int]] = []
    views = look(trained, scenes)
    boxes = [chosen_boxes(view.proposals[None], view.chosen[None])[0] for view in views]
    for i, found in enumerate(boxes):
        true = scenes.boxes[i, : len(found)]
        overlaps = box_iou(found, true).tolist()
        p = min(range(len(overlaps)), key=overlaps.__getitem__)  # one per scene: its worst
        (right if overlaps[p] >= 0.5 else wrong).append((i, p))
    figure = Figure(figsize=(2 * CASES, 5.6), layout="constrained")
    for row, (title, cases) in zip(figure.subplots(2, CASES), (("right", right), ("wrong", wrong)), strict=True):
        for axes, (i, p) in zip(row, cases, strict=False):
            axes.imshow(scenes.pairs.images[i].permute(1, 2, 0))
            for box, look_of in ((boxes[i][p], "-"), (scenes.boxes[i, p], "--")):
                x0, y0, x1, y1 = box.tolist()
                axes.plot([x0, x1, x1, x0, x0], [y0, y0, y1, y1, y0], look_of, color="#e11d48", linewidth=1.6)
            axes.set_title(textwrap.fill(f"{title}: {scenes.pairs.phrases(i)[p]}", 24), fontsize=9)
        for axes in row:
            axes.axis("off")
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("changes", nargs="*", metavar="name=value", help="settings, as those of `loupe train`")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--pairs", type=int, default=20_000)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--every", type=int, default=300, help="steps between validations")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--style", type=Path, metavar="FOLDER", help="test scenes are drawn with its drawings too")
    parser.add_argument(
        "--drawings", type=Path, metavar="FOLDER", action="append", default=[], help="and training scenes"
    )
    options = parser.parse_intermixed_args()
    changes = {name: yaml.safe_load(value) for name, _, value in (text.partition("=") for text in options.changes)}
    validation = load("pictograms", "validation", options.scenes)

    def report(progress: Progress) -> None:
        if progress.step % 50 == 0:
            print(progress.step, {name: round(value, 3) for name, value in progress.losses.items()}, flush=True)

    pairs, found, records = training(options.pairs, options.drawings), [], []
    for seed in range(options.seeds):
        run = options.run / f"seed-{seed}"
        fit(
            pairs,
            Config().but(changes, steps=options.steps, train_size=options.pairs, dataset="pictograms", seed=seed),
            path=run,
            report=report,
            validate=lambda model, objective: evaluate(model, validation, objective),
            validate_every=options.every,
        )
        records.append(metrics.read(run / metrics.FILE))
        trained = from_pretrained(run)
        if seed == 0:
            draw_cases(trained, load("pictograms", "test", 40), options.run / "cases.png")
        found.append(tests(trained, validation, options.scenes, options.style))

        # After every seed, what is known by then.
        points = curve(records)
        write(options.run / "curve.csv", comma_separated(points))
        draw_curve(points, options.run / "curve.png")
        rows = [
            {"seed": seed, "scenes": name, **{key: of_seed[name].get(key, "") for key in of_seed["held-out"]}}
            for seed, of_seed in enumerate(found)
            for name in of_seed
        ]
        write(options.run / "runs.csv", comma_separated(rows))
        write(options.run / "table.md", markdown(found))
        print(markdown(found), flush=True)


if __name__ == "__main__":
    main()
