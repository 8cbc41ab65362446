"""LOUPE's terms in a plain training loop around a CLIP-like model of `transformers`, on pictures with captions.

    python examples/loop_transformers.py MODEL PICTURES.csv --steps 1000 --out tuned

MODEL: a folder as `save_pretrained` writes it (CLIP, SigLIP or SigLIP 2, with its processor), or a name on the hub.
PICTURES.csv: lines of path,caption; paths are relative to the file.
"""

import argparse
import csv
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.clip import ClipFeatures, PhraseTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    features = ClipFeatures(AutoModel.from_pretrained(options.model)).to(options.device)
    tokenize = PhraseTokenizer(processor.tokenizer, **features.padding)
    criterion = LoupeLoss().to(options.device)  # LoupeLoss(cmc=0) beside a contrast of your own
    optimizer = torch.optim.AdamW([*features.parameters(), *criterion.parameters()], options.lr)

    def collate(rows: list[list[str]]) -> tuple[dict, dict]:
        paths, captions = zip(*rows, strict=True)
        pictures = [Image.open(options.pictures.parent / path).convert("RGB") for path in paths]
        return dict(processor.image_processor(pictures, return_tensors="pt")), tokenize(captions)

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
            region_lengths=image.lengths,
            phrase_lengths=text.phrase_lengths,
        )
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        if step % 10 == 1 or step == options.steps:
            print(f"step {step}", *(f"{name} {value.item():.3f}" for name, value in losses.items()), flush=True)
    if options.out:
        features.model.save_pretrained(options.out)
        processor.save_pretrained(options.out)


if __name__ == "__main__":
    main()
