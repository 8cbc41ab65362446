"""One forward pass of a step, model and objective together, as DistributedDataParallel and FSDP want it."""

from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext.data.batch import Batch
from loupe_ext.objective import Objective


class Step(nn.Module):
    """A model's features of a batch, and the objective's losses of them."""

    def __init__(self, model: Any, objective: Objective, precision: str = "auto", compile: bool = False) -> None:
        super().__init__()
        self.model, self.objective, self.precision = model, objective, precision
        encoders = (model.encode_image, model.encode_text)
        self.encoders = tuple(torch.compile(encode) if compile else encode for encode in encoders)

    def forward(self, batch: Batch, step: int, first: int = 0, group: Any = None) -> dict[str, Tensor]:
        """As `Objective.forward`. The encoders compute in bfloat16, if that is the precision, the losses never."""
        device = batch.images.device.type
        bfloat16 = self.precision == "bfloat16" or (self.precision == "auto" and fast_bfloat16(device))
        encode_image, encode_text = self.encoders
        with torch.autocast(device, torch.bfloat16, enabled=bfloat16):
            image = encode_image(batch.images, **batch.image_options)
            text = encode_text(batch.tokens, batch.spans, batch.phrase_lengths, **batch.text_options)
        scale = own_logit_scale(self.model)
        options = {"images": batch.images, "logit_scale": scale, "step": step, "first": first, "group": group}
        return self.objective(image, text, **options)

    def parts(self) -> list[list[nn.Parameter]]:
        """The parameters that learn: of the model and the temperatures, and of each learner of interactions.

        No part's gradient clips another's.
        """
        learners = [list(learner.parameters()) for learner in self.objective.learners.values()]
        apart = {id(x) for part in learners for x in part}
        together = [x for x in self.parameters() if x.requires_grad and id(x) not in apart]
        return [together, *learners]


def own_logit_scale(model: Any) -> Tensor | None:
    """The inverse temperature with which a model contrasts whole images and captions, if it has one."""
    scale = getattr(model, "logit_scale", None)
    return scale if isinstance(scale, Tensor) and scale.numel() == 1 else None


def fast_bfloat16(device: str = "cpu") -> bool:
    """Whether this CPU, or this kind of device, multiplies bfloat16 in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
