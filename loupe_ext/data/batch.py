"""What training sees of a batch."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """All that training sees of a batch of B pairs. There is no place for a box in it.

    Attributes:
        images: [B, 3, H, W] uint8, or what the model's own processor makes of pictures.
        tokens: [B, L] int64, the captions' token ids.
        spans: [B, P, 2] int64, the first token of each noun phrase and the one after its last; padded with 0, 0.
        phrase_lengths: [B] int64, how many of the P phrases each caption has, one or more.
        image_options, text_options: further inputs of the model's `encode_image` and `encode_text`, by name, such as an
            attention mask.
    """

    images: Tensor
    tokens: Tensor
    spans: Tensor
    phrase_lengths: Tensor
    image_options: dict[str, Tensor] = field(default_factory=dict)
    text_options: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> "Batch":
        """The same on a device; from pinned memory, without waiting for it."""
        moved: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, dict):
                moved[each.name] = {name: x.to(device, non_blocking=True) for name, x in value.items()}
            else:
                moved[each.name] = value.to(device, non_blocking=True)
        return Batch(**moved)
