"""The models of the library `open_clip`, explained."""

import threading
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.explain.adapters._sides import (
    Place,
    additive,
    as_image,
    as_pixels,
    by_size,
    check_eval,
    picture_players,
    presence,
    text_players,
)
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.extras import needs
from loupe_ext.model.clip import check_texts
from loupe_ext.model.features import device_of
from loupe_ext.model.open_clip import OpenClipFeatures, OpenClipTokenizer
from loupe_ext.phrases import Chunker, chunk, tokens


class OpenClipEncoders:
    """Images and captions of an open_clip model with only some of their players present.

    ```
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32", pretrained="laion2b_s34b_b79k")
    encoders = OpenClipEncoders(model.eval(), preprocess, open_clip.get_tokenizer("ViT-B-32"))
    explained = explain_dual_encoder(encoders.image("photo.jpg"), encoders.text("two dogs on a sofa"))
    ```

    Embeddings have length one, so that their product is the cosine; the model's logit_scale and logit_bias are not
    applied. With all players present they are those of `encode_image(normalize=True)` and
    `encode_text(normalize=True)`. An absent patch or token is left out of every attention, and of the pooling; the
    others keep their positions. Class and register tokens, marks of beginning and end, and padding are always there.

    Args:
        model: a `CLIP` or `CustomTextCLIP` of open_clip in evaluation mode, its image tower a transformer: its own,
            without attentional pooling or custom blocks, or timm's `VisionTransformer` (SigLIP's); its text tower
            open_clip's own.
        preprocess: from a PIL image to pixels [3, H, W], normalised last.
        tokenizer: open_clip's `SimpleTokenizer`, or its `HFTokenizer` around a fast tokenizer.

    Raises:
        ImportError: `open_clip` is not installed. TypeError, ValueError: the model, preprocess or tokenizer is of
            another kind.
    """

    def __init__(self, model: nn.Module, preprocess: Any, tokenizer: Any) -> None:
        self.is_timm = OpenClipFeatures(model).is_timm  # checks the model
        self.model: Any = model
        self.tokenizer = OpenClipTokenizer(tokenizer)
        if not callable(preprocess):
            raise TypeError(f"preprocess: expected a callable, got {type(preprocess).__name__}")
        self.preprocess = preprocess
        visual: Any = self.model.visual
        if self.is_timm:
            with needs("open-clip-torch"):
                from timm.layers import AttentionPoolLatent
                from timm.models.vision_transformer import VisionTransformer
            trunk = visual.trunk
            pool = getattr(trunk, "attn_pool", None)
            if not isinstance(trunk, VisionTransformer):
                raise TypeError(
                    f"model: expected an image tower of timm's VisionTransformer, got {type(trunk).__name__}"
                )
            latent = isinstance(pool, AttentionPoolLatent) and pool.pos_embed is None
            if not latent and (pool is not None or trunk.global_pool not in ("token", "avg")):
                raise ValueError(f"model: expected pooling by token, avg or map, got {trunk.global_pool!r}")
        elif visual.pool_type not in ("tok", "avg"):
            raise ValueError(f"model: expected pooling by tok or avg, got {visual.pool_type!r}")
        if any(type(part).__name__ == "CustomResidualAttentionBlock" for part in model.modules()):
            raise ValueError("model: expected open_clip's default blocks, got custom ones")

    @torch.no_grad()
    def image(self, picture: Any, players: str | Tensor = "patches", *, num_superpixels: int = 24) -> MaskedEncoder:
        """An image, as `preprocess` crops and resizes it, with only some of its patches.

        The patches are embedded here, once, and only those that a mask leaves pass through the layers. With none left,
        a mean of patches is 0, and attention pooling gives the bias of its output.

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
        visual, device = self.model.visual, device_of(self.model)
        pixels = self.preprocess(as_image(picture))[None].to(device)
        if self.is_timm:
            trunk = visual.trunk
            hidden = trunk.norm_pre(trunk._pos_embed(trunk.patch_embed(pixels)))
            sides, ahead = trunk.patch_embed.patch_size, trunk.num_prefix_tokens
        else:
            hidden, sides, ahead = visual._embeds(pixels), visual.patch_size, 1
        rows, columns = (n // side for n, side in zip(pixels.shape[2:], sides, strict=True))
        if hidden.shape[1] != ahead + rows * columns:
            raise ValueError(f"picture: expected one of {rows} x {columns} patches, got {hidden.shape[1] - ahead}")
        seen = pixels[0, :, : rows * sides[0], : columns * sides[1]].permute(1, 2, 0)
        found, owner = picture_players(players, self._pixels(seen), rows, columns, num_superpixels)
        owner = torch.cat([torch.full((ahead,), -1), owner])

        def through(places: Tensor, valid: Tensor) -> Tensor:
            x = hidden[0].to(places.device)[places]
            mask = additive(valid, x.dtype)
            return self._timm(x, valid, mask, ahead) if self.is_timm else self._vision(x, valid, mask)

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            pooled = by_size(through, presence(masks, owner, device_of(self.model)))
            return directions(at_least_float32(pooled))

        return MaskedEncoder(encode, found)

    def text(self, caption: str, players: str = "words", *, chunker: Chunker = chunk) -> MaskedEncoder:
        """A caption with only some of its words.

        Args:
            caption: as open_clip mends it (`ftfy`, HTML entities, blanks); cut off behind the context length.
            players: "words", and punctuation marks; "phrases": noun phrases, and the words and marks outside them;
                "tokens".
            chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.

        Raises:
            TypeError, ValueError: an argument has the wrong type or value; the caption has no word, or is cut off where
                the model pools; the model is in training mode.
        """
        check_eval(self.model)
        tower = getattr(self.model, "text", self.model)
        ids, text, places = self._located(check_texts([caption])[0])
        found, owner = text_players(players, text, places, chunker)
        at = self._pooled_at(tower, ids)
        if at is not None and owner[at] >= 0:
            raise ValueError(f"caption: expected an end that the tokenizer marks, got {caption[-80:]!r} cut off")

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            present = presence(masks, owner, device_of(self.model))
            with _hidden(tower.transformer, present):
                found = self.model.encode_text(ids.to(present.device).expand(len(masks), -1))
            return directions(at_least_float32(found))

        return MaskedEncoder(encode, found)

    def _vision(self, x: Tensor, valid: Tensor, mask: Tensor | None) -> Tensor:
        """The rest of open_clip's own image tower, of tokens [K, m, width]."""
        visual = self.model.visual
        x = visual.transformer(x, attn_mask=_per_head(visual.transformer, mask))
        x = x if visual.final_ln_after_pool else visual.ln_post(x)
        x = x[:, 0] if visual.pool_type == "tok" else _mean(x[:, 1:], valid[:, 1:])
        x = visual.ln_post(x) if visual.final_ln_after_pool else x
        return x if visual.proj is None else x @ visual.proj

    def _timm(self, x: Tensor, valid: Tensor, mask: Tensor | None, ahead: int) -> Tensor:
        trunk = self.model.visual.trunk
        for block in trunk.blocks:
            x = block(x, attn_mask=mask)
        x = trunk.norm(x)
        first = x[:, 0]
        if not trunk.pool_include_prefix:
            x, valid = x[:, ahead:], valid[:, ahead:]
        if trunk.attn_pool is not None:
            x = _pooled(trunk.attn_pool, x, valid)
        else:
            x = first if trunk.global_pool == "token" else _mean(x, valid)
        return self.model.visual.head(trunk.head(trunk.head_drop(trunk.fc_norm(x))))

    def _located(self, caption: str) -> tuple[Tensor, str, list[Place]]:
        """The ids int64 [L], the caption as open_clip mends it, and the characters in it of each id."""
        from open_clip.tokenizer import basic_clean, whitespace_clean

        text, own = whitespace_clean(basic_clean(caption)), self.tokenizer
        ids = own.tokenizer([caption])[0]
        offsets, place = own._located(caption, text)
        words = [((w.start, w.end), place(w.start), place(w.end)) for w in tokens(text, "caption")]
        touched = [next((at for at, a, b in words if a < end and start < b), (0, 0)) for start, end in offsets]
        if all(place(w[0][1]) == w[0][1] for w in words):  # nothing of it is dropped
            touched = offsets
        touched = touched[: len(ids) - own.marks]
        behind = len(ids) - own.ahead - len(touched)
        return ids, text, [(0, 0)] * own.ahead + touched + [(0, 0)] * behind

    def _pooled_at(self, tower: Any, ids: Tensor) -> int | None:
        """The token whose features the text tower takes; None: one of its own."""
        if getattr(tower, "cls_emb", None) is not None:
            return None
        pool = tower.pool_type if hasattr(tower, "pool_type") else tower.text_pool_type
        if pool in ("first", "last"):
            return 0 if pool == "first" else len(ids) - 1
        end: Any = tower.eos_id if hasattr(tower, "eos_id") else getattr(tower, "text_eos_id", None)
        return int((ids if pool == "argmax" else ids.eq(end).int()).argmax())

    def _pixels(self, seen: Tensor) -> Tensor:
        """The picture [H, W, 3] before `preprocess` normalised it."""
        for step in reversed(getattr(self.preprocess, "transforms", [])):
            if hasattr(step, "mean") and hasattr(step, "std"):
                seen = seen * torch.as_tensor(step.std).to(seen) + torch.as_tensor(step.mean).to(seen)
                break
        return as_pixels(seen)


