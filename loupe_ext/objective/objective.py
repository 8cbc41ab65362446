"""The objective: terms, their gate, the temperatures, and the learners of interactions."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_int, check_kind, check_number, check_scale, shown
from loupe_ext._distributed import place
from loupe_ext._settings import Settings, setting
from loupe_ext.losses import contrast_gate
from loupe_ext.model.features import ImageFeatures, TextFeatures, check_pairs
from loupe_ext.objective.seen import Seen
from loupe_ext.objective.terms import (
    CMC,
    FSA,
    TSA,
    Boxes,
    LateInteraction,
    ProposalPhrase,
    RegionPhrase,
    SparseGrouping,
    Term,
)
from loupe_ext.unsil import Unsil

GLOBAL_CAP = 100.0  # of the inverse temperature of whole images and captions


@dataclass(frozen=True)
class ObjectiveConfig(Settings):
    """Which terms there are, with their settings, and what they share. The defaults are the default recipe.

    regions: what is matched with phrases: "windows" of `window` x `window` patches, every `window_stride` of them;
        the model's "proposals", the most confident ones, whose boxes then learn from these losses; or "patches".
    proposals, overlap: how many proposals an image has, and the IoU above which the less confident of two goes.
    logit_scale: where the inverse temperatures start; both are learned, if `learn_logit_scale`, that of whole images
        and captions up to 100, that of regions and phrases up to `max_local_logit_scale`.
    """

    cmc: CMC = setting(CMC())
    late_interaction: LateInteraction = setting(LateInteraction())
    region_phrase: RegionPhrase = setting(RegionPhrase())
    proposal_phrase: ProposalPhrase = setting(ProposalPhrase())
    sparse_grouping: SparseGrouping = setting(SparseGrouping())
    fsa: FSA = setting(FSA())
    tsa: TSA = setting(TSA())
    boxes: Boxes = setting(Boxes())

    regions: str = setting("windows", choices=("windows", "proposals", "patches"))
    window: int = setting(3, 1, 2**31 - 1)
    window_stride: int = setting(2, 1, 2**31 - 1)
    proposals: int = setting(12, 1, 2**31 - 1)
    overlap: float = setting(0.5, 0, 1)
    logit_scale: float = setting(10.0, 0, GLOBAL_CAP, above=True)
    max_local_logit_scale: float = setting(60.0, 0, above=True)
    learn_logit_scale: bool = setting(True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not any(term.weight for term in self.terms.values()):
            raise ValueError(f"{', '.join(self.terms)}: expected a weight above 0")
        if self.logit_scale > self.max_local_logit_scale:
            raise ValueError(
                f"logit_scale: expected at most max_local_logit_scale ({self.max_local_logit_scale}), "
                f"got {self.logit_scale}"
            )

    @property
    def terms(self) -> dict[str, Any]:
        """By name, those that are off among them."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: term for name, term in found.items() if isinstance(term, Settings)}

    @property
    def learns_boxes(self) -> bool:
        """Whether the model's boxes get a gradient: from pseudo boxes, or as regions of the other losses."""
        return self.boxes.weight > 0 or self.tsa.weight > 0 or self.regions == "proposals"


class LogitScale(nn.Module):
    """A learned inverse temperature of at most `cap`. Call `bound` after each step of the optimiser."""

    def __init__(self, start: float, cap: float) -> None:
        super().__init__()
        start, cap = check_number("start", start, 0, above=True), check_number("cap", cap, 0, above=True)
        self.log = nn.Parameter(torch.tensor([start]).log())  # [1]: FSDP shards no parameter without dimensions
        self.cap = cap

    def forward(self) -> Tensor:
        return self.log[0].exp().clamp(max=self.cap)

    @torch.no_grad()
    def bound(self) -> None:
        """Bring a parameter that a step took beyond the cap back, where its gradient is not 0; a fixed one stays."""
        if self.log.requires_grad:
            most = math.log(self.cap)
            self.log.clamp_(max=most - 1e-6 * max(1.0, abs(most)))  # a hair below, however `exp` rounds


