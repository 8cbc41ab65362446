"""One self-contained page: the table, the loss curves, and what the default recipe sees in test scenes."""

import base64
import datetime
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from loupe_experiments import table
from loupe_experiments.rows import ROWS, Run
from loupe_experiments.runs import Result, folder_of
from loupe_ext._io import write
from loupe_ext.data import Grounded, load
from loupe_ext.extras import needs
from loupe_ext.losses import alignment_interactions
from loupe_ext.model.heat import heat_maps
from loupe_ext.model.regions import box_iou
from loupe_ext.train import Pretrained, from_pretrained, metrics
from loupe_ext.zeroshot.grounding import choose_proposals, chosen_boxes

PHRASE_COLOURS = ("#e11d48", "#2563eb", "#059669")
TITLES = {
    "scenes": "Rendered scenes",
    "digits": "Scenes of handwritten digits",
    "pictograms": "Pictograms on photographs",
}
LOSSES = {
    "cmc": "CMC",
    "late_interaction": "Late interaction",
    "region_phrase": "Region-phrase",
    "proposal_phrase": "Proposal-phrase",
    "fsa": "FSA",
}
SHOWN = {"scenes": 8, "digits": 4, "pictograms": 4}
GROUPS = (("Retrieval", 4), ("Heat maps", 5), ("Proposals", 4), ("Detection", 2), ("", 1))


def write_report(path: Path, runs: Sequence[Run], results: Sequence[Result], out: Path) -> None:
    """Write the page of `runs`, whose `results` and checkpoints lie in `out`, to `path` in one piece."""
    first = next(run for run in runs if run.data == "scenes")
    page = Template(files("loupe_experiments").joinpath("report.html").read_text()).substitute(
        facts=_facts(first, runs),
        spread="Mean ± standard deviation over seeds." if len({run.seed for run in runs}) > 1 else "",
        tables="".join(_table(results, data) for data in TITLES),
        curves=_curves([run for run in runs if run.data == "scenes" and run.seed == first.seed], out),
        gallery=f'<div class="gallery">{"".join(_cards(runs, out))}</div>',
        footer=f"loupe_ext, {datetime.date.today().isoformat()}, torch {escape(torch.__version__)}, "
        f"{os.cpu_count()} CPU cores, one thread a run.",
    )
    write(path, page)


def _facts(run: Run, runs: Sequence[Run]) -> str:
    """What the rows of `run`'s data have in common, and what other data have instead."""
    seeds = len({each.seed for each in runs})
    others = {each.data: each for each in runs if each.steps != run.steps}
    instead = "".join(
        f" {TITLES[data]}, whose steps take longer: {each.steps} steps, {each.train_size:,} pairs."
        for data, each in others.items()
    )
    return (
        f"Every row starts alike, sees the same {run.train_size:,} pairs in the same order, and takes {run.steps} "
        f"steps of {run.config.optim.batch_size}; {seeds} seed{'s' if seeds > 1 else ''}, {run.evaluation_scenes} test "
        f"scenes.{instead}"
    )


