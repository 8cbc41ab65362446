"""Whole and parts of images and captions from the CLIP-like models of the library `transformers`.

`ClipFeatures` wraps a `CLIPModel`, `SiglipModel` or `Siglip2Model`, pretrained or not, and `PhraseTokenizer` its
tokenizer; together they hand a training step all that `loupe_ext.losses` look at.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from loupe_ext.model.text import phrase_of_words
from loupe_ext.phrases import Chunker, chunk


class ImageParts(NamedTuple):
    """Embeddings, of length one, of B images and their patches."""

    pooled: Tensor  # [B, d]
    patches: Tensor  # [B, n, d], row by row
    lengths: Tensor | None  # [B] int64, patches of each image, where they differ; None: n of every image


class TextParts(NamedTuple):
    """Embeddings, of length one, of B captions and their noun phrases."""

    pooled: Tensor  # [B, d]
    phrases: Tensor  # [B, P, d]
    lengths: Tensor  # [B] int64, phrases of each caption, one or more


class PhraseTokenizer:
    """A model's own tokenizer, and where the noun phrases of each caption lie among its tokens.

    ```
    tokenize = PhraseTokenizer(AutoTokenizer.from_pretrained(folder))
    batch = tokenize(["A dog chases two cats.", "the red door of a house"])
    ```

    A caption without a noun phrase, or whose phrases are all cut off, has one phrase: all its tokens.

    Args:
        tokenizer: a fast tokenizer of `transformers`, which knows the characters of each token.
        chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.
        options: of the tokenizer's call. Default: padding=True, truncation=True, return_tensors="pt". (SigLIP was
            trained with padding="max_length".)

    Raises:
        TypeError: the tokenizer is not a fast one.
    """

    def __init__(self, tokenizer: Any, chunker: Chunker = chunk, **options: Any) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise TypeError(f"tokenizer: expected a fast one, with offsets, got {type(tokenizer).__name__}")
        self.tokenizer, self.chunker = tokenizer, chunker
        self.options = {"padding": True, "truncation": True, **options, "return_tensors": "pt"}

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """The tokenizer's tensors of B captions, and `spans` [B, P, 2] int64, the first token of each phrase and the
        one after its last, padded with 0, and `phrase_lengths` [B] int64.

        Raises:
            TypeError: the captions are no sequence of str. ValueError: a caption has no token of its own.
        """
        if isinstance(captions, str) or not all(isinstance(text, str) for text in captions):
            raise TypeError("captions: expected a sequence of str")
        encoded = self.tokenizer(list(captions), return_offsets_mapping=True, **self.options)
        offsets = encoded.pop("offset_mapping").tolist()
        found = [self._spans(i, text, where) for i, (text, where) in enumerate(zip(captions, offsets, strict=True))]
        spans = torch.zeros(len(found), max(map(len, found), default=0), 2, dtype=torch.int64)
        for row, of_caption in zip(spans, found, strict=True):
            row[: len(of_caption)] = torch.tensor(of_caption)
        lengths = torch.tensor([len(of_caption) for of_caption in found], dtype=torch.int64)
        return {**encoded, "spans": spans, "phrase_lengths": lengths}

    def _spans(self, i: int, text: str, offsets: list[list[int]]) -> list[tuple[int, int]]:
        """Tokens that stand for no character (padding, marks of beginning and end) are in no phrase."""
        own = [at for at, (start, end) in enumerate(offsets) if end > start]
        if not own:
            raise ValueError(f"captions[{i}]: expected a word or more, got {text[:80]!r}")
        spans = []
        for phrase in self.chunker(text):
            inside = [at for at in own if offsets[at][0] < phrase.end and offsets[at][1] > phrase.start]
            if inside:
                spans.append((inside[0], inside[-1] + 1))
        return spans or [(own[0], own[-1] + 1)]


class ClipFeatures(nn.Module):
    """Embeddings of whole and parts, by a CLIP-like model and its own projections.

    The whole is what the model's `get_image_features` and `get_text_features` give, at length one. A patch or a token
    takes the way that the whole takes: CLIP's last layer norm and linear projection; for the images of SigLIP, its
    pooling head, whose attention sees that patch alone. A phrase is the mean of its projected tokens.

    Args:
        model: a `CLIPModel`, `SiglipModel` or `Siglip2Model` of `transformers`, whose parameters become this module's.

    Raises:
        TypeError: the model is of another kind.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind not in ("clip", "siglip", "siglip2"):
            raise TypeError(f"model: expected a CLIPModel, SiglipModel or Siglip2Model, got {type(model).__name__}")
        self.model: Any = model
        self.is_clip = kind == "clip"

    def forward(self, image_inputs: dict[str, Tensor], text_inputs: dict[str, Tensor]) -> tuple[ImageParts, TextParts]:
        """`images` and `texts` in one call, as DistributedDataParallel wants it."""
        return self.images(**image_inputs), self.texts(**text_inputs)

    def images(self, pixel_values: Tensor, **options: Any) -> ImageParts:
        """Images as the model's processor gives them, with whatever else its `get_image_features` takes."""
        out = self.model.get_image_features(pixel_values=pixel_values, **options)
        tokens = out.last_hidden_state
        if self.is_clip:
            tokens = self.model.vision_model.post_layernorm(tokens[:, 1:])  # without [CLS]
            patches = self.model.visual_projection(tokens)
        else:
            patches = self._pooled_alone(tokens)
        mask = options.get("pixel_attention_mask")
        lengths = None if mask is None else mask.sum(1)
        return ImageParts(normalize(out.pooler_output, dim=-1), normalize(patches, dim=-1), lengths)

    def texts(self, input_ids: Tensor, spans: Tensor, phrase_lengths: Tensor, **options: Any) -> TextParts:
        """Captions as `PhraseTokenizer` gives them: [B, L], [B, P, 2] and [B]."""
        out = self.model.get_text_features(input_ids=input_ids, **options)
        project = self.model.text_projection if self.is_clip else self.model.text_model.head
        words = project(out.last_hidden_state)
        phrases = phrase_of_words(spans, words.shape[1]).to(words.dtype) @ words
        return TextParts(normalize(out.pooler_output, dim=-1), normalize(phrases, dim=-1), phrase_lengths)

    def _pooled_alone(self, tokens: Tensor) -> Tensor:
        """SigLIP's pooling head over each token [B, n, width] alone: attention to one key is that key's value."""
        head = self.model.vision_model.head
        value = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
        attended = head.attention.out_proj(nn.functional.linear(tokens, *value))
        return attended + head.mlp(head.layernorm(attended))