class Objective(nn.Module):
    """The weighted sum of the terms, those whose labels are the model's own times the gate (`losses.contrast_gate`).

    ```
    objective = Objective(cmc=CMC(), region_phrase=RegionPhrase(), fsa=FSA(source="unsil"), dim=64)
    losses = objective(model.encode_image(images), model.encode_text(tokens, spans, lengths), images=images)
    ```

    Args:
        config: the terms and what they share. None: the terms that are given by name, no others.
        dim: d of the features; needed where a source is "unsil", whose learners are submodules.
        seed: of what is sampled.
        extra: terms of one's own, by name; modules among them are submodules.
        terms: settings of terms by name, or other fields of `ObjectiveConfig`.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """

    def __init__(
        self,
        config: ObjectiveConfig | None = None,
        *,
        dim: int | None = None,
        seed: int = 0,
        extra: Mapping[str, Term] | None = None,
        **terms: Any,
    ) -> None:
        super().__init__()
        check_kind("config", config, (ObjectiveConfig, type(None)), "an ObjectiveConfig")
        if config is None:
            off = {name: term.but(weight=0.0) for name, term in ObjectiveConfig().terms.items()}
            config = ObjectiveConfig(**{**off, **terms})
        elif terms:
            config = config.but(terms)
        dim = None if dim is None else check_int("dim", dim, 1, 2**31 - 1)
        self.config, self.seed = config, check_int("seed", seed, 0, 2**32 - 1)
        self.terms: dict[str, Term] = {name: term for name, term in config.terms.items() if term.weight}
        self.extra = nn.ModuleDict()
        for name, term in _own_terms(extra, config).items():
            self.terms[name] = term
            if isinstance(term, nn.Module):
                self.extra[name] = term
        self.logit_scale = LogitScale(config.logit_scale, GLOBAL_CAP)
        self.local_logit_scale = LogitScale(config.logit_scale, config.max_local_logit_scale)
        local = any(term.weight for name, term in config.terms.items() if name not in ("cmc", "tsa", "boxes"))
        self.logit_scale.requires_grad_(config.learn_logit_scale and config.cmc.weight > 0)
        self.local_logit_scale.requires_grad_(config.learn_logit_scale and local)
        self.learners = nn.ModuleDict()
        for name, term in config.terms.items():
            if term.learns:
                if dim is None:
                    raise ValueError(f"dim: expected the features' size, for the learner of {name}, got None")
                self.learners[name] = Unsil(dim, term.threshold, term.check)

    def forward(
        self,
        image: ImageFeatures,
        text: TextFeatures,
        *,
        images: Tensor | None = None,
        step: int = 0,
        logit_scale: Tensor | float | None = None,
        first: int = 0,
        group: Any = None,
    ) -> dict[str, Tensor]:
        """The losses of a batch of B pairs.

        Args:
            image, text: the features of B matched images and captions.
            images: [B, 3, H, W], the pixels, where a term looks at colours (`Boxes`).
            step: of the run; sampled coalitions are a function of it, of the seed and of the place in the batch.
            logit_scale: the model's own inverse temperature of whole images and captions; None: this module's.
            first, group: where the batch is one process's part of a global one: the place of its first pair in that,
                and the processes. The mean of their losses, and of their gradients, is that of the global batch.

        Returns:
            Scalars: the terms by name, unweighted; "loss", their weighted sum; and without gradient "gate", if a term
            waits for it, and the metrics of the learners.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; or a term needs what the model or the
                caller does not give.
        """
        seen = self.see(image, text, images=images, step=step, logit_scale=logit_scale, first=first, group=group)
        parts = {name: term.loss(seen) for name, term in self.terms.items()}
        metrics: dict[str, Tensor] = {}
        if any(term.gated for term in self.terms.values()):
            contrasts = [parts[name] for name, term in self.terms.items() if term.contrasts]
            ungated, total = torch.ones((), device=image.pooled.device), seen.batch_size * place(group)[1]
            metrics["gate"] = contrast_gate(contrasts, total, group) if contrasts else ungated
        loss = sum(
            (term.weight * metrics["gate"] if term.gated else term.weight) * parts[name]
            for name, term in self.terms.items()
        )
        for name, (_, own, of_learner) in seen.estimates.items():
            loss = loss + own
            metrics |= {f"{name}_unsil": own.detach(), **{f"{name}_unsil_{k}": v for k, v in of_learner.items()}}
        return {"loss": torch.as_tensor(loss), **parts, **metrics}

    def see(self, image: ImageFeatures, text: TextFeatures, **options: Any) -> Seen:
        """What the terms look at; the options are those of a call."""
        check_pairs(image, text)
        for name in ("step", "first"):
            options[name] = check_int(name, options.get(name, 0), 0, 2**32 - 1)
        scale = options.pop("logit_scale", None)
        if scale is not None:
            scale = torch.as_tensor(check_scale(scale, image.pooled.device, "logit_scale"), device=image.pooled.device)
        return Seen(
            self.config,
            image,
            text,
            self.logit_scale() if scale is None else scale,
            self.local_logit_scale(),
            seed=self.seed,
            learners=dict(self.learners.items()),  # type: ignore[arg-type]
            **options,
        )

    def bound(self) -> None:
        """Keep the inverse temperatures within their caps: before the first step, and after each."""
        self.logit_scale.bound()
        self.local_logit_scale.bound()


def _own_terms(extra: object, config: ObjectiveConfig) -> dict[str, Term]:
    """Terms of one's own that have a weight, if each is a term, and has a name of its own."""
    if extra is not None and not isinstance(extra, Mapping):
        raise TypeError(f"extra: expected a mapping of names to terms, got {shown(extra)}")
    found: dict[str, Term] = dict(extra or {})
    taken = {*config.terms, "loss", "gate", *dir(nn.ModuleDict)}
    for name, term in found.items():
        if not isinstance(name, str) or not name.isidentifier() or name in taken:
            raise ValueError(f"extra: expected names of their own, got {shown(name)}")
        if not callable(getattr(term, "loss", None)) or not hasattr(term, "gated") or not hasattr(term, "contrasts"):
            raise TypeError(
                f"extra: expected terms with weight, gated, contrasts and loss, got {shown(term)} for {name}"
            )
        check_number(f"extra: weight of {name}", getattr(term, "weight", None), 0)
    return {name: term for name, term in found.items() if term.weight}
