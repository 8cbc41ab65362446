"""Our loop around encoders of one's own: a module for pictures and one for texts, trained on pictures with captions.

    python examples/own_encoder.py PICTURES.csv --steps 1000 --out run

PICTURES.csv: lines of path,caption; paths are relative to the file. The folder "run" has the state of the run (the same
command goes on from there), its metrics and the weights.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from loupe_ext.data import Pairs, Vocabulary
from loupe_ext.model.dual import DualEncoder
from loupe_ext.objective import Objective
from loupe_ext.train import OptimConfig, train

SIDE = 64  # pixels to which pictures are brought


class Backbone(nn.Module):
    """Any network from pictures to a map of features, such as timm's `create_model(name, features_only=True)`."""

    width = 96

    def __init__(self) -> None:
        super().__init__()
        sizes = ((3, 32), (32, 64), (64, self.width))  # each halves the map: a token per 8 x 8 pixels
        self.layers = nn.Sequential(*(nn.Sequential(nn.Conv2d(*size, 3, 2, 1), nn.GELU()) for size in sizes))

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> [B, h, w, width]."""
        return self.layers(images / 127.5 - 1).movedim(1, 3)


class Reader(nn.Module):
    """Any network from token ids to features."""

    width = 64

    def __init__(self, vocabulary_size: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary_size, self.width)
        self.gru = nn.GRU(self.width, self.width // 2, batch_first=True, bidirectional=True)

    def forward(self, tokens: Tensor, spans: Tensor) -> Tensor:
        """[B, L] int64, padded with 0, and where the noun phrases are, [B, P, 2] -> [B, L, width]."""
        return self.gru(self.embed(tokens))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", default="run")
    options = parser.parse_args()

    with open(options.pictures, newline="", encoding="utf-8") as file:
        paths, captions = zip(*csv.reader(file), strict=True)
    pictures = (Image.open(options.pictures.parent / path).convert("RGB").resize((SIDE, SIDE)) for path in paths)
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(3, 1)
    pairs = Pairs.from_captions(images, captions, Vocabulary.of(captions))
    model = DualEncoder(Backbone(), Reader(len(pairs.vocabulary)), dim=64)
    objective = Objective(cmc=1.0, region_phrase=1.0, proposal_phrase=1.0, fsa=1.0, boxes=2.0)
    batches = pairs.batches(options.batch_size)
    optim = OptimConfig(steps=options.steps, batch_size=options.batch_size)
    train(model, objective, batches, optim, device=options.device, path=options.out, report=print)


if __name__ == "__main__":
    main()
