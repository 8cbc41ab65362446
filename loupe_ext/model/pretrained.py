"""Encoders of the library `transformers`: Swin for images, BERT for text. LOUPE's are Swin-L and BERT-small.

Both begin at random, or with weights from a folder as `save_pretrained` writes it; nothing is downloaded. They have no
dropout and no stochastic depth, so that training draws no random numbers, and an interrupted run goes on exactly.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from loupe_ext.extras import needs

PIXELS = 4  # on a side of the patches that Swin's first stage reads
WINDOW = 7  # patches on a side of Swin's windows
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as published weights expect
LONGEST = 512  # words that BERT has positions for


class SwinEncoder(nn.Module):
    """Images to tokens by a Swin Transformer (Liu et al., ICCV 2021), patches of 4 pixels, windows of 7 patches.

    Args:
        width: channels of the first stage, a multiple of 32, a head each. Every later stage has twice as many channels
            and half as many tokens a side.
        depths: blocks of each stage.
        side: pixels to which images are brought before, a multiple of `swin_unit`, so that windows fit.
        weights: folder with the weights of such a Swin; None: random ones.

    Raises:
        ImportError: `transformers` is not installed. ValueError, OSError: the weights are of something else.
    """

    def __init__(
        self,
        width: int = 192,
        depths: Sequence[int] = (2, 2, 18, 2),
        side: int = 224,
        weights: Path | str | None = None,
    ) -> None:
        super().__init__()
        with needs("transformers"):
            from transformers import SwinConfig, SwinModel
        self.side = side
        self.width = width * 2 ** (len(depths) - 1)
        unit = swin_unit(len(depths))
        if side < 1 or side % unit:
            raise ValueError(f"side: expected a multiple of {unit}, so that windows fit, got {side}")
        self.grid = WINDOW * side // unit
        config = SwinConfig(
            image_size=side,
            patch_size=PIXELS,
            window_size=WINDOW,
            embed_dim=width,
            depths=list(depths),
            num_heads=[width * 2**stage // 32 for stage in range(len(depths))],
            drop_path_rate=0.0,
        )
        self.swin = _build(SwinModel, config, weights)

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, H] uint8 -> [B, grid, grid, width]; a token's patch is H / grid pixels wide."""
        if images.dim() != 4 or images.shape[1] != 3 or images.shape[2] != images.shape[3] or not images.shape[3]:
            raise ValueError(f"images: expected shape [B, 3, H, H], got {tuple(images.shape)}")
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8, got {images.dtype}")
        x = images.float() / 255
        if images.shape[3] != self.side:
            x = interpolate(x, (self.side, self.side), mode="bilinear", antialias=True)
        mean, std = (x.new_tensor(values)[:, None, None] for values in (MEAN, STD))
        tokens: Tensor = self.swin((x - mean) / std).last_hidden_state
        return tokens.unflatten(1, (self.grid, self.grid))


class BertEncoder(nn.Module):
    """Word ids to one feature per id by BERT (Devlin et al., 2019), each word in the light of its whole caption.

    Args:
        vocabulary_size: how many ids there are; `Vocabulary.read` has those of published weights.
        width: channels, a multiple of 64, a head each.
        layers: of the transformer.
        weights: folder with the weights of such a BERT; None: random ones.

    Raises:
        ImportError: `transformers` is not installed. ValueError, OSError: the weights are of something else.
    """

    def __init__(
        self, vocabulary_size: int, width: int = 512, layers: int = 4, weights: Path | str | None = None
    ) -> None:
        super().__init__()
        with needs("transformers"):
            from transformers import BertConfig, BertModel
        self.vocabulary_size, self.width = vocabulary_size, width
        config = BertConfig(
            vocab_size=vocabulary_size,
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=width // 64,
            intermediate_size=4 * width,
            max_position_embeddings=LONGEST,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
        self.bert = _build(BertModel, config, weights)

    def forward(self, tokens: Tensor, spans: Tensor) -> Tensor:
        """[B, L] int64, padded with 0 -> [B, L, width]; what stands at the padding means nothing. It needs no spans."""
        if tokens.dim() != 2 or tokens.shape[1] > LONGEST:
            raise ValueError(f"tokens: expected shape [B, L], L at most {LONGEST}, got {tuple(tokens.shape)}")
        return self.bert(input_ids=tokens, attention_mask=(tokens != 0).long()).last_hidden_state


def swin_unit(stages: int) -> int:
    """Pixels on a side of what one window of a Swin's last stage sees, 224 of four stages; each token of it, a 7th."""
    return WINDOW * PIXELS * 2 ** (stages - 1)


def _build(kind: Any, config: Any, weights: Path | str | None) -> Any:
    """A model of a configuration, random or with the weights of a folder, all of them and of the same shapes."""
    if not weights:
        return kind(config, add_pooling_layer=False)
    if not Path(weights).is_dir():
        raise FileNotFoundError(f"weights: expected a folder, got {weights}")
    try:
        model, found = kind.from_pretrained(
            weights, config=config, add_pooling_layer=False, local_files_only=True, output_loading_info=True
        )
    except RuntimeError as error:  # of other shapes
        raise ValueError(f"weights: expected those of this model, got {error} in {weights}") from error
    missing = sorted(found["missing_keys"])
    if missing:
        raise ValueError(f"weights: expected all {len(model.state_dict())} tensors, {weights} lacks {missing[0]}")
    return model.float().train()
