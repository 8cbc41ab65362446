"""What training and evaluation see of images and captions, and what a model must offer to give it."""

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from loupe_ext._checks import (
    check_device,
    check_features,
    check_floating,
    check_lengths,
    check_number,
    check_same,
    check_tensor,
)
from loupe_ext.model.regions import box_features, propose


@dataclass(frozen=True)
class ImageFeatures:
    """Of B images with a grid of h x w patches. The embeddings have length one.

    A model without a region head leaves out `boxes` and `confidence`, and one whose images are not the same weighted
    sum of their patches, `weights`; objectives that need them say so.
    """

    pooled: Tensor  # [B, d]
    patches: Tensor  # [B, h, w, d]; [B, 1, n, d] of images whose grids differ
    lengths: Tensor | None = None  # [B] int64, patches of each image, row by row, where they differ; None: hw
    weights: Tensor | None = None  # [B, h, w], of the patches in the sum that `pooled` is the direction of
    boxes: Tensor | None = None  # [B, hw, 4], x0, y0, x1, y1 in pixels of the box that each patch proposes
    confidence: Tensor | None = None  # [B, hw], logits of the boxes
    patch: float = 1.0  # pixels on a patch's side

    def proposals(self, count: int, overlap: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
        """The most confident `count` proposals: features [B, M, d], boxes [B, M, 4] and confidence [B, M].

        Raises:
            ValueError: the model proposes no boxes.
        """
        if self.boxes is None or self.confidence is None:
            raise ValueError("image: expected features with boxes and confidence, got a model without a region head")
        taken = propose(self.boxes, self.confidence, count, overlap)
        boxes = self.boxes.gather(1, taken[..., None].expand(-1, -1, 4))
        return box_features(self.patches, boxes, self.patch), boxes, self.confidence.gather(1, taken)


@dataclass(frozen=True)
class TextFeatures:
    """Of B captions. The embeddings have length one."""

    pooled: Tensor  # [B, d]
    tokens: Tensor  # [B, L, d]
    lengths: Tensor  # [B] int64, tokens of each
    phrases: Tensor  # [B, P, d]
    phrase_lengths: Tensor  # [B] int64, one or more of each

    @property
    def phrase_mask(self) -> Tensor:
        """[B, P] booleans, the phrases that there are."""
        return torch.arange(self.phrases.shape[1], device=self.phrases.device) < self.phrase_lengths[:, None]


def check_pairs(image: object, text: object) -> None:
    """Raise unless these are features of as many images and captions, of the shapes that they should have.

    No value is read.
    """
    if not isinstance(image, ImageFeatures) or not isinstance(text, TextFeatures):
        got = f"{type(image).__name__} and {type(text).__name__}"
        raise TypeError(f"image, text: expected ImageFeatures and TextFeatures, got {got}")
    named = {f"image.{name}": x for name, x in vars(image).items()}
    named |= {f"text.{name}": x for name, x in vars(text).items()}
    first = check_features("image.pooled", image.pooled, "Bd")
    embeddings = {"image.patches": "Bhwd", "text.pooled": "Bd", "text.tokens": "BLd", "text.phrases": "BPd"}
    for name, dims in embeddings.items():
        value = check_features(name, named[name], dims)
        check_same(name, value, "image.pooled", first, {"B": (0, 0), "d": (value.dim() - 1, 1)})
    B, h, w, _ = image.patches.shape
    for name, shape in {"weights": (B, h, w), "boxes": (B, h * w, 4), "confidence": (B, h * w)}.items():
        value = named[f"image.{name}"]
        if value is not None:
            check_tensor(f"image.{name}", value)
            check_floating(f"image.{name}", value)
            check_device(f"image.{name}", value, "image.pooled", first)
            if value.shape != shape:
                raise ValueError(f"image.{name}: expected shape {shape}, got {tuple(value.shape)}")
    for name in ("image.lengths", "text.lengths", "text.phrase_lengths"):
        if named[name] is not None or name != "image.lengths":
            check_lengths(name, named[name], first.shape[:1], first.device)
    check_number("image.patch", image.patch, 0, above=True)


@runtime_checkable
class VisionLanguageModel(Protocol):
    """What `train` and `evaluate` want of a model, besides that it is a `torch.nn.Module`.

    The options are further inputs that a model's own processor or tokenizer makes, such as an attention mask.
    """

    def encode_image(self, images: Tensor, **options: Tensor) -> ImageFeatures:
        """Of images as the data give them: [B, 3, H, W] uint8, or what the model's own processor makes of pictures."""
        ...

    def encode_text(self, tokens: Tensor, spans: Tensor, phrase_lengths: Tensor, **options: Tensor) -> TextFeatures:
        """Of captions [B, L] int64 whose noun phrases are `spans` [B, P, 2] (first token, one after the last)."""
        ...


def device_of(model: Any) -> torch.device:
    """Where a module's parameters are."""
    return next((x.device for x in model.parameters()), torch.device("cpu"))
