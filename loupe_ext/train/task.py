"""The training objective: a dual encoder, its temperatures, and the weighted losses of a batch."""

import torch
from torch import Tensor, nn

from loupe_ext import losses
from loupe_ext.data.pairs import Batch
from loupe_ext.model.dual import DualEncoder, ImageFeatures, Scale, TextFeatures
from loupe_ext.model.pseudo_boxes import interaction_boxes
from loupe_ext.model.regions import centres
from loupe_ext.train.config import Config


class Task(nn.Module):
    """L = cmc L_CMC + ramp(step) (region_phrase L_RP + fsa L_FSA + boxes L_boxes), or the late interaction alone."""

    def __init__(self, config: Config, vocabulary: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = DualEncoder(vocabulary, config.width, config.dim, config.blocks)
        self.scale_global = Scale(config.scale, 100.0)
        self.scale_local = Scale(config.scale, config.scale_cap)

    def ramp(self, step: int) -> float:
        return min(1.0, max(0.0, (step - self.config.local_start) / max(1, self.config.local_ramp)))

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The batch's losses by name, unweighted, and their weighted sum as "loss"."""
        c, ramp = self.config, self.ramp(step)
        bfloat16 = c.precision == "bfloat16" or (c.precision == "auto" and fast_bfloat16())
        with torch.autocast(batch.images.device.type, torch.bfloat16, enabled=bfloat16):
            image = self.encoder.encode_image(batch.images)
        text = self.encoder.encode_text(batch)
        parts: dict[str, Tensor] = {}
        weights = {"cmc": c.cmc, "late_interaction": c.late_interaction}
        weights |= {name: ramp * getattr(c, name) for name in ("region_phrase", "fsa", "boxes")}
        if weights["cmc"]:
            parts["cmc"] = losses.cmc_loss(image.pooled, text.pooled, self.scale_global())
        if weights["late_interaction"]:
            parts["late_interaction"] = losses.late_interaction_loss(
                image.patches.flatten(1, 2), text.words, self.scale_local(), text.lengths
            )
        if weights["region_phrase"] or weights["fsa"]:
            regions = image.regions(c.regions, c.overlap)[0]
        if weights["region_phrase"]:
            parts["region_phrase"] = losses.region_phrase_loss(
                regions, text.phrases, self.scale_local(), text.phrase_lengths
            )
        if weights["fsa"]:
            alignment = self.scale_local() * regions @ text.phrases.mT
            parts["fsa"] = losses.fsa_loss(
                alignment, phrase_lengths=text.phrase_lengths, temperature=c.fsa_temperature
            )
        if weights["boxes"]:
            parts["boxes"] = self._box_loss(image, text)
        return {"loss": sum((weights[name] * part for name, part in parts.items()), torch.zeros(())), **parts}

    def _box_loss(self, image: ImageFeatures, text: TextFeatures) -> Tensor:
        few = slice(self.config.box_images)
        with torch.no_grad():
            heat = torch.einsum("bhwd,bpd->bphw", image.patches[few], text.phrases[few])
            present = torch.arange(heat.shape[1]) < text.phrase_lengths[few, None]
            targets = heat.new_zeros(*heat.shape[:2], 4)
            targets[present] = interaction_boxes(heat[present])
        return losses.box_loss(
            image.boxes[few], image.confidence[few], targets, centres(*image.grid), text.phrase_lengths[few]
        )


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware."""
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