class _hidden:  # noqa: N801
    """While it is entered, and in this thread alone, a text tower's transformer attends to tokens bool [K, L] only."""

    def __init__(self, transformer: nn.Module, present: Tensor) -> None:
        self.transformer, self.present, self.thread = transformer, present, threading.get_ident()

    def __enter__(self) -> None:
        self.handle = self.transformer.register_forward_pre_hook(self._mask, with_kwargs=True)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

    def _mask(self, module: Any, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> Any:
        if threading.get_ident() != self.thread:
            return None
        x = args[0]
        present = nn.functional.pad(self.present, (0, x.shape[1] - self.present.shape[1]), value=True)  # CoCa's class
        mask, own = _per_head(module, additive(present, x.dtype)), kwargs.get("attn_mask")
        if mask is not None and own is not None:
            mask = mask + own
        return args, {**kwargs, "attn_mask": own if mask is None else mask}


def _per_head(transformer: Any, mask: Tensor | None) -> Tensor | None:
    """A mask [K, 1, m, m] as `nn.MultiheadAttention` takes it: [K * heads, m, m]."""
    if mask is None:
        return None
    return mask.expand(-1, transformer.resblocks[0].attn.num_heads, -1, -1).flatten(0, 1)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    return (x * valid[..., None]).sum(1) / valid.sum(1, keepdim=True).clamp(min=1)


def _pooled(pool: Any, tokens: Tensor, valid: Tensor) -> Tensor:
    """timm's attention pooling of the tokens [K, m, width] that there are, and with none, of nothing but its bias."""
    mask = additive(valid, tokens.dtype)
    found = pool(tokens, attn_mask=None if mask is None else mask[:, :, :1])
    alone = pool.proj.bias
    alone = alone if pool.mlp is None else alone + pool.mlp(pool.norm(alone))
    return torch.where(valid.any(1, keepdim=True), found, alone)
