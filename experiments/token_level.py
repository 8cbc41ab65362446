"""Which sign finds objects? Token-level interactions of boxes against their overlap with true objects.

    python experiments/token_level.py runs/scenes-cmc-0 runs/scenes-default-0

takes trained models, prints the rank correlations of docs/token-level.md, and draws its picture, from boxes of
every size at random places in test scenes.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from loupe_ext import boxes_to_regions, region_interactions
from loupe_ext.data import load
from loupe_ext.model.image import PATCH
from loupe_ext.model.regions import box_iou
from loupe_ext.ops.region import GAMES
from loupe_ext.train import from_pretrained

SIDES = (2, 6)  # of the boxes, in patches
BOXES = 96  # an image


class Seen(NamedTuple):
    name: str  # of the row that the model was trained by
    interactions: dict[str, Tensor]  # by game, [scenes * BOXES]
    sizes: Tensor  # patches of each box
    overlap: Tensor  # its largest IoU with an object that the caption names


def random_boxes(scenes: int, height: int, width: int) -> Tensor:
    """x0, y0, x1, y1 in patches, [scenes, BOXES, 4]."""
    generator = torch.Generator().manual_seed(0)
    sides = torch.randint(SIDES[0], SIDES[1] + 1, (scenes, BOXES, 2), generator=generator)
    room = torch.tensor([width, height]) - sides
    low = (torch.rand(sides.shape, generator=generator) * (room + 1)).long()
    return torch.cat([low, low + sides], -1)


@torch.no_grad()
def look(path: Path, scenes: int) -> Seen:
    model, _, config = from_pretrained(path)
    test = load(config.data.dataset, "test", scenes)
    image = model.encode_image(test.pairs.images)
    text = model.encode_text(test.pairs.tokens, test.pairs.spans, test.pairs.phrase_lengths)
    _, h, w, _ = image.patches.shape
    boxes = random_boxes(scenes, h, w)
    masks = boxes_to_regions(boxes.float(), h, w)
    pooled, _ = region_interactions((image.patches * image.weights[..., None]).flatten(1, 2), text.pooled, masks)
    late, _ = region_interactions(
        image.patches.flatten(1, 2), text.tokens, masks, game="late-interaction", text_lengths=text.lengths
    )
    overlap = box_iou(PATCH * boxes[:, :, None].float(), test.boxes.nan_to_num()[:, None]).amax(2)
    interactions = dict(zip(GAMES, (pooled.flatten(), late.flatten()), strict=True))
    return Seen(config.name, interactions, masks.sum(-1).flatten(), overlap.flatten())


def rank_correlation(x: Tensor, y: Tensor) -> float:
    """Spearman's; ties share their mean rank."""

    def ranks(values: Tensor) -> Tensor:
        _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
        after = counts.cumsum(0).double()
        return (after - (counts - 1) / 2)[inverse]

    return torch.corrcoef(torch.stack([ranks(x), ranks(y)]))[0, 1].item()


def rows(seen: Seen) -> Iterator[str]:
    square = seen.sizes == 16
    for game, interactions in seen.interactions.items():
        numbers = (
            rank_correlation(interactions, seen.overlap),
            rank_correlation(interactions[square], seen.overlap[square]),
            rank_correlation(-interactions / seen.sizes, seen.overlap),
        )
        yield f"| {seen.name} | {game} | " + " | ".join(f"{x:+.2f}" for x in numbers) + " |"


def draw(models: list[Seen], out: Path) -> None:
    """Median and middle half of I, in each game's own unit, of boxes of 16 patches by their overlap."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    edges = torch.linspace(0, 0.8, 9)
    figure, panels = plt.subplots(1, len(GAMES), figsize=(9, 3.4), layout="constrained")
    for panel, game in zip(panels, GAMES, strict=True):
        for seen in models:
            chosen = seen.sizes == 16
            values, overlap = seen.interactions[game][chosen], seen.overlap[chosen]
            bins = torch.bucketize(overlap, edges[1:-1], right=True)
            filled = [i for i in range(len(edges) - 1) if (bins == i).sum() > 9]
            quarters = [values[bins == i].quantile(torch.tensor([0.25, 0.5, 0.75])) for i in filled]
            low, middle, high = torch.stack(quarters, 1) / values.abs().median()
            at = (edges[:-1] + edges[1:])[filled] / 2
            panel.plot(at, middle, marker="o", label=seen.name)
            panel.fill_between(at, low, high, alpha=0.2)
        panel.axhline(0, color="grey", lw=0.8)
        panel.set(title=f"{game} game", xlabel="IoU with the nearest named object", ylabel="I(R) / median |I|")
    panels[0].legend()
    figure.savefig(out, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoints", nargs="+", type=Path)
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("docs/token-level.png"))
    options = parser.parse_args()
    models = [look(path, options.scenes) for path in options.checkpoints]
    print("| model | game | I, all boxes | I, boxes of 16 patches | -I/\\|R\\|, all boxes |")
    print("|---|---|---:|---:|---:|")
    for seen in models:
        print("\n".join(rows(seen)))
    draw(models, options.out)
    print(f"The picture: {options.out}")


if __name__ == "__main__":
    main()
