"""Whole and parts of images and captions from the CLIP-like models of the library `transformers`.

`ClipFeatures` makes a `VisionLanguageModel` of a `CLIPModel`, `SiglipModel` or `Siglip2Model`, pretrained or not, and
`PhraseTokenizer` makes its inputs of captions with the model's own tokenizer.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._checks import (
    check_features,
    check_flag,
    check_ints,
    check_kind,
    check_lengths,
    check_names,
    check_range,
    check_same,
)
from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.regions import RegionHead
from loupe_ext.model.text import phrase_of_words
from loupe_ext.phrases import Chunker, chunk


class PhraseTokenizer:
    """A model's own tokenizer, and where the noun phrases of each caption lie among its tokens.

    ```
    tokenize = PhraseTokenizer(AutoTokenizer.from_pretrained(folder), **features.padding)
    text = features.encode_text(**tokenize(["A dog chases two cats.", "the red door of a house"]))
    ```

    A caption without a noun phrase, or whose phrases are all cut off, has one phrase: all its tokens.

    Args:
        tokenizer: of `transformers`. A fast one knows the characters of each token; with a slow one, a phrase begins
            after as many tokens as the text before it has.
        chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.
        options: of the tokenizer's call. Default: padding=True, truncation=True.

    Raises:
        TypeError: the tokenizer or the chunker is none. ValueError: the tokenizer pads on the left.
    """

    def __init__(self, tokenizer: Any, chunker: Chunker = chunk, **options: Any) -> None:
        if not callable(tokenizer) or not hasattr(tokenizer, "padding_side"):
            raise TypeError(f"tokenizer: expected one of transformers, got {type(tokenizer).__name__}")
        if options.get("padding_side", tokenizer.padding_side) != "right":
            raise ValueError("tokenizer: expected padding on the right (its padding_side), got it on the left")
        check_kind("chunker", chunker, Callable, "a callable")
        self.tokenizer, self.chunker = tokenizer, chunker
        self.options = {"padding": True, "truncation": True, **options, "return_tensors": "pt"}

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What `encode_text` takes of B captions.

        Returns:
            tokens [B, L] int64 (`transformers` calls them `input_ids`; the name here is that of every model's
            `encode_text`), attention_mask [B, L] int64, 0 at the padding, spans [B, P, 2] int64, the first token of
            each phrase and the one after its last, padded with 0, and phrase_lengths [B] int64.

        Raises:
            TypeError: the captions are no sequence of str. ValueError: there are none, or one has no token of its own.
        """
        captions = check_texts(captions)
        fast = getattr(self.tokenizer, "is_fast", False)
        marks = {"return_offsets_mapping": True} if fast else {"return_special_tokens_mask": True}
        encoded = self.tokenizer(captions, return_attention_mask=True, **marks, **self.options)
        tables = encoded["offset_mapping" if fast else "special_tokens_mask"].tolist()
        find = self._by_characters if fast else self._by_counts
        found = [find(f"captions[{i}]", *both) for i, both in enumerate(zip(captions, tables, strict=True))]
        return {"tokens": encoded["input_ids"], "attention_mask": encoded["attention_mask"], **padded_spans(found)}

    def _by_characters(self, name: str, text: str, offsets: list[list[int]]) -> list[tuple[int, int]]:
        """Tokens that stand for no character (padding, marks of beginning and end) are in no phrase."""
        own = [at for at, (start, end) in enumerate(offsets) if end > start]
        within = tokens_at(own, offsets, ((phrase.start, phrase.end) for phrase in self.chunker(text)))
        return spans_of(name, text, own, within)

    def _by_counts(self, name: str, text: str, special: list[int]) -> list[tuple[int, int]]:
        """A phrase begins behind as many tokens as the text before it has, without the blank that ends it."""

        def count(part: str) -> int:
            return len(self.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) if part else 0

        own = [at for at, mark in enumerate(special) if not mark]
        within = (own[count(text[: p.start].rstrip()) : count(text[: p.end])] for p in self.chunker(text))
        return spans_of(name, text, own, within)


def check_texts(captions: object) -> list[str]:
    found = list(check_names("captions", captions))
    if not found:
        raise ValueError("captions: expected one or more, got none")
    return found


