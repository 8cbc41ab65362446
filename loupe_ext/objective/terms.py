"""The terms of the objective, one class each: its settings, its weight, and its loss of a batch.

A term of one's own is any object with `weight`, `gated`, `contrasts` and `loss(seen)`; see `Term`.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from loupe_ext import losses, region_interactions
from loupe_ext._checks import check_same, check_tensor
from loupe_ext._distributed import place
from loupe_ext._settings import Settings, setting
from loupe_ext.model.heat import heat_boxes, heat_maps, sharpened
from loupe_ext.model.regions import box_features, centres
from loupe_ext.objective.seen import Seen
from loupe_ext.ops import boxes_to_regions
from loupe_ext.ops.region import GAMES
from loupe_ext.unsil import Estimate

MANY = 2**31 - 1


class Term(Protocol):
    """What `Objective` wants of a term."""

    @property
    def weight(self) -> float:
        """0 or more; 0 leaves the term out."""
        ...

    @property
    def gated(self) -> bool:
        """Whether its labels are the model's own, so that it waits until the model tells things apart."""
        ...

    @property
    def contrasts(self) -> bool:
        """Whether its loss is an InfoNCE over the batch, by which the gate sees how much the model tells apart."""
        ...

    def loss(self, seen: Seen) -> Tensor:
        """A scalar, unweighted."""
        ...


@dataclass(frozen=True)
class _Term(Settings):
    """What the terms below share."""

    weight: float = setting(1.0, 0)
    gated: ClassVar[bool] = False
    contrasts: ClassVar[bool] = False

    @property
    def learns(self) -> bool:
        """Whether a learner gives its interactions."""
        return self.weight > 0 and getattr(self, "source", None) == "unsil"


@dataclass(frozen=True)
class CMC(_Term):
    """L_CMC of whole images and captions (LOUPE, section 3.1): `losses.cmc_loss`."""

    contrasts: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        return losses.cmc_loss(seen.image.pooled, seen.text.pooled, seen.logit_scale, group=seen.group)


@dataclass(frozen=True)
class LateInteraction(_Term):
    """FILIP's contrast of patches and words, or of other regions and phrases: `losses.late_interaction_loss`."""

    weight: float = setting(0.0, 0)
    of: str = setting("tokens", choices=("tokens", "phrases"))
    contrasts: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        text = seen.text
        of = (text.tokens, text.lengths) if self.of == "tokens" else (text.phrases, text.phrase_lengths)
        return losses.late_interaction_loss(
            seen.patches, of[0], seen.local_logit_scale, seen.image.lengths, of[1], group=seen.group
        )


@dataclass(frozen=True)
class RegionPhrase(_Term):
    """The contrast of regions and phrases over the batch: `losses.region_phrase_loss`. An addition to LOUPE."""

    contrasts: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        return losses.region_phrase_loss(
            seen.regions,
            seen.text.phrases,
            seen.local_logit_scale,
            seen.text.phrase_lengths,
            region_lengths=seen.region_lengths,
            group=seen.group,
        )


@dataclass(frozen=True)
class ProposalPhrase(_Term):
    """`RegionPhrase` of the model's proposals instead of `regions`; no box learns from it. An addition to LOUPE.

    The best window of an object is its telling part; a proposal is all of it, and so the heat comes to cover it. For
    models whose boxes another term teaches (`Boxes`).
    """

    gated: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        text, boxes = seen.text, seen.proposals[1].detach()
        return losses.region_phrase_loss(
            box_features(seen.image.patches, boxes, seen.image.patch),
            text.phrases,
            seen.local_logit_scale,
            text.phrase_lengths,
            group=seen.group,
        )


@dataclass(frozen=True)
class SparseGrouping(_Term):
    """SPARC's loss within each pair: `losses.sparse_grouping_loss`."""

    weight: float = setting(0.0, 0)

    def loss(self, seen: Seen) -> Tensor:
        if seen.image.lengths is not None:
            raise ValueError("image: expected equally many patches, for sparse_grouping, got lengths")
        return losses.sparse_grouping_loss(seen.patches, seen.text.tokens, seen.local_logit_scale, seen.text.lengths)


