"""The training objective: a dual encoder, its temperatures, and the weighted losses of a batch."""

import math

import torch
from torch import Tensor, nn

from loupe_ext import losses
from loupe_ext.data.pairs import Batch
from loupe_ext.model.dual import DualEncoder, ImageFeatures, Scale, TextFeatures
from loupe_ext.model.heat import heat_boxes, heat_maps
from loupe_ext.model.pretrained import BertEncoder, SwinEncoder
from loupe_ext.model.regions import centres, window_features
from loupe_ext.train.config import Config


class Task(nn.Module):
    """L = cmc L_CMC + late_interaction L_LI + region_phrase L_RP + gate (fsa L_FSA + boxes L_boxes)."""

    def __init__(self, config: Config, vocabulary: int, pretrained: bool = True) -> None:
        """`pretrained`: whether to read the weights that the configuration names, if any."""
        super().__init__()
        self.config = config
        image, text = _encoders(config, vocabulary, pretrained)
        self.encoder = DualEncoder(vocabulary, config.width, config.dim, config.blocks, image, text)
        self.scale_global = Scale(config.scale, 100.0)
        self.scale_local = Scale(config.scale, config.scale_cap)

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The batch's losses by name, unweighted, and their weighted sum as "loss"."""
        c = self.config
        bfloat16 = c.precision == "bfloat16" or (c.precision == "auto" and fast_bfloat16())
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
            image = self.encoder.encode_image(batch.images)
        text = self.encoder.encode_text(batch)
        parts: dict[str, Tensor] = {}
        if c.cmc:
            parts["cmc"] = losses.cmc_loss(image.pooled, text.pooled, self.scale_global())
        if c.late_interaction:
            parts["late_interaction"] = losses.late_interaction_loss(
                image.patches.flatten(1, 2), text.words, self.scale_local(), text.lengths
            )
        if c.region_phrase or c.fsa:
            regions = window_features(image.patches, c.window, c.window_stride)
        if c.region_phrase:
            parts["region_phrase"] = losses.region_phrase_loss(
                regions, text.phrases, self.scale_local(), text.phrase_lengths
            )
        gate = self._gate(list(parts.values()), len(batch.images))
        if c.fsa:
            parts["fsa"] = losses.fsa_loss(
                regions,
                text.phrases,
                self.scale_local(),
                phrase_lengths=text.phrase_lengths,
                temperature=c.fsa_temperature,
                negatives=c.negatives,
            )
        if c.boxes:
            parts["boxes"] = self._box_loss(image, text)
        loss = sum(
            getattr(c, name) * (gate if name in ("fsa", "boxes") else 1.0) * part for name, part in parts.items()
        )
        return {"loss": torch.as_tensor(loss), **parts}

    @staticmethod
    def _gate(contrasts: list[Tensor], batch: int) -> float:
        """The weight, 0 to 1, of the losses whose labels the model makes itself.

        The squared share of its start, log(batch), that the batch's contrastive losses have come down. A model that
        tells nothing apart yet would label at random and then learn that.
        """
        if not contrasts or batch < 2:
            return 1.0
        return max(0.0, 1 - torch.stack(contrasts).mean().item() / math.log(batch)) ** 2

    def _box_loss(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Boxes learn from the model's own heat; the heat does not learn from the boxes."""
        few = slice(self.config.box_images)
        mask = text.phrase_mask[few]
        with torch.no_grad():
            heat = heat_maps(image.patches[few], text.phrases[few])
            targets = heat.new_zeros(*mask.shape, 4)
            targets[mask] = heat_boxes(heat[mask], self.config.box_threshold, image.patch)
        at = centres(image.patches.shape[1], image.patches.shape[2], image.patches.device, image.patch)
        return losses.box_loss(
            image.boxes[few],
            image.confidence[few],
            targets,
            at,
            text.phrase_lengths[few],
            weight=0.4 / image.patch,
            beta=image.patch / 2,
        )


def _encoders(c: Config, vocabulary: int, pretrained: bool) -> tuple[nn.Module | None, nn.Module | None]:
    """The image and the text encoder that a configuration names; None for the small ones."""
    image: nn.Module | None = None
    text: nn.Module | None = None
    if c.image_encoder == "swin":
        image = SwinEncoder(c.swin_width, c.swin_stages, c.swin_side, c.image_weights if pretrained else None)
    if c.text_encoder == "bert":
        text = BertEncoder(vocabulary, c.bert_width, c.bert_layers, c.text_weights if pretrained else None)
    return image, text


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
