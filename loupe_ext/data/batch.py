"""What training sees of a batch."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import check_range, check_tensor


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


def checked(batch: Batch) -> Batch:
    """The batch, whose shapes and lengths fit each other: looked at before it goes to a device.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """
    for name, value, dims in (("tokens", batch.tokens, 2), ("spans", batch.spans, 3), ("phrase_lengths", None, 1)):
        value = batch.phrase_lengths if value is None else value
        check_tensor(name, value)
        if value.dtype != torch.int64 or value.dim() != dims or len(value) != len(batch):
            expected = f"int64 with {dims} dimensions, {len(batch)} long"
            raise ValueError(f"{name}: expected {expected}, got {value.dtype} {tuple(value.shape)}")
    if not len(batch):
        raise ValueError("batches: expected one pair or more in each, got none")
    check_range("spans", batch.spans, 0, batch.tokens.shape[1])
    check_range("phrase_lengths", batch.phrase_lengths, 1, batch.spans.shape[1])
    return batch
