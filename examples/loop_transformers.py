"""LOUPE's terms in a plain training loop around a CLIP-like model of `transformers`, on pictures with captions.

    python examples/loop_transformers.py MODEL PICTURES.csv --steps 1000 --out tuned

MODEL: a folder as `save_pretrained` writes it (CLIP, SigLIP or SigLIP 2, with its processor), or a name on the hub.
PICTURES.csv: lines of path,caption; paths are relative to the file.
"""

import argparse
import csv
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.clip import ClipFeatures, PhraseTokenizer


class Captioned(torch.utils.data.Dataset):
    def __init__(self, path: Path) -> None:
        with open(path, newline="", encoding="utf-8") as file:
            self.rows = [(path.parent / picture, caption) for picture, caption in csv.reader(file)]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[Image.Image, str]:
        with Image.open(self.rows[i][0]) as picture:
            return picture.convert("RGB"), self.rows[i][1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", help="folder for the trained model")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    tokenize = PhraseTokenizer(processor.tokenizer)
    features = ClipFeatures(AutoModel.from_pretrained(options.model)).to(options.device)
    criterion = LoupeLoss().to(options.device)  # LoupeLoss(cmc=0) beside a contrast of your own
    optimizer = torch.optim.AdamW([*features.parameters(), *criterion.parameters()], options.lr)

    def collate(rows: list[tuple[Image.Image, str]]) -> tuple[dict, dict]:
        pictures, captions = zip(*rows, strict=True)
        return dict(processor.image_processor(list(pictures), return_tensors="pt")), tokenize(captions)

    loader = torch.utils.data.DataLoader(
        Captioned(options.pictures), options.batch_size, shuffle=True, drop_last=True, collate_fn=collate
    )
    if not len(loader):
        raise SystemExit(f"{options.pictures}: expected at least {options.batch_size} pictures")
    step = 0
    while step < options.steps:
        for batch in loader:
            image, text = features(*({name: x.to(options.device) for name, x in part.items()} for part in batch))
            losses = criterion(
                image.pooled,
                text.pooled,
                image.patches,
                text.phrases,
                logit_scale=features.model.logit_scale.exp(),
                region_lengths=image.lengths,
                phrase_lengths=text.lengths,
            )
            optimizer.zero_grad()
            losses["loss"].backward()
            optimizer.step()
            step += 1
            if step % 10 == 1 or step == options.steps:
                print(f"step {step}", *(f"{name} {value.item():.3f}" for name, value in losses.items()), flush=True)
            if step == options.steps:
                break
    if options.out:
        features.model.save_pretrained(options.out)
        processor.save_pretrained(options.out)


if __name__ == "__main__":
    main()