@dataclass(frozen=True)
class FSA(_Term):
    """L_FSA (LOUPE, section 3.3): `losses.fsa_loss`, its labels from interactions of a source.

    source: "exact"; "sampled", by Monte Carlo over `coalitions` per image; or "unsil", LOUPE's learner (section 3.4),
        which learns from `targets`, is trusted below the error `threshold`, and has one in `check` games computed.
    negatives: whether the phrases of other captions compete.
    """

    temperature: float = setting(0.2, 0, above=True)
    negatives: bool = setting(True)
    source: str = setting("exact", choices=("exact", "sampled", "unsil"))
    coalitions: int = setting(64, 1, MANY)
    targets: str = setting("sampled", choices=("sampled", "exact"))
    threshold: float = setting(0.3, 0, above=True)
    check: int = setting(8, 1, MANY)
    gated: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        estimate = self.interactions(seen)
        if estimate is not None and self.learns:
            seen.estimates["fsa"] = estimate
        return losses.fsa_loss(
            seen.regions,
            seen.text.phrases,
            seen.local_logit_scale,
            region_lengths=seen.region_lengths,
            phrase_lengths=seen.text.phrase_lengths,
            temperature=self.temperature,
            negatives=self.negatives,
            interactions=None if estimate is None else estimate.interactions,
            group=seen.group,
        )

    def interactions(self, seen: Seen) -> Estimate | None:
        """Of the batch's own pairs, from the source; None for `fsa_loss`'s own, the exact ones."""
        if self.source == "exact":
            return None
        regions, phrases = seen.region_lengths, seen.text.phrase_lengths
        seed = (seen.seed << 32 | seen.step) % 2**64  # coalitions of their own each step, the same in a resumed run
        samples = None if self.source == "unsil" and self.targets == "exact" else self.coalitions

        def compute(chosen: Tensor | slice) -> Tensor:
            of_regions = None if regions is None else regions[chosen]
            alignment = seen.alignment[chosen]
            return losses.alignment_interactions(
                alignment, of_regions, phrases[chosen], samples, seed, first_problem=seen.first
            )

        if self.source == "sampled":
            return Estimate(compute(slice(None)), seen.alignment.new_zeros(()), {})
        game = (seen.regions, seen.text.phrases, seen.alignment, compute, regions, phrases)
        return seen.learners["fsa"](*game, first=seen.first, group=seen.group)


@dataclass(frozen=True)
class TSA(_Term):
    """L_TSA (LOUPE, section 3.2): `losses.tsa_loss` of the model's proposals.

    game: "pooled-cosine", whose value is the similarity that `CMC` trains, by `samples` walks per image; or
        "late-interaction", exact. source: "computed" or "unsil", a learner of its own. literal: the paper's sign.
    """

    weight: float = setting(0.0, 0)
    game: Literal["pooled-cosine", "late-interaction"] = setting("pooled-cosine", choices=GAMES)
    samples: int = setting(16, 2, MANY)
    source: str = setting("computed", choices=("computed", "unsil"))
    threshold: float = setting(0.3, 0, above=True)
    check: int = setting(8, 1, MANY)
    literal: bool = setting(False)
    gated: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        sizes, estimate = self.interactions(seen)
        if self.learns:
            seen.estimates["tsa"] = estimate
        return losses.tsa_loss(seen.proposals[2], estimate.interactions, sizes, literal=self.literal)

    @torch.no_grad()
    def interactions(self, seen: Seen) -> tuple[Tensor, Estimate]:
        """The patches in each proposed box [B, M], and their interactions with the text [B, M]."""
        image, text = seen.image, seen.text
        _, h, w, _ = image.patches.shape
        masks = boxes_to_regions(seen.proposals[1], h, w, image.patch)
        patches, pooled = image.patches, self.game == "pooled-cosine"
        if pooled:
            if image.weights is None:
                raise ValueError("image: expected the patches' weights in the pooled embedding, got a model without")
            patches = patches * image.weights[..., None]
        patches = patches.flatten(1, 2)
        words, lengths = (text.pooled, None) if pooled else (text.tokens, text.lengths)

        def compute(chosen: Tensor | slice) -> Tensor:
            found, _ = region_interactions(
                patches[chosen],
                words[chosen],
                masks[chosen],
                game=self.game,
                text_lengths=None if lengths is None else lengths[chosen],
                num_samples=self.samples,
                seed=seen.seed * 1_000_003 + seen.step,
                first_problem=seen.first,
            )
            return found[..., None]

        if self.source == "computed":
            estimate = Estimate(compute(slice(None)), patches.new_zeros(()), {})
        else:
            # What each region is of the whole image: its length says how much, which the features of a box leave out.
            shares = masks.to(patches.dtype) @ patches / patches.sum(1, keepdim=True).norm(dim=-1, keepdim=True)
            game = (shares, text.pooled[:, None], seen.local_logit_scale * shares @ text.pooled[..., None], compute)
            estimate = seen.learners["tsa"](*game, first=seen.first, group=seen.group)
        return masks.sum(-1), estimate._replace(interactions=estimate.interactions[..., 0])