def _table(results: Sequence[Result], data: str) -> str:
    found = table.lines(results, data)
    if not found:
        return ""
    groups = "".join(f'<th class="group" colspan="{n}">{name}</th>' for name, n in GROUPS)
    heads = "".join(f"<th>{escape(head.removeprefix('Prop. '))}</th>" for head in ["", *table.HEADS.values()])
    body = []
    for line in found:
        cells = []
        for name, text in line.texts().items():
            cells.append(f"<td{' class=best' if table.is_best(line, found, name) else ''}>{text}</td>")
        body.append(f"<tr><th>{escape(line.row.title)}</th>{''.join(cells)}</tr>")
    return (
        f'<h3>{TITLES[data]}</h3><div class="wide"><table class="results"><thead><tr><th></th>{groups}</tr>'
        f"<tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )


def _curves(runs: Sequence[Run], out: Path) -> str:
    with needs("matplotlib"):
        from matplotlib.figure import Figure
    lines = {run.row.key: metrics.read(folder_of(out, run) / metrics.FILE) for run in runs}
    named = {name for read in lines.values() for line in read for name in line}
    names = {name: title for name, title in LOSSES.items() if name in named}
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    titles = {row.key: row.title for row in ROWS}
    handles = {}
    for axes, (name, title) in zip(figure.subplots(1, len(names)), names.items(), strict=True):
        for i, row in enumerate(ROWS):
            points = [(line["step"], line[name]) for line in lines.get(row.key, []) if name in line]
            if points:
                (handles[titles[row.key]],) = axes.plot(*zip(*points, strict=True), color=f"C{i}", linewidth=1.4)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    picture = io.BytesIO()
    figure.savefig(picture, format="svg", metadata={"Date": None})
    return _data_url("image/svg+xml", picture.getvalue())


def _cards(runs: Sequence[Run], out: Path) -> list[str]:
    cards = []
    for data, count in SHOWN.items():
        run = next((run for run in runs if run.data == data and run.row.key == "default"), None)
        if run is not None:
            scenes = load(data, "test", count)
            views = look(from_pretrained(folder_of(out, run)), scenes)
            cards += [_card(scenes, i, view) for i, view in enumerate(views)]
    return cards


@dataclass(frozen=True)
class View:
    """What a model sees in one scene of P phrases, with M proposals."""

    heat: Tensor  # [P, h, w]
    proposals: Tensor  # [M, 4]
    chosen: Tensor  # [P], the proposal that each phrase picks
    interactions: Tensor  # [M, P]


@torch.no_grad()
def look(trained: Pretrained, scenes: Grounded) -> list[View]:
    """A model's view of each scene."""
    batch = scenes.pairs.batch(slice(None))
    model, objective, config = trained
    image = model.encode_image(batch.images)
    text = model.encode_text(batch.tokens, batch.spans, batch.phrase_lengths)
    features, boxes, confidence = image.proposals(config.objective.proposals, config.objective.overlap)
    alignment = objective.local_logit_scale() * features @ text.phrases.mT
    interactions = alignment_interactions(alignment, phrase_lengths=text.phrase_lengths)
    heat = heat_maps(image.patches, text.phrases)
    chosen = choose_proposals(features, confidence, text.phrases)
    return [
        View(heat[i, :n], boxes[i], chosen[i, :n], interactions[i, :, :n])
        for i, n in enumerate(text.phrase_lengths.tolist())
    ]


def _card(scenes: Grounded, i: int, view: View) -> str:
    pixels = scenes.pairs.images[i]
    phrases = scenes.pairs.phrases(i)
    true = scenes.boxes[i, : len(phrases)]
    predicted = chosen_boxes(view.proposals[None], view.chosen[None])[0]
    overlap = box_iou(predicted, true).tolist()
    side = pixels.shape[1]
    boxes = "".join(
        _rectangle(predicted[p], PHRASE_COLOURS[p], 1.1) + _rectangle(true[p], PHRASE_COLOURS[p], 0.8, dashed=True)
        for p in range(len(phrases))
    )
    maps = [_map(_heat_picture(pixels, view.heat[p]), escape(phrase), "") for p, phrase in enumerate(phrases)]
    maps.append(_map(_png(pixels), "proposals, by confidence", _numbered(view.proposals, side)))
    return (
        f'<article class="card"><div class="caption">{_coloured(scenes.pairs.caption(i), phrases, overlap)}</div>'
        f'<div class="picture"><img alt="test image" src="{_png(pixels)}">'
        f'<svg viewBox="0 0 {side} {side}">{boxes}</svg></div>'
        f'<div class="maps">{"".join(maps)}</div>{_matrix(phrases, view)}</article>'
    )


def _coloured(caption: str, phrases: Sequence[str], overlap: Sequence[float]) -> str:
    parts, rest = [], caption
    for p, phrase in enumerate(phrases):
        before, _, rest = rest.partition(phrase)
        parts.append(
            f'{escape(before)}<span style="color:{PHRASE_COLOURS[p]}">{escape(phrase)}</span> '
            f'<span class="iou">{overlap[p]:.2f}</span>'
        )
    return "".join([*parts, escape(rest)]).replace(" ,", ",")


def _rectangle(box: Tensor, colour: str, width: float, dashed: bool = False) -> str:
    x0, y0, x1, y1 = box.tolist()
    dash = ' stroke-dasharray="2.4 1.8"' if dashed else ""
    return (
        f'<rect x="{x0:.2f}" y="{y0:.2f}" width="{x1 - x0:.2f}" height="{y1 - y0:.2f}" fill="none" rx=".6" '
        f'stroke="{colour}" stroke-width="{width}"{dash}/>'
    )


def _numbered(boxes: Tensor, side: int) -> str:
    """Boxes and their ranks; the first on top."""
    marks = []
    for rank, box in reversed(list(enumerate(boxes, start=1))):
        marks.append(_rectangle(box, "#fff", 0.45))
        x, y = box[0].clamp(0, side - 8).item(), box[1].clamp(0, side - 8).item()
        marks.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{4.2 if rank < 10 else 6.6}" height="5.6" fill="#fff" rx=".8"/>'
            f'<text x="{x + 0.7:.1f}" y="{y + 4.5:.1f}" font-size="5" fill="#1d2430">{rank}</text>'
        )
    return f'<svg viewBox="0 0 {side} {side}">{"".join(marks)}</svg>'