def tokens_at(
    own: Sequence[int], offsets: Sequence[Sequence[int]], places: Iterable[tuple[int, int]]
) -> Iterable[list[int]]:
    """Which tokens of `own`, with characters `offsets`, touch characters start to end of each place."""
    for start, end in places:
        yield [at for at in own if offsets[at][0] < end and offsets[at][1] > start]


def spans_of(name: str, text: str, own: Sequence[int], phrases: Iterable[list[int]]) -> list[tuple[int, int]]:
    """First token and one after the last of each phrase that has any; of the whole text, where none has."""
    if not own:
        raise ValueError(f"{name}: expected a word or more, got {text[:80]!r}")
    return [(p[0], p[-1] + 1) for p in phrases if p] or [(own[0], own[-1] + 1)]


def padded_spans(found: list[list[tuple[int, int]]], ahead: int = 0) -> dict[str, Tensor]:
    """`spans` and `phrase_lengths` of captions whose own tokens begin behind `ahead` others."""
    spans = torch.zeros(len(found), max(map(len, found), default=0), 2, dtype=torch.int64)
    for row, of_caption in zip(spans, found, strict=True):
        row[: len(of_caption)] = torch.tensor(of_caption) + ahead
    return {"spans": spans, "phrase_lengths": torch.tensor([len(of) for of in found], dtype=torch.int64)}


class Adapter(nn.Module):
    """What the adapters to all libraries share; `model` is the library's."""

    model: Any
    encode_image: Callable[..., ImageFeatures]
    encode_text: Callable[..., TextFeatures]

    @property
    def logit_scale(self) -> Tensor:
        """The model's own inverse temperature, of one element, for its contrast of whole images and captions."""
        return self.model.logit_scale.exp()

    def forward(
        self, image_inputs: dict[str, Tensor], text_inputs: dict[str, Tensor]
    ) -> tuple[ImageFeatures, TextFeatures]:
        """Both in one call, as DistributedDataParallel wants it."""
        return self.encode_image(**image_inputs), self.encode_text(**text_inputs)


