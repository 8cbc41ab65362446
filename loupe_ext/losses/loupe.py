"""LOUPE's objective for anyone's training loop: plain tensors in, a dictionary of losses out."""

import math

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_device, check_features, check_flag, check_number, check_scale
from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.losses.cmc import cmc_loss
from loupe_ext.losses.fsa import fsa_loss
from loupe_ext.losses.late_interaction import late_interaction_loss
from loupe_ext.losses.region_phrase import region_phrase_loss


class LoupeLoss(nn.Module):
    """The weighted sum cmc L_CMC + region_phrase L_RP + late_interaction L_LI + gate fsa L_FSA.

    FSA's labels are the model's own (exact interactions of its alignments), so its term waits until the model tells
    things apart: its gate, 0 to 1, is (1 - c / log B)^2, c the mean of the contrastive losses of a batch of B pairs
    (`cmc`, `late_interaction`, `region_phrase`, those that are on). A model that was trained before begins with an
    open gate.

    ```
    criterion = LoupeLoss().to(device)
    optimizer = torch.optim.AdamW([*model.parameters(), *criterion.parameters()])
    losses = criterion(image_embeds, text_embeds, patch_embeds, phrase_embeds, phrase_lengths=lengths)
    losses["loss"].backward()
    ```

    Args:
        cmc, region_phrase, fsa, late_interaction: weights, 0 or more; 0 leaves a term out. Leave out `cmc` if the
            model has its own contrast of whole images and captions, such as SigLIP's.
        fsa_temperature: of the labels of `fsa_loss`. negatives: whether the phrases of other captions compete in it.
        logit_scale: where the inverse temperature of regions and phrases starts; it is learned (on its logarithm, a
            parameter of this module), and held below `max_logit_scale`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """

    def __init__(
        self,
        cmc: float = 1.0,
        region_phrase: float = 1.0,
        fsa: float = 1.0,
        late_interaction: float = 0.0,
        *,
        fsa_temperature: float = 0.2,
        negatives: bool = True,
        logit_scale: float = 10.0,
        max_logit_scale: float = 60.0,
    ) -> None:
        super().__init__()
        weights = {"cmc": cmc, "region_phrase": region_phrase, "late_interaction": late_interaction, "fsa": fsa}
        self.weights = {name: check_number(name, weight, 0) for name, weight in weights.items()}
        if not any(self.weights.values()):
            raise ValueError(f"{', '.join(weights)}: expected one above 0")
        self.fsa_temperature = check_number("fsa_temperature", fsa_temperature, 0, above=True)
        self.negatives = check_flag("negatives", negatives)
        self.max_logit_scale = check_number("max_logit_scale", max_logit_scale, 0, above=True)
        start = check_number("logit_scale", logit_scale, 0, self.max_logit_scale, above=True)
        self.log_logit_scale = nn.Parameter(torch.tensor([math.log(start)]))  # [1]: FSDP2 shards no 0-dim parameters

    def forward(
        self,
        images: Tensor,
        texts: Tensor,
        regions: Tensor,
        phrases: Tensor,
        *,
        logit_scale: Tensor | float | None = None,
        region_lengths: Tensor | None = None,
        phrase_lengths: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch of B matched pairs.

        Args:
            images, texts: [B, d], embeddings of whole images and captions.
            regions: [B, M, d], embeddings of image parts in the same space: patches, windows of them, or boxes.
            phrases: [B, N, d], embeddings of the captions' noun phrases (or of their words).
            logit_scale: the model's own inverse temperature, for `images` and `texts`; None: this module's.
            region_lengths, phrase_lengths: [B] int32 or int64, in 1..M and 1..N; None: all of them.

        Embeddings may have any length and any floating dtype; half types are taken to float32.

        Returns:
            The terms that are on, unweighted, by name; "gate", without gradient, if `fsa` is on; and "loss", their
            weighted sum. All are scalars.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value.
        """
        with torch.no_grad():
            self.log_logit_scale.clamp_(max=math.log(self.max_logit_scale))  # of the last step's result
        for name, value, dims in (("images", images, "Bd"), ("texts", texts, "Bd"), ("regions", regions, "BMd")):
            check_features(name, value, dims)
        check_features("phrases", phrases, "BNd")
        for name, value in (("texts", texts), ("regions", regions), ("phrases", phrases)):
            check_device(name, value, "images", images)
        if logit_scale is not None:
            logit_scale = check_scale(logit_scale, images.device, "logit_scale")
        images, texts, regions, phrases = map(_directions, (images, texts, regions, phrases))
        scale = self.log_logit_scale.exp()[0]
        losses: dict[str, Tensor] = {}
        if self.weights["cmc"]:
            losses["cmc"] = cmc_loss(images, texts, scale if logit_scale is None else logit_scale)
        if self.weights["region_phrase"]:
            losses["region_phrase"] = region_phrase_loss(
                regions, phrases, scale, region_lengths=region_lengths, phrase_lengths=phrase_lengths
            )
        if self.weights["late_interaction"]:
            losses["late_interaction"] = late_interaction_loss(regions, phrases, scale, region_lengths, phrase_lengths)
        loss = sum(self.weights[name] * value for name, value in losses.items())
        if self.weights["fsa"]:
            gate = contrast_gate(list(losses.values()), len(images)) if losses else torch.ones_like(scale).detach()
            losses["fsa"] = fsa_loss(
                regions, phrases, scale, region_lengths, phrase_lengths, self.fsa_temperature, self.negatives
            )
            loss = loss + self.weights["fsa"] * gate * losses["fsa"]
            losses["gate"] = gate
        return {"loss": torch.as_tensor(loss), **losses}


def contrast_gate(contrasts: list[Tensor], batch_size: int) -> Tensor:
    """How far contrastive losses have come down from log(batch_size), where they start: its squared share, 0 to 1."""
    with torch.no_grad():
        contrast = torch.stack(contrasts).mean()
        if batch_size < 2:
            return torch.ones_like(contrast)
        return (1 - contrast / math.log(batch_size)).clamp(min=0).square()


def _directions(features: Tensor) -> Tensor:
    """The features at length one, at least in float32."""
    return directions(at_least_float32(features))
