"""What each of our terms costs in a training step of a CLIP of `transformers`.

    python -m bench.clip_step                                    # a small CLIP, batch 32, one thread
    python -m bench.clip_step --device cuda --size base --batch-size 256

The whole steps take turns. A term is timed alone, forward and backward, on the features of that model. All figures are
medians; on the CPU, of the process's own time on one thread, which other processes hardly change.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import CLIPConfig, CLIPModel

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.clip import ClipFeatures

VOCABULARY, TOKENS, PHRASES = 8192, 24, 4
SIZES = {  # layers, then widths and heads of image and text; "base" is ViT-B/32
    "small": (6, (384, 6), (256, 4)),
    "base": (12, (768, 12), (512, 8)),
}
OFF = dict.fromkeys(("cmc", "region_phrase", "fsa", "late_interaction"), 0.0)


def clip(size: str) -> CLIPModel:
    layers, vision, text = SIZES[size]

    def tower(width: int, heads: int) -> dict[str, int]:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": heads}
        return {**sizes, "num_hidden_layers": layers}

    vision_config = {**tower(*vision), "image_size": 224, "patch_size": 32}
    text_config = {
        **tower(*text),
        "vocab_size": VOCABULARY,
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }
    return CLIPModel(CLIPConfig(text_config=text_config, vision_config=vision_config, projection_dim=512))


def inputs(batch_size: int, device: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Random pictures, and captions of four phrases of three tokens each."""
    torch.manual_seed(0)
    tokens = torch.randint(2, VOCABULARY, (batch_size, TOKENS))
    tokens[:, -1] = 1
    first = torch.arange(1, TOKENS - 3, 5)[:PHRASES]
    spans = torch.stack([first, first + 3], -1).expand(batch_size, -1, -1).contiguous()
    lengths = torch.full((batch_size,), PHRASES)
    text = {"tokens": tokens, "spans": spans, "phrase_lengths": lengths}
    return torch.randn(batch_size, 3, 224, 224).to(device), {name: x.to(device) for name, x in text.items()}


def clocked(call: Callable[[], object], device: str) -> float:
    """Milliseconds of a call."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1000 * (clock() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=9)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    device, batch_size = options.device, options.batch_size
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = clip(options.size).to(device)
    features, images, captions = ClipFeatures(model), *inputs(batch_size, device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5)

    def parts() -> dict[str, torch.Tensor]:
        image, text = features({"pixel_values": images}, captions)
        patches = image.patches.flatten(1, 2)
        return {"images": image.pooled, "texts": text.pooled, "regions": patches, "phrases": text.phrases}

    def losses(seen: dict[str, torch.Tensor], **weights: float) -> torch.Tensor:
        criterion = LoupeLoss(**{**OFF, **weights}).to(device)
        return criterion(**seen, phrase_lengths=captions["phrase_lengths"])["loss"]

    def step(loss: Callable[[], torch.Tensor]) -> None:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            value = loss()
        value.backward()
        optimizer.step()

    whole: dict[str, Callable[[], torch.Tensor]] = {
        "its own loss": lambda: model(captions["tokens"], images, return_loss=True).loss,
        "cmc + region_phrase + fsa": lambda: losses(parts(), cmc=1.0, region_phrase=1.0, fsa=1.0),
    }
    taken: dict[str, list[float]] = {name: [] for name in whole}
    for i in range(options.steps + 1):
        for name, loss in whole.items():
            milliseconds = clocked(lambda loss=loss: step(loss), device)
            if i:
                taken[name].append(milliseconds)
    alone = {name: x.detach().requires_grad_() for name, x in parts().items()}
    terms = {name: [] for name in OFF}
    for i in range(5 * options.steps + 1):
        for name, each in terms.items():
            milliseconds = clocked(lambda name=name: losses(alone, **{name: 1.0}).backward(), device)
            if i:
                each.append(milliseconds)
    print("| step with | ms | pictures per second |\n|---|---:|---:|")
    medians = {name: statistics.median(each) for name, each in (taken | terms).items()}
    for name in whole:
        print(f"| {name} | {medians[name]:.0f} | {1000 * batch_size / medians[name]:.1f} |")
    print("\n| term alone | ms | % of a step with its own loss |\n|---|---:|---:|")
    for name in terms:
        print(f"| {name} | {medians[name]:.1f} | {100 * medians[name] / medians['its own loss']:.2f} |")


if __name__ == "__main__":
    main()