def _map(picture: str, caption: str, over: str) -> str:
    return (
        f'<figure class="map"><div><img alt="" src="{picture}">{over}</div><figcaption>{caption}</figcaption></figure>'
    )


def _matrix(phrases: Sequence[str], view: View) -> str:
    unit = view.interactions.abs().amax().clamp(min=1e-30)
    heads = "".join(f"<th>{rank}</th>" for rank in range(1, len(view.proposals) + 1))
    rows = []
    for p, phrase in enumerate(phrases):
        cells = []
        for value in (view.interactions[:, p] / unit).tolist():
            colour = "220,38,38" if value > 0 else "37,99,235"
            ink = "#fff" if abs(value) > 0.6 else "inherit"
            cells.append(f'<td style="background:rgba({colour},{abs(value):.2f});color:{ink}">{value:.2f}</td>')
        rows.append(f'<tr><th style="color:{PHRASE_COLOURS[p]}">{escape(phrase)}</th>{"".join(cells)}</tr>')
    return f'<table class="matrix"><tr><th>interaction</th>{heads}</tr>{"".join(rows)}</table>'


def _heat_picture(pixels: Tensor, heat: Tensor) -> str:
    """The image in grey, under the heat in colour, from the coolest patch to the hottest."""
    with needs("matplotlib"):
        from matplotlib import colormaps
    fine = interpolate(heat[None, None], size=pixels.shape[1:], mode="bilinear")[0, 0]
    level = ((fine - fine.amin()) / (fine.amax() - fine.amin()).clamp(min=1e-9)).numpy()
    grey = pixels.float().mean(0).numpy()[..., None]
    blended = 0.3 * grey + 0.7 * 255 * colormaps["inferno"](level)[..., :3]
    return _png(torch.from_numpy(np.rint(blended).astype(np.uint8)).permute(2, 0, 1))


def _png(pixels: Tensor, scale: int = 2) -> str:
    """A data URL of pixels [3, h, w], uint8, enlarged a little, so that no browser shows them as blocks."""
    with needs("pillow"):
        from PIL import Image
    picture = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    picture = picture.resize((scale * picture.width, scale * picture.height), Image.Resampling.BICUBIC)
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return _data_url("image/png", data.getvalue())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
