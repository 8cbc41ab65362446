"""CLIP, SigLIP and SigLIP 2 of the library `transformers`, explained."""

from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.explain.adapters._sides import (
    additive,
    as_image,
    as_pixels,
    by_size,
    check_eval,
    located,
    picture_players,
    presence,
    text_players,
)
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.model.clip import ClipFeatures
from loupe_ext.model.features import device_of
from loupe_ext.phrases import Chunker, chunk


class ClipEncoders:
    """Images and captions of a CLIP-like model with only some of their players present.

    ```
    encoders = ClipEncoders(CLIPModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder))
    explained = explain_dual_encoder(encoders.image("photo.jpg"), encoders.text("two dogs on a sofa"))
    ```

    Embeddings have length one, so that their product is the cosine; the model's logit_scale and logit_bias are not
    applied. With all players present they are those of `get_image_features` and `get_text_features`. An absent patch or
    token is left out of every attention, and of the pooling; the others keep their positions. CLIP's class token, marks
    of beginning and end, and the padding that SigLIP was trained with are always there.

    Args:
        model: a `CLIPModel`, `SiglipModel` or `Siglip2Model` of `transformers` in evaluation mode, with the attention
            "eager" or "sdpa".
        processor: its processor, with `image_processor` and `tokenizer`.

    Raises:
        TypeError, ValueError: the model or the processor is of another kind; the model has no pooling head, or another
            attention.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        features = ClipFeatures(model)  # checks the model
        self.model: Any = model
        self.kind, self.padding = features.kind, features.padding
        for part in (self.model.vision_model, self.model.text_model):
            attention = getattr(getattr(part, "config", None), "_attn_implementation", None)
            if attention not in (None, "eager", "sdpa"):
                raise ValueError(f"model: expected the attention 'eager' or 'sdpa', got {attention!r}")
        for name in ("image_processor", "tokenizer"):
            if not callable(getattr(processor, name, None)):
                raise TypeError(f"processor: expected one with its {name}, got {type(processor).__name__}")
        self.processor = processor

    @torch.no_grad()
    def image(self, picture: Any, players: str | Tensor = "patches", *, num_superpixels: int = 24) -> MaskedEncoder:
        """An image, as the processor crops and resizes it, with only some of its patches.

        The patches are embedded here, once, and only those that a mask leaves pass through the layers. With none left,
        SigLIP's pooling head adds nothing up: its attention gives the bias of its output.

        Args:
            picture: a PIL image, a file or its content, or uint8 [H, W, 3] or [3, H, W].
            players: "patches"; "superpixels": SLIC's, each with the patches that lie in it for the most part; or int64
                [rows, columns], the player of each patch, from 0, or -1: always there.
            num_superpixels: about how many.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; the model is in training mode.
            ImportError: superpixels without scikit-image.
        """
        check_eval(self.model)
        vision, device = self.model.vision_model, device_of(self.model)
        inputs = self.processor.image_processor(images=as_image(picture), return_tensors="pt")
        pixels, side = inputs["pixel_values"].to(device), vision.config.patch_size
        if self.kind == "siglip2":
            rows, columns = inputs["spatial_shapes"][0].tolist()
            hidden = vision.embeddings(pixels, inputs["spatial_shapes"].to(device))[:, : rows * columns]
            seen = pixels[0, : rows * columns].view(rows, columns, side, side, -1).transpose(1, 2).flatten(2, 3)
            seen = seen.flatten(0, 1)
        else:
            rows, columns = pixels.shape[2] // side, pixels.shape[3] // side
            hidden = vision.embeddings(pixels)
            seen = pixels[0, :, : rows * side, : columns * side].permute(1, 2, 0)
        if self.kind == "clip":
            hidden = vision.pre_layrnorm(hidden)
        found, owner = picture_players(players, self._pixels(seen), rows, columns, num_superpixels)
        if self.kind == "clip":
            owner = torch.cat([torch.tensor([-1]), owner])  # the class token

        def through(places: Tensor, valid: Tensor) -> Tensor:
            x = hidden[0].to(places.device)[places]
            x = vision.encoder(inputs_embeds=x, attention_mask=additive(valid, x.dtype))[0]
            if self.kind == "clip":
                return self.model.visual_projection(vision.post_layernorm(x[:, 0]))
            return _pooled(vision.head, vision.post_layernorm(x), valid)

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            pooled = by_size(through, presence(masks, owner, device_of(self.model)))
            return directions(at_least_float32(pooled))

        return MaskedEncoder(encode, found)

    def text(self, caption: str, players: str = "words", *, chunker: Chunker = chunk) -> MaskedEncoder:
        """A caption with only some of its words.

        Args:
            caption: cut off where the model has no more positions.
            players: "words", and punctuation marks; "phrases": noun phrases, and the words and marks outside them;
                "tokens".
            chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.

        Raises:
            TypeError, ValueError: an argument has the wrong type or value; the caption has no word, or is cut off where
                the model pools; the model is in training mode.
        """
        check_eval(self.model)
        text = self.model.text_model
        ids, places = located(self.processor.tokenizer, caption, truncation=True, **self.padding)
        found, owner = text_players(players, caption, places, chunker)
        if owner[self._pooled_at(ids)] >= 0:
            raise ValueError(f"caption: expected an end that the tokenizer marks, got {caption[-80:]!r} cut off")

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            present = presence(masks, owner, device_of(self.model))
            tokens = ids.to(present.device).expand(len(present), -1)
            pooled = text(input_ids=tokens, attention_mask=present.long()).pooler_output
            pooled = self.model.text_projection(pooled) if self.kind == "clip" else pooled
            return directions(at_least_float32(pooled))

        return MaskedEncoder(encode, found)

    def _pooled_at(self, ids: Tensor) -> int:
        """The token whose features the text model takes: the last; CLIP's first end, or highest id where its
        configuration has the end wrong.
        """
        if self.kind != "clip":
            return len(ids) - 1
        end = self.model.text_model.config.eos_token_id
        return int((ids if end == 2 else (ids == end).int()).argmax())

    def _pixels(self, seen: Tensor) -> Tensor:
        """The picture [H, W, 3] before the processor brought it to the model's scale."""
        to: Any = self.processor.image_processor
        if to.do_normalize:
            seen = seen * torch.tensor(to.image_std).to(seen) + torch.tensor(to.image_mean).to(seen)
        return as_pixels(seen if to.do_rescale else seen / 255)


def _pooled(head: Any, tokens: Tensor, valid: Tensor) -> Tensor:
    """SigLIP's pooling head over the tokens [K, m, width] that there are; its own forward attends to all of them."""
    none = ~valid.any(1, keepdim=True)
    probe = head.probe.expand(len(tokens), -1, -1)
    x = head.attention(probe, tokens, tokens, key_padding_mask=~valid & ~none, need_weights=False)[0]
    x = torch.where(none[..., None], head.attention.out_proj.bias, x)
    return (x + head.mlp(head.layernorm(x)))[:, 0]
