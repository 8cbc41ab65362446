"""What training sees of a batch."""

from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import check_ints, check_range


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

        def moved(x: Any) -> Any:
            return {n: moved(y) for n, y in x.items()} if isinstance(x, dict) else x.to(device, non_blocking=True)

        return Batch(**{each.name: moved(getattr(self, each.name)) for each in fields(self)})


def checked(batch: Batch) -> Batch:
    """The batch, whose shapes and lengths fit each other: looked at before it goes to a device.

    Raises:
        TypeError, ValueError: naming the field, what was expected and what came.
    """
    for name, dims in (("tokens", "BL"), ("spans", "BP2"), ("phrase_lengths", "B")):
        value = check_ints(name, getattr(batch, name), dims)
        if len(value) != len(batch):
            raise ValueError(f"{name}: expected the B of images ({len(batch)}), got {tuple(value.shape)}")
    if not len(batch):
        raise ValueError("batches: expected one pair or more in each, got none")
    check_range("spans", batch.spans, 0, batch.tokens.shape[1])
    check_range("phrase_lengths", batch.phrase_lengths, 1, batch.spans.shape[1])
    return batch
