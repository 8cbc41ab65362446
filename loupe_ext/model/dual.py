"""The dual encoder: image and text in one space, from the whole down to patches, words, regions and phrases."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from loupe_ext._checks import check_int, check_tensor
from loupe_ext._dtypes import at_least_float32
from loupe_ext.data.pairs import Batch
from loupe_ext.model.image import PATCH, ImageEncoder
from loupe_ext.model.regions import RegionHead, box_features, propose
from loupe_ext.model.text import TextEncoder, phrase_of_words

GLOBAL_CAP = 100.0  # of the inverse temperature of whole images and captions


@dataclass(frozen=True)
class ImageFeatures:
    """Of B images with a grid of h x w patches. The features have length one."""

    pooled: Tensor  # [B, d]
    patches: Tensor  # [B, h, w, d]
    weights: Tensor  # [B, h, w], of the patches in the sum that `pooled` is the direction of
    boxes: Tensor  # [B, hw, 4], the box that each patch proposes
    confidence: Tensor  # [B, hw], logits
    patch: float = PATCH  # pixels on a patch's side

    def proposals(self, count: int, overlap: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
        """The most confident `count` proposals: features [B, M, d], boxes [B, M, 4] and confidence [B, M]."""
        taken = propose(self.boxes, self.confidence, count, overlap)
        boxes = self.boxes.gather(1, taken[..., None].expand(-1, -1, 4))
        return box_features(self.patches, boxes, self.patch), boxes, self.confidence.gather(1, taken)


@dataclass(frozen=True)
class TextFeatures:
    """Of B captions. All features have length one."""

    pooled: Tensor  # [B, d]
    words: Tensor  # [B, L, d]
    lengths: Tensor  # [B], words of each
    phrases: Tensor  # [B, P, d], each encoded alone
    phrase_lengths: Tensor  # [B]
    phrase_of_words: Tensor  # [B, P, L] booleans

    @property
    def phrase_mask(self) -> Tensor:
        """[B, P] booleans, the phrases that there are."""
        return torch.arange(self.phrases.shape[1], device=self.phrases.device) < self.phrase_lengths[:, None]


class Scale(nn.Module):
    """A learned inverse temperature of at most `cap`. Call `bound` after each optimiser step."""

    def __init__(self, start: float, cap: float) -> None:
        super().__init__()
        self.log = nn.Parameter(torch.tensor(start).log())
        self.cap = cap

    def forward(self) -> Tensor:
        return self.log.exp().clamp(max=self.cap)

    @torch.no_grad()
    def bound(self) -> None:
        """Bring a parameter that a step took beyond the cap back, where its gradient is not 0; a fixed one stays."""
        if self.log.requires_grad:
            most = math.log(self.cap)
            self.log.clamp_(max=most - 1e-6 * max(1.0, abs(most)))  # a hair below, however `exp` rounds


class DualEncoder(nn.Module):
    """Image and text encoders that share one space.

    One projection a side serves the whole and its parts: the pooled embedding is a weighted mean of the projected
    tokens, so what CMC learns about wholes orients the parts. The weights are attention pooling with one learned query:
    with a plain mean, a patch counts only by resembling the text, and objects grow beyond their outlines.

    Args:
        vocabulary: how many word ids there are.
        width, blocks: of the small encoders that serve where none is given.
        dim: of the common space.
        image: any module from images [B, 3, H, W] uint8 to tokens [B, h, w, width], with its `width`.
        text: any module from words [B, L] and spans [B, P, 2] to [B, L, width], with its `width`.
    """

    def __init__(
        self, vocabulary: int, width: int = 64, dim: int = 64, blocks: int = 1, image: Any = None, text: Any = None
    ) -> None:
        super().__init__()
        self.vocabulary = check_int("vocabulary", vocabulary, 1, 2**31 - 1)
        width, dim = check_int("width", width, 2, 2**31 - 1), check_int("dim", dim, 1, 2**31 - 1)
        self.image = ImageEncoder(width, blocks) if image is None else image
        self.text = TextEncoder(vocabulary, width) if text is None else text
        self.image_projection = nn.Linear(self.image.width, dim)
        self.text_projection = nn.Linear(self.text.width, dim)
        self.query = nn.Linear(self.image.width, 1, bias=False)
        nn.init.zeros_(self.query.weight)
        self.region_head = RegionHead(self.image.width)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        tokens = at_least_float32(self.image(images))
        patch = images.shape[3] / tokens.shape[2]
        with torch.autocast(tokens.device.type, enabled=False):
            projected = self.image_projection(tokens)
            boxes, confidence = self.region_head(tokens, patch)
            weights = self.query(tokens).flatten(1).softmax(1)
            pooled = normalize(torch.einsum("bn,bnd->bd", weights, projected.flatten(1, 2)), dim=-1)
            weights = weights.view(projected.shape[:3]) * projected.norm(dim=-1)
            return ImageFeatures(pooled, normalize(projected, dim=-1), weights, boxes, confidence, patch)

    def encode_text(self, batch: Batch) -> TextFeatures:
        check_tensor("words", batch.words)
        if batch.words.device.type == "cpu":  # elsewhere, to look would wait for the device
            check_words(batch.words, self.vocabulary)
        mask = batch.words != 0
        tokens = at_least_float32(self.text(batch.words, batch.spans))
        with torch.autocast(tokens.device.type, enabled=False):
            projected = self.text_projection(tokens) * mask[..., None]
            member = phrase_of_words(batch.spans, batch.words.shape[1])
            return TextFeatures(
                pooled=normalize(projected.sum(1), dim=-1),
                words=normalize(projected, dim=-1),
                lengths=mask.sum(1),
                phrases=normalize(member.to(projected.dtype) @ projected, dim=-1),
                phrase_lengths=batch.phrase_lengths,
                phrase_of_words=member,
            )


def check_words(words: Tensor, vocabulary: int) -> None:
    """Raise unless these are ids of so many."""
    if words.dtype != torch.int64:
        raise TypeError(f"words: expected dtype int64, got {words.dtype}")
    if words.numel() and not 0 <= words.min() <= words.max() < vocabulary:
        least, most = words.min(), words.max()
        raise ValueError(f"words: expected ids 0 to {vocabulary - 1} of the vocabulary, got {least} to {most}")
