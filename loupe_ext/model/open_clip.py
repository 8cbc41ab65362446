"""Whole and parts of images and captions from the models of the library `open_clip`.

`OpenClipFeatures` makes a `VisionLanguageModel` of a model that `open_clip.create_model` gives, and
`OpenClipTokenizer` makes its inputs of captions with the tokenizer that `open_clip.get_tokenizer` gives.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_features, check_flag, check_kind
from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.extras import needs
from loupe_ext.model.clip import (
    Adapter,
    check_captions,
    check_texts,
    padded_spans,
    spans_of,
    text_features,
    tokens_at,
)
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.regions import RegionHead
from loupe_ext.phrases import Chunker, chunk


class OpenClipTokenizer:
    """A model's own tokenizer, and where the noun phrases of each caption lie among its tokens.

    ```
    tokenize = OpenClipTokenizer(open_clip.get_tokenizer("ViT-B-32"))
    text = features.encode_text(**tokenize(["A dog chases two cats.", "the red door of a house"]))
    ```

    Phrases are found in the caption as open_clip mends it (`ftfy`, HTML entities, blanks), before it is put in lower
    case or loses its punctuation. A caption without a noun phrase, or whose phrases are all cut off, has one phrase:
    all its tokens.

    Args:
        tokenizer: open_clip's `SimpleTokenizer`, or its `HFTokenizer` around a fast tokenizer.
        chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.

    Raises:
        ImportError: `open_clip` is not installed. TypeError: the tokenizer or the chunker is none. ValueError: the
            tokenizer knows no characters of its tokens, drops or moves tokens, or pads on the left.
    """

    def __init__(self, tokenizer: Any, chunker: Chunker = chunk) -> None:
        with needs("open-clip-torch"):
            from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
        check_kind("tokenizer", tokenizer, (SimpleTokenizer, HFTokenizer), "a SimpleTokenizer or HFTokenizer")
        check_kind("chunker", chunker, Callable, "a callable")
        self.tokenizer, self.chunker = tokenizer, chunker
        self.ahead, self.marks = 1, 2  # tokens that stand for no text: before the others, and in all
        if isinstance(tokenizer, HFTokenizer):
            inner = tokenizer.tokenizer
            if tokenizer.tokenizer_mode or not inner.is_fast or inner.padding_side != "right":
                got = f"mode {tokenizer.tokenizer_mode!r}, is_fast {inner.is_fast}, padding_side {inner.padding_side!r}"
                raise ValueError(f"tokenizer: expected a fast one without mode that pads on the right, got {got}")
            special = inner("a", return_special_tokens_mask=True)["special_tokens_mask"]
            self.ahead, self.marks = special.index(0), sum(special)
        elif tokenizer.reduction_fn is not None:
            raise ValueError(
                "tokenizer: expected one that keeps all tokens (reduction_mask=''), got one that drops some"
            )

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """What `encode_text` takes of B captions.

        Returns:
            tokens [B, L] int64, as the tokenizer gives them, L its context length, attention_mask [B, L] int64, 0 at
            the padding, spans [B, P, 2] int64, the first token of each phrase and the one after its last, padded with
            0, and phrase_lengths [B] int64.

        Raises:
            TypeError: the captions are no sequence of str. ValueError: there are none, or one has no token of its own.
        """
        from open_clip.tokenizer import basic_clean, whitespace_clean

        captions = check_texts(captions)
        tokens = self.tokenizer(captions)
        most, found = tokens.shape[1] - self.marks, []
        counts = torch.zeros(len(captions), 1, dtype=torch.int64)
        for i, caption in enumerate(captions):
            text = whitespace_clean(basic_clean(caption))
            offsets, place = self._located(caption, text)
            counts[i] = count = min(len(offsets), most)
            places = ((place(phrase.start), place(phrase.end)) for phrase in self.chunker(text))
            within = tokens_at(range(count), offsets, places)
            found.append(spans_of(f"captions[{i}]", caption, range(count), within))
        spans = padded_spans(found, self.ahead)
        mask = (torch.arange(tokens.shape[1]) < counts + self.marks).long()
        return {"tokens": tokens, "attention_mask": mask, **spans}

    def _located(self, caption: str, text: str) -> tuple[list[tuple[int, int]], Callable[[int], int]]:
        """The characters of each token in the caption as the tokenizer cleans it, and where those of `text` are there.

        `text` is the caption when it is mended, and not yet in lower case or without punctuation.
        """
        clean = self.tokenizer.clean_fn
        cleaned = clean(caption)
        if hasattr(self.tokenizer, "bpe"):  # its `encode`, a word at a time
            offsets = []
            for word in self.tokenizer.pat.finditer(cleaned):
                symbols = "".join(self.tokenizer.byte_encoder[byte] for byte in word[0].encode())
                offsets += [word.span()] * len(self.tokenizer.bpe(symbols).split(" "))
        else:
            options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
            offsets = self.tokenizer.tokenizer(cleaned, **options)["offset_mapping"]
        return offsets, lambda at: at if len(cleaned) == len(text) else len(clean(text[:at]))


class OpenClipFeatures(Adapter):
    """Embeddings of whole and parts, by an open_clip model and its own projections.

    The whole is what `encode_image(normalize=True)` and `encode_text(normalize=True)` give. A patch or a token takes
    the way that the whole takes from the last block: layer norm and projection; of image towers from `timm`, the
    tower's pooling and head, which see that patch alone (SigLIP's attention pooling among them). A phrase is the mean
    of its projected tokens. Embeddings are float32 (float64 of float64 models).

    Args:
        model: a `CLIP` or `CustomTextCLIP` of open_clip, whose parameters become this module's; its image tower a
            `VisionTransformer` without attentional pooling or a `TimmModel`, its text tower open_clip's own.
        region_head: whether the patches propose boxes (`RegionHead`, new parameters), for the terms and the evaluation
            that need them.

    Raises:
        ImportError: `open_clip` is not installed. TypeError: the model is of another kind. ValueError: it drops patches
            in training.
    """

    def __init__(self, model: nn.Module, region_head: bool = False) -> None:
        super().__init__()
        with needs("open-clip-torch"):
            from open_clip import CLIP, CustomTextCLIP
            from open_clip.timm_model import TimmModel
            from open_clip.transformer import TextTransformer, VisionTransformer
        check_kind("model", model, (CLIP, CustomTextCLIP), "a CLIP or CustomTextCLIP of open_clip")
        self.model = model
        visual: Any = model.visual
        text = getattr(model, "text", None)
        self.is_timm = isinstance(visual, TimmModel)
        if self.is_timm and hasattr(visual.head, "pool"):
            raise TypeError("model: expected an image tower that timm pools, got pooling by open_clip")
        if not self.is_timm and (not isinstance(visual, VisionTransformer) or visual.attn_pool is not None):
            raise TypeError(f"model: expected a VisionTransformer without attn_pool, got {type(visual).__name__}")
        check_kind("model", text, (TextTransformer, type(None)), "open_clip's own text tower")
        if any(type(part).__name__.startswith("PatchDropout") for part in visual.modules()):
            raise ValueError("model: expected one that keeps all patches, got one with patch dropout")
        width = visual.trunk.num_features if self.is_timm else visual.conv1.out_channels
        self.region_head = RegionHead(width) if check_flag("region_head", region_head) else None

    def encode_image(self, images: Tensor, **options: Any) -> ImageFeatures:
        """Of images as the model's `preprocess` gives them: [B, 3, H, W] floating.

        Args:
            options: of the model's `forward_intermediates`.

        Raises:
            TypeError, ValueError: `images` have the wrong type, shape or dtype.
        """
        check_features("images", images, "B3HW")
        out = self.model.forward_intermediates(image=images, image_indices=1, normalize_intermediates=True, **options)
        tokens = out["image_intermediates"][-1].movedim(1, 3)
        patch = images.shape[3] / tokens.shape[2]
        boxes, confidence = (None, None) if self.region_head is None else self.region_head(tokens, patch)
        return ImageFeatures(
            pooled=directions(at_least_float32(out["image_features"])),
            patches=directions(at_least_float32(self._projected(tokens))),
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
        """Of captions as `OpenClipTokenizer` gives them: [B, L] int64, [B, P, 2] int64 and [B] int64.

        Args:
            attention_mask: [B, L] int64, 0 at the padding; None: there is none. It gives the `lengths`; the model, as
                open_clip has it, isn't shown it.
            options: of the model's `forward_intermediates`.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or dtype, or, on the CPU, a token is no id.
        """
        check_captions(tokens, spans, phrase_lengths, attention_mask, self.model.vocab_size)
        out = self.model.forward_intermediates(text=tokens, text_indices=1, normalize_intermediates=True, **options)
        words, project = out["text_intermediates"][-1], getattr(self.model, "text", self.model).text_projection
        if project is not None:
            words = project(words) if isinstance(project, nn.Linear) else words @ project
        return text_features(out["text_features"], words, spans, phrase_lengths, attention_mask)

    def _projected(self, tokens: Tensor) -> Tensor:
        """Patches [B, h, w, width], each as if it were all that is pooled."""
        visual = self.model.visual
        if not self.is_timm:
            return tokens if visual.proj is None else tokens @ visual.proj
        alone, ahead = tokens.flatten(0, 2), getattr(visual.trunk, "num_prefix_tokens", None)
        # A transformer pools its first token, all of them, or those behind the first ones: here they are all the same.
        alone = alone[..., None, None] if ahead is None else alone[:, None].expand(-1, 1 + ahead, -1)
        return visual.head(visual.trunk.forward_head(alone)).unflatten(0, tokens.shape[:3])
