"""One process of several: takes a step by each objective on its part of a batch, and writes its losses and gradients.

python -m torch.distributed.run ... tests/parallel_run.py FOLDER ddp|fsdp ROW...
"""

import sys
from pathlib import Path

import torch
from loupe_experiments.ablation import ROWS

from loupe_ext import data
from loupe_ext.train import Config, fit, parallel, processes

# Ragged captions, and more processes than some have images for pseudo boxes.
CONFIG = Config().but(
    {"boxes.images": 4, "fsa.coalitions": 4, "tsa.samples": 4},
    width=16,
    dim=16,
    batch_size=8,
    train_size=40,
    steps=1,
    clip=1e9,
    precision="float32",
)


def main() -> None:
    folder, by, *rows = sys.argv[1:]
    torch.set_num_threads(1)
    pairs = data.load("scenes", "train", 40).pairs
    changes = {row.key: row.changes for row in ROWS}
    with processes(timeout=60):
        for row in rows:
            trained = fit(pairs, CONFIG.but(changes[row]), log_every=1, parallel_by=by)
            gradients = {
                f"{part}.{name}": parallel.whole(x.grad)
                for part in ("model", "objective")
                for name, x in getattr(trained, part).named_parameters()
                if x.requires_grad
            }
            if parallel.rank() == 0:
                torch.save((gradients, trained.history), Path(folder) / f"{row}.pt")


if __name__ == "__main__":
    main()
