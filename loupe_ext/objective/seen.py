"""What the terms of an objective may look at: the features of a batch, and what follows from them."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from loupe_ext._dtypes import at_least_float32
from loupe_ext.model.features import ImageFeatures, TextFeatures
from loupe_ext.model.regions import window_features
from loupe_ext.unsil import Estimate, Unsil

if TYPE_CHECKING:
    from loupe_ext.objective.objective import ObjectiveConfig


@dataclass
class Seen:
    """A batch of B pairs as a model sees it. Terms read it, and leave what their learners said in `estimates`."""

    config: "ObjectiveConfig"
    image: ImageFeatures
    text: TextFeatures
    logit_scale: Tensor  # of whole images and captions, a scalar
    local_logit_scale: Tensor  # of regions and phrases
    images: Tensor | None = None  # [B, 3, H, W], the pixels, for terms that look at colours
    step: int = 0
    seed: int = 0
    first: int = 0  # the place of the first of these pairs in the global batch
    group: Any = None  # of the processes that hold the rest of it
    learners: dict[str, Unsil] = field(default_factory=dict)
    estimates: dict[str, Estimate] = field(default_factory=dict)
    gradient: bool = field(default_factory=torch.is_grad_enabled)  # of what is kept, whoever asks for it first

    @property
    def batch_size(self) -> int:
        return len(self.image.pooled)

    @property
    def patches(self) -> Tensor:
        """[B, n, d]."""
        return self.image.patches.flatten(1, 2)

    @cached_property
    def proposals(self) -> tuple[Tensor, Tensor, Tensor]:
        """Features [B, M, d], boxes [B, M, 4] and confidence [B, M] of the model's proposals."""
        with torch.set_grad_enabled(self.gradient):
            return self.image.proposals(self.config.proposals, self.config.overlap)

    @cached_property
    def regions(self) -> Tensor:
        """[B, M, d], those that are matched with phrases."""
        if self.image.lengths is not None and self.config.regions != "patches":
            raise ValueError(f"image: expected equally many patches, for {self.config.regions}, got lengths")
        with torch.set_grad_enabled(self.gradient):
            if self.config.regions == "proposals":
                return self.proposals[0]
            if self.config.regions == "windows":
                return window_features(self.image.patches, self.config.window, self.config.window_stride)
            return self.patches

    @property
    def region_lengths(self) -> Tensor | None:
        """[B], of `regions`; None: all M."""
        return self.image.lengths if self.config.regions == "patches" else None

    @cached_property
    def mean_phrase(self) -> Tensor:
        """[d], of all phrases of the global batch, without gradient; 0 if there is one alone."""
        with torch.no_grad():
            mask = self.text.phrase_mask[..., None]
            phrases = at_least_float32(self.text.phrases).masked_fill(~mask, 0)
            total = torch.cat([phrases.sum((0, 1)), mask.sum().to(phrases.dtype)[None]])
            if self.group is not None:
                torch.distributed.all_reduce(total, group=self.group)
            return (total[:-1] / total[-1] * (total[-1] > 1)).to(self.text.phrases.dtype)

    @cached_property
    def alignment(self) -> Tensor:
        """[B, M, P] logits of the regions with the phrases of their own captions, without gradient."""
        with torch.no_grad():
            return self.local_logit_scale * self.regions @ self.text.phrases.mT