@dataclass(frozen=True)
class Boxes(_Term):
    """Boxes and confidences learn from the model's own heat; the heat does not learn from them. An addition to LOUPE.

    images: how many of a global batch get pseudo boxes, at most. threshold: of `heat_boxes`, a share of the peak; 0: it
        is so many `deviations` above the mean instead. colour: the weight of the image's colours in the map that makes
        a pseudo box, beside the heat; 0 looks at no pixel.
    centred: the heat is that of what a phrase has beyond the batch's mean phrase. Losses compare phrases, and leave
        open what all of them share: after long training only the telling parts of a thing are like its phrase, but all
        of it is more so than of most.
    """

    weight: float = setting(2.0, 0)
    images: int = setting(32, 1, MANY)
    threshold: float = setting(0.0, 0, 1, below=True)
    colour: float = setting(2.0, 0)
    centred: bool = setting(True)
    deviations: float = setting(1.75, 0)
    gated: ClassVar[bool] = True

    def loss(self, seen: Seen) -> Tensor:
        image, text = seen.image, seen.text
        if image.boxes is None or image.confidence is None:
            raise ValueError("image: expected features with boxes and confidence, got a model without a region head")
        few = self.chosen(seen)
        with torch.no_grad():
            phrases = text.phrases - seen.mean_phrase if self.centred else text.phrases
            heat = heat_maps(image.patches[few], phrases[few])
            maps = heat.flatten(0, 1)  # those of phrases that there are not among them, whose boxes count for nothing
            if self.colour:
                if seen.images is None:
                    raise ValueError("images: expected the pixels, for the colours of pseudo boxes, got None")
                check_tensor("images", seen.images)
                check_same("images", seen.images, "image.patches", image.patches, {"B": (0, 0)})
                maps = sharpened(maps, seen.images[few].repeat_interleave(heat.shape[1], 0), self.colour)
            level = (self.threshold, "peak") if self.threshold else (self.deviations, "deviation")
            targets = heat_boxes(maps, level[0], image.patch * heat.shape[2] / maps.shape[1], by=level[1])
            targets = targets.view(*heat.shape[:2], 4).masked_fill(~text.phrase_mask[few][..., None], 0)
        at = centres(image.patches.shape[1], image.patches.shape[2], image.patches.device, image.patch)
        return losses.box_loss(
            image.boxes[few],
            image.confidence[few],
            targets,
            at,
            text.phrase_lengths[few],
            group=seen.group,
        )

    def chosen(self, seen: Seen) -> slice:
        """The pairs that get pseudo boxes: evenly over the global batch, so that processes share the work."""
        every = math.ceil(seen.batch_size * place(seen.group)[1] / self.images)
        return slice(-seen.first % every % seen.batch_size, None, every)
