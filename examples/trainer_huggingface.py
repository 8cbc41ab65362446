"""LOUPE's terms in the `Trainer` of `transformers`, around a CLIP-like model, on pictures with captions.

    python examples/trainer_huggingface.py MODEL PICTURES.csv --steps 1000 --out tuned

MODEL: a folder as `save_pretrained` writes it (CLIP, SigLIP or SigLIP 2, with its processor), or a name on the hub.
PICTURES.csv: lines of path,caption; paths are relative to the file. `accelerate launch` runs it on several GPUs; each
contrasts its own pairs.
"""

import argparse
import csv
from pathlib import Path

import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, Trainer, TrainingArguments

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.clip import ClipFeatures, PhraseTokenizer


class WithLoupe(torch.nn.Module):
    """A model whose output has the "loss" that the Trainer looks for."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.features, self.criterion = ClipFeatures(model), LoupeLoss()

    def forward(self, images: dict[str, torch.Tensor], captions: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        image, text = self.features(images, captions)
        return self.criterion(
            image.pooled,
            text.pooled,
            image.patches.flatten(1, 2),
            text.phrases,
            logit_scale=self.features.logit_scale,
            region_lengths=image.lengths,
            phrase_lengths=text.phrase_lengths,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--out", default="tuned", help="folder for the trained model and the Trainer's checkpoints")
    options = parser.parse_args()

    processor = AutoProcessor.from_pretrained(options.model)
    model = WithLoupe(AutoModel.from_pretrained(options.model))
    tokenize = PhraseTokenizer(processor.tokenizer, **model.features.padding)

    def collate(rows: list[list[str]]) -> dict[str, dict[str, torch.Tensor]]:
        paths, captions = zip(*rows, strict=True)
        pictures = [Image.open(options.pictures.parent / path).convert("RGB") for path in paths]
        images = processor.image_processor(pictures, return_tensors="pt")
        return {"images": dict(images), "captions": tokenize(captions)}

    arguments = TrainingArguments(
        options.out,
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        learning_rate=options.lr,
        remove_unused_columns=False,  # rows are paths and captions, which `collate` reads
        dataloader_drop_last=True,
        logging_steps=10,
        report_to="none",
    )
    with open(options.pictures, newline="", encoding="utf-8") as file:
        Trainer(model, arguments, collate, train_dataset=list(csv.reader(file))).train()
    model.features.model.save_pretrained(options.out)
    processor.save_pretrained(options.out)


if __name__ == "__main__":
    main()