class ClipFeatures(Adapter):
    """Embeddings of whole and parts, by a CLIP-like model and its own projections.

    The whole is what the model's `get_image_features` and `get_text_features` give, at length one. A patch or a token
    takes the way that the whole takes: CLIP's last layer norm and linear projection; for the images of SigLIP, its
    pooling head, whose attention sees that patch alone. A phrase is the mean of its projected tokens. Embeddings are
    float32 (float64 of float64 models).

    Args:
        model: a `CLIPModel`, `SiglipModel` or `Siglip2Model` of `transformers`, whose parameters become this module's.
        region_head: whether the patches propose boxes (`RegionHead`, new parameters), for the terms and the evaluation
            that need them. Not for a `Siglip2Model`, whose pictures have grids of their own.

    Raises:
        TypeError: the model is of another kind. ValueError: `region_head` with a `Siglip2Model`.
    """

    def __init__(self, model: nn.Module, region_head: bool = False) -> None:
        super().__init__()
        config: Any = getattr(model, "config", None)
        kind = getattr(config, "model_type", None)
        if kind not in ("clip", "siglip", "siglip2"):
            raise TypeError(f"model: expected a CLIPModel, SiglipModel or Siglip2Model, got {type(model).__name__}")
        self.model: Any = model
        if not getattr(config.vision_config, "vision_use_head", True):
            raise ValueError("model: expected one with its pooling head, got vision_use_head=False")
        self.kind = kind
        self.region_head = None
        if check_flag("region_head", region_head):
            if kind == "siglip2":
                raise ValueError("region_head: expected a model whose images have one grid, got a Siglip2Model")
            self.region_head = RegionHead(config.vision_config.hidden_size)

    @property
    def padding(self) -> dict[str, Any]:
        """Options of `PhraseTokenizer`: captions as the model was trained on. SigLIP's whole is its last token."""
        longest = self.model.config.text_config.max_position_embeddings
        return {"padding": True if self.kind == "clip" else "max_length", "max_length": longest}

    def encode_image(self, pixel_values: Tensor, **options: Any) -> ImageFeatures:
        """Of images as the model's processor gives them: [B, 3, H, W], or [B, n, 3 patch patch] of SigLIP 2.

        SigLIP 2 needs `pixel_attention_mask` [B, n] and `spatial_shapes` [B, 2] beside them, and gives its patches as
        [B, 1, n, d] with `lengths`.

        Args:
            options: whatever else the model's vision part takes, such as interpolate_pos_encoding=True.

        Raises:
            TypeError, ValueError: `pixel_values` has the wrong type, shape or dtype.
        """
        check_features("pixel_values", pixel_values, "Bnd" if self.kind == "siglip2" else "B3HW")
        patch, mask = self.model.config.vision_config.patch_size, options.get("pixel_attention_mask")
        out = self.model.vision_model(pixel_values=pixel_values, **options)
        pooled, tokens = out.pooler_output, out.last_hidden_state
        if self.kind == "clip":
            pooled = self.model.visual_projection(pooled)
            tokens = self.model.vision_model.post_layernorm(tokens[:, 1:])  # without [CLS]
        rows = 1 if self.kind == "siglip2" else pixel_values.shape[2] // patch
        tokens = tokens.unflatten(1, (rows, -1))
        patches = self.model.visual_projection(tokens) if self.kind == "clip" else self._pooled_alone(tokens)
        boxes, confidence = (None, None) if self.region_head is None else self.region_head(tokens, patch)
        return ImageFeatures(
            pooled=directions(at_least_float32(pooled)),
            patches=directions(at_least_float32(patches)),
            lengths=None if mask is None else mask.sum(1),
            boxes=boxes,
            confidence=confidence,
            patch=patch,
        )

    def encode_text(
        self,
        tokens: Tensor,
        spans: Tensor,
        phrase_lengths: Tensor,
        attention_mask: Tensor | None = None,
        **options: Any,
    ) -> TextFeatures:
        """Of captions as `PhraseTokenizer` gives them: [B, L] int64, [B, P, 2] int64 and [B] int64.

        Args:
            attention_mask: [B, L] int64, 0 at the padding, which is on the right; None: there is none. It gives the
                `lengths`. The model isn't shown it: CLIP's tokens see only those before them, and SigLIP was trained
                with padding in its sight.
            options: whatever else the model's text part takes.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or dtype, or, on the CPU, a token is no id.
        """
        check_captions(tokens, spans, phrase_lengths, attention_mask, self.model.config.text_config.vocab_size)
        out = self.model.text_model(input_ids=tokens, **options)
        project = self.model.text_projection if self.kind == "clip" else self.model.text_model.head
        pooled = project(out.pooler_output) if self.kind == "clip" else out.pooler_output
        return text_features(pooled, project(out.last_hidden_state), spans, phrase_lengths, attention_mask)

    def _pooled_alone(self, tokens: Tensor) -> Tensor:
        """SigLIP's pooling head over each token [..., width] alone: attention to one key is that key's value."""
        head = self.model.vision_model.head
        value = head.attention.in_proj_weight.chunk(3)[2], head.attention.in_proj_bias.chunk(3)[2]
        attended = head.attention.out_proj(nn.functional.linear(tokens, *value))
        return attended + head.mlp(head.layernorm(attended))


def check_captions(
    tokens: object, spans: object, phrase_lengths: object, attention_mask: object, vocabulary: int
) -> None:
    """The arguments of `encode_text`. Ids are read only where that waits for no device."""
    tokens = check_ints("tokens", tokens, "BL", 1)
    if tokens.device.type == "cpu":
        check_range("tokens", tokens, 0, vocabulary - 1)
    spans = check_ints("spans", spans, "BP2")
    check_same("spans", spans, "tokens", tokens, {"B": (0, 0)})
    check_lengths("phrase_lengths", phrase_lengths, tokens.shape[:1], tokens.device)
    if attention_mask is not None:
        mask = check_ints("attention_mask", attention_mask, "BL", 1)
        check_same("attention_mask", mask, "tokens", tokens, {"B": (0, 0), "L": (1, 1)})


def text_features(
    pooled: Tensor, tokens: Tensor, spans: Tensor, phrase_lengths: Tensor, attention_mask: Tensor | None
) -> TextFeatures:
    """Of projected captions [B, d] and their projected tokens [B, L, d]."""
    tokens, B, L = at_least_float32(tokens), *tokens.shape[:2]
    member = phrase_of_words(spans, L).to(tokens.dtype)
    return TextFeatures(
        pooled=directions(at_least_float32(pooled)),
        tokens=directions(tokens),
        lengths=torch.full((B,), L, device=tokens.device) if attention_mask is None else attention_mask.sum(1),
        phrases=directions(member @ tokens),  # the direction of a sum is that of the mean
        phrase_lengths=phrase_lengths,
    )
