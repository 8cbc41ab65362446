"""The dual encoder: image and text in one space, from the whole down to patches, words, regions and phrases."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from loupe_ext._checks import check_int, check_lengths, check_tensor
from loupe_ext._dtypes import at_least_float32
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.regions import RegionHead
from loupe_ext.model.text import phrase_of_words


class DualEncoder(nn.Module):
    """Image and text encoders that share one space; a `VisionLanguageModel`.

    One projection per side serves the whole and its parts: the pooled embedding is a weighted mean of the projected
    tokens, so what CMC learns about wholes orients the parts. The weights are attention pooling with one learned query:
    with a plain mean, a patch counts only by resembling the text, and objects grow beyond their outlines.

    Args:
        image_encoder: any module from images [B, 3, H, W], as the data give them, to tokens [B, h, w, width], with its
            `width`; such as `loupe_ext.model.image.ImageEncoder`.
        text_encoder: any module from token ids [B, L], padded with 0, and spans [B, P, 2] to [B, L, width], with its
            `width`; and `vocabulary_size`, if ids are to be checked. Such as `loupe_ext.model.text.TextEncoder`.
        dim: of the common space. box_blocks: of the region head, each sees 14 patches across; for an image encoder
            whose patches see little.

    Attributes:
        vocabulary: whose ids it has learned, a `loupe_ext.data.Vocabulary`; None: not known.
    """

    def __init__(self, image_encoder: Any, text_encoder: Any, dim: int = 64, box_blocks: int = 2) -> None:
        super().__init__()
        for name, encoder in (("image_encoder", image_encoder), ("text_encoder", text_encoder)):
            if not isinstance(encoder, nn.Module) or not isinstance(getattr(encoder, "width", None), int):
                raise TypeError(f"{name}: expected a torch.nn.Module with its width, got {type(encoder).__name__}")
        dim = check_int("dim", dim, 1, 2**31 - 1)
        self.image, self.text = image_encoder, text_encoder
        self.vocabulary: Any = None
        self.image_projection = nn.Linear(self.image.width, dim)
        self.text_projection = nn.Linear(self.text.width, dim)
        self.query = nn.Linear(self.image.width, 1, bias=False)
        nn.init.zeros_(self.query.weight)
        self.region_head = RegionHead(self.image.width, blocks=check_int("box_blocks", box_blocks, 0, 1000))

    @property
    def dim(self) -> int:
        return self.image_projection.out_features

    @property
    def vocabulary_size(self) -> int | None:
        """How many ids there are, 0 for padding among them; None: the text encoder does not say."""
        return getattr(self.text, "vocabulary_size", None)

    def encode_image(self, images: Tensor) -> ImageFeatures:
        tokens = at_least_float32(self.image(images))
        patch = images.shape[3] / tokens.shape[2]
        with torch.autocast(tokens.device.type, enabled=False):
            projected = self.image_projection(tokens)
            boxes, confidence = self.region_head(tokens, patch)
            weights = self.query(tokens).flatten(1).softmax(1)
            pooled = normalize(torch.einsum("bn,bnd->bd", weights, projected.flatten(1, 2)), dim=-1)
            weights = weights.view(projected.shape[:3]) * projected.norm(dim=-1)
            return ImageFeatures(
                pooled, normalize(projected, dim=-1), weights=weights, boxes=boxes, confidence=confidence, patch=patch
            )

    def encode_text(self, tokens: Tensor, spans: Tensor, phrase_lengths: Tensor) -> TextFeatures:
        check_tensor("tokens", tokens)
        if tokens.device.type == "cpu" and self.vocabulary_size is not None:  # elsewhere, to look would wait for it
            check_tokens(tokens, self.vocabulary_size)
        mask = tokens != 0
        features = at_least_float32(self.text(tokens, spans))
        check_lengths("phrase_lengths", phrase_lengths, tokens.shape[:1], tokens.device)
        with torch.autocast(features.device.type, enabled=False):
            projected = self.text_projection(features) * mask[..., None]
            member = phrase_of_words(spans, tokens.shape[1])
            return TextFeatures(
                pooled=normalize(projected.sum(1), dim=-1),
                tokens=normalize(projected, dim=-1),
                lengths=mask.sum(1),
                phrases=normalize(member.to(projected.dtype) @ projected, dim=-1),
                phrase_lengths=phrase_lengths,
            )


def check_tokens(tokens: Tensor, vocabulary_size: int) -> None:
    """Raise unless these are ids of so many."""
    if tokens.dtype != torch.int64:
        raise TypeError(f"tokens: expected dtype int64, got {tokens.dtype}")
    if tokens.numel() and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
        least, most = tokens.min(), tokens.max()
        raise ValueError(f"tokens: expected ids 0 to {vocabulary_size - 1} of the vocabulary, got {least} to {most}")
