"""The training objective: a dual encoder, its temperatures, and the weighted losses of a batch."""

import math

import torch
from torch import Tensor, nn

from loupe_ext import boxes_to_regions, losses, region_interactions
from loupe_ext._checks import check_flag
from loupe_ext.data.pairs import Batch, Vocabulary
from loupe_ext.model.dual import GLOBAL_CAP, DualEncoder, ImageFeatures, Scale, TextFeatures
from loupe_ext.model.heat import heat_boxes, heat_maps, sharpened
from loupe_ext.model.pretrained import BertEncoder, SwinEncoder
from loupe_ext.model.regions import centres, window_features
from loupe_ext.train.config import Config
from loupe_ext.unsil import Estimate, Unsil


class Task(nn.Module):
    """The weighted sum of the losses: cmc L_CMC + late_interaction L_LI + sparse_grouping L_SG + region_phrase L_RP
    + gate (fsa L_FSA + tsa L_TSA + boxes L_boxes).

    With the source "unsil" of FSA's or TSA's interactions, also the learner's own loss, on its own parameters.
    """

    def __init__(self, config: Config, vocabulary: int, pretrained: bool = True) -> None:
        """`pretrained`: whether to read the weights that the configuration names, if any."""
        super().__init__()
        if not isinstance(config, Config):
            raise TypeError(f"config: expected a Config, got {type(config).__name__}")
        check_flag("pretrained", pretrained)
        self.config = config
        self.vocabulary: Vocabulary | None = None  # whose ids it learned, once it did
        image, text = _encoders(config, vocabulary, pretrained)
        self.encoder = DualEncoder(vocabulary, config.width, config.dim, config.blocks, image, text)
        self.scale_global = Scale(config.scale, GLOBAL_CAP)
        self.scale_local = Scale(config.scale, config.scale_cap)
        for scale in (self.scale_global, self.scale_local):
            scale.requires_grad_(config.learn_scale)
        self.fsa_unsil, self.tsa_unsil = (
            Unsil(config.dim, config.unsil_threshold, config.unsil_check) if weight and source == "unsil" else None
            for weight, source in ((config.fsa, config.fsa_source), (config.tsa, config.tsa_source))
        )

    def forward(self, batch: Batch, step: int) -> dict[str, Tensor]:
        """The batch's losses by name, unweighted, their weighted sum as "loss", and metrics that carry no gradient."""
        c = self.config
        device = batch.images.device.type
        bfloat16 = c.precision == "bfloat16" or (c.precision == "auto" and fast_bfloat16(device))
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            image = self.encoder.encode_image(batch.images)
        text = self.encoder.encode_text(batch)
        parts: dict[str, Tensor] = {}
        if c.cmc:
            parts["cmc"] = losses.cmc_loss(image.pooled, text.pooled, self.scale_global())
        if c.late_interaction:
            parts["late_interaction"] = losses.late_interaction_loss(
                image.patches.flatten(1, 2), text.words, self.scale_local(), token_lengths=text.lengths
            )
        if c.tsa or c.regions == "proposals":
            regions, boxes, confidence = image.proposals(c.proposals, c.overlap)
        if c.regions == "windows" and (c.region_phrase or c.fsa):
            regions = window_features(image.patches, c.window, c.window_stride)
        if c.region_phrase:
            parts["region_phrase"] = losses.region_phrase_loss(
                regions, text.phrases, self.scale_local(), text.phrase_lengths
            )
        gate = self._gate(list(parts.values()), len(batch.images))
        if c.sparse_grouping:
            parts["sparse_grouping"] = losses.sparse_grouping_loss(
                image.patches.flatten(1, 2), text.words, self.scale_local(), text.lengths
            )
        learned: dict[str, Estimate] = {}
        if c.fsa:
            estimate = self.interactions(regions, text, step)
            if self.fsa_unsil is not None and estimate is not None:
                learned["fsa_unsil"] = estimate
            parts["fsa"] = losses.fsa_loss(
                regions,
                text.phrases,
                self.scale_local(),
                phrase_lengths=text.phrase_lengths,
                temperature=c.fsa_temperature,
                negatives=c.negatives,
                interactions=None if estimate is None else estimate.interactions,
            )
        if c.tsa:
            sizes, of_tokens = self.token_interactions(image, text, boxes, step)
            if self.tsa_unsil is not None:
                learned["tsa_unsil"] = of_tokens
            parts["tsa"] = losses.tsa_loss(confidence, of_tokens.interactions, sizes, literal=c.tsa_literal)
        if c.boxes:
            parts["boxes"] = self._box_loss(batch.images, image, text)
        loss = sum(
            getattr(c, name) * (gate if name in ("fsa", "tsa", "boxes") else 1.0) * part for name, part in parts.items()
        )
        metrics: dict[str, Tensor] = {}
        for name, (_, own_loss, seen) in learned.items():
            loss = loss + own_loss
            metrics |= {name: own_loss.detach(), **{f"{name}_{k}": v for k, v in seen.items()}}
        return {"loss": torch.as_tensor(loss), **parts, **metrics}

    def interactions(self, regions: Tensor, text: TextFeatures, step: int) -> Estimate | None:
        """FSA's interactions of the batch's own pairs, from its source; None for `fsa_loss`'s own, the exact one."""
        c, lengths = self.config, text.phrase_lengths
        if c.fsa_source == "exact":
            return None
        alignment = (self.scale_local() * regions @ text.phrases.mT).detach()
        seed = (c.seed << 32 | step) % 2**64  # coalitions of their own each step, and the same in a resumed run
        samples = None if self.fsa_unsil is not None and c.unsil_targets == "exact" else c.fsa_coalitions

        def compute(chosen: Tensor | slice) -> Tensor:
            return losses.alignment_interactions(alignment[chosen], None, lengths[chosen], samples, seed)

        if self.fsa_unsil is None:
            return Estimate(compute(slice(None)), alignment.new_zeros(()), {})
        return self.fsa_unsil(regions, text.phrases, alignment, compute, phrase_lengths=lengths)

    @torch.no_grad()
    def token_interactions(
        self, image: ImageFeatures, text: TextFeatures, boxes: Tensor, step: int
    ) -> tuple[Tensor, Estimate]:
        """The patches in each box [B, M], and their interactions with the text [B, M], from TSA's source.

        The game's worth is the similarity that the global or the local losses train.
        """
        c = self.config
        _, h, w, _ = image.patches.shape
        masks = boxes_to_regions(boxes, h, w, image.patch)
        pooled = c.tsa_game == "pooled-cosine"
        patches = (image.patches * image.weights[..., None] if pooled else image.patches).flatten(1, 2)
        words, lengths = (text.pooled, None) if pooled else (text.words, text.lengths)

        def compute(chosen: Tensor | slice) -> Tensor:
            found, _ = region_interactions(
                patches[chosen],
                words[chosen],
                masks[chosen],
                game=c.tsa_game,  # type: ignore[arg-type]
                text_lengths=None if lengths is None else lengths[chosen],
                num_samples=c.tsa_samples,
                seed=c.seed * 1_000_003 + step,
            )
            return found[..., None]

        if self.tsa_unsil is None:
            estimate = Estimate(compute(slice(None)), patches.new_zeros(()), {})
        else:
            # What each region is of the whole image: its length says how much, which the features of a box leave out.
            shares = masks.to(patches.dtype) @ patches / patches.sum(1, keepdim=True).norm(dim=-1, keepdim=True)
            alignment = self.scale_local() * shares @ text.pooled[..., None]
            estimate = self.tsa_unsil(shares, text.pooled[:, None], alignment, compute)
        return masks.sum(-1), estimate._replace(interactions=estimate.interactions[..., 0])

    def bound_scales(self) -> None:
        """Keep the inverse temperatures within their caps: before the first step, and after each."""
        self.scale_global.bound()
        self.scale_local.bound()

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters of the model, and of each interaction learner: none's gradient clips another's."""
        learners = [[] if unsil is None else list(unsil.parameters()) for unsil in (self.fsa_unsil, self.tsa_unsil)]
        model = [value for name, value in self.named_parameters() if "_unsil." not in name]
        return [model, *learners]

    @staticmethod
    def _gate(contrasts: list[Tensor], batch: int) -> float:
        """The weight, 0 to 1, of the losses whose labels the model makes itself.

        The squared share of its start, log(batch), that the batch's contrastive losses have come down. A model that
        tells nothing apart yet would label at random and then learn that.
        """
        if not contrasts or batch < 2:
            return 1.0
        return max(0.0, 1 - torch.stack(contrasts).mean().item() / math.log(batch)) ** 2

    def _box_loss(self, images: Tensor, image: ImageFeatures, text: TextFeatures) -> Tensor:
        """Boxes learn from the model's own heat; the heat does not learn from the boxes."""
        few = slice(self.config.box_images)
        mask = text.phrase_mask[few]
        with torch.no_grad():
            heat = heat_maps(image.patches[few], text.phrases[few])
            targets = heat.new_zeros(*mask.shape, 4)
            owner = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)[mask]
            maps = sharpened(heat[mask], images[owner], self.config.box_colour)
            targets[mask] = heat_boxes(maps, self.config.box_threshold, image.patch / 2)
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


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether this CPU, or this kind of device, multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
