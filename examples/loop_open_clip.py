"""LOUPE's terms in a plain training loop around a model of `open_clip`, on pictures with captions.

    python examples/loop_open_clip.py ViT-B-32 PICTURES.csv --pretrained laion2b_s34b_b79k --out tuned.pt

MODEL: a name that open_clip knows, or local-dir:FOLDER. PICTURES.csv: lines of path,caption; paths are relative to the
file. The trained weights load again with --pretrained tuned.pt.
"""

import argparse
import csv
from itertools import chain, islice, repeat
from pathlib import Path

import open_clip
import torch
from PIL import Image

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.open_clip import OpenClipFeatures, OpenClipTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--pretrained", help="tag of weights that open_clip knows, or a file; none: random weights")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="file for the trained weights")
    options = parser.parse_args()

    model, preprocess, _ = open_clip.create_model_and_transforms(options.model, options.pretrained)
    features = OpenClipFeatures(model).to(options.device)
    tokenize = OpenClipTokenizer(open_clip.get_tokenizer(options.model))
    criterion = LoupeLoss().to(options.device)  # LoupeLoss(cmc=0) beside a contrast of your own
    optimizer = torch.optim.AdamW([*features.parameters(), *criterion.parameters()], options.lr)

    def collate(rows: list[list[str]]) -> tuple[dict, dict]:
        paths, captions = zip(*rows, strict=True)
        images = [preprocess(Image.open(options.pictures.parent / path).convert("RGB")) for path in paths]
        return {"images": torch.stack(images)}, tokenize(captions)

    with open(options.pictures, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    loader = torch.utils.data.DataLoader(
        rows, options.batch_size, shuffle=True, drop_last=True, collate_fn=collate, num_workers=options.workers
    )
    if not len(loader):
        raise SystemExit(f"{options.pictures}: expected at least {options.batch_size} pictures")
    features.train()
    for step, batch in enumerate(islice(chain.from_iterable(repeat(loader)), options.steps), start=1):
        image, text = features(*({name: x.to(options.device) for name, x in part.items()} for part in batch))
        losses = criterion(
            image.pooled,
            text.pooled,
            image.patches.flatten(1, 2),
            text.phrases,
            logit_scale=features.logit_scale,
            phrase_lengths=text.phrase_lengths,
        )
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        if step % 10 == 1 or step == options.steps:
            print(f"step {step}", *(f"{name} {value.item():.3f}" for name, value in losses.items()), flush=True)
    if options.out:
        torch.save(model.state_dict(), options.out)


if __name__ == "__main__":
    main()
