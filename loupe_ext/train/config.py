"""What a run is: data, model, objective and optimisation, with presets and YAML."""

import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from loupe_ext.extras import needs
from loupe_ext.ops.region import GAMES

CHOICES = {
    "fsa_source": ("exact", "sampled", "unsil"),
    "unsil_targets": ("sampled", "exact"),
    "tsa_game": GAMES,
    "regions": ("windows", "proposals"),
    "precision": ("auto", "float32", "bfloat16"),
}


@dataclass(frozen=True)
class Config:
    """A training run. The defaults are the preset `tiny`."""

    name: str = "tiny"
    seed: int = 0  # initialisation and batches; the data are the same for every seed

    data: str = "scenes"
    train_size: int = 20_000

    width: int = 64  # channels of both encoders
    dim: int = 64  # of the common space
    blocks: int = 1

    # Weights of the losses; 0 leaves one out.
    cmc: float = 1.0
    late_interaction: float = 0.0
    sparse_grouping: float = 0.0
    region_phrase: float = 1.0
    fsa: float = 1.0
    tsa: float = 0.0
    boxes: float = 2.0

    window: int = 3  # side of the windows, in patches
    window_stride: int = 2
    fsa_temperature: float = 0.2
    fsa_source: str = "exact"  # of FSA's interactions: "exact", "sampled", or "unsil", LOUPE's learner
    fsa_coalitions: int = 64  # of an image, where they are sampled
    unsil_targets: str = "sampled"  # what the learner learns from: "sampled", as LOUPE has it, or "exact"
    unsil_threshold: float = 0.3  # the error, in units of the interactions' root mean square, that is small enough
    unsil_check: int = 8  # of the images that could be predicted, one in so many is computed, to check
    negatives: bool = True  # whether the phrases of other captions compete in FSA
    tsa_game: str = "pooled-cosine"  # or "late-interaction"
    tsa_samples: int = 32  # walks an image, of the pooled cosine; the late interaction needs none
    tsa_literal: bool = False  # label confidences with I(R), as the paper does, instead of -I(R)/|R|
    regions: str = "windows"  # of the region losses; or "proposals", whose boxes then learn from these losses
    box_images: int = 32  # of a batch, that get pseudo boxes
    box_threshold: float = 0.3  # of the heat that makes a pseudo box
    scale: float = 10.0  # inverse temperatures start here
    scale_cap: float = 60.0
    learn_scale: bool = True  # False: they stay where they start

    proposals: int = 12  # M, of an image
    overlap: float = 0.5  # IoU above which the less confident of two proposals goes

    steps: int = 600
    batch: int = 64
    lr: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.98
    weight_decay: float = 0.01
    warmup: int = 100
    clip: float = 1.0
    precision: str = "auto"  # "float32", "bfloat16", or bfloat16 where the CPU has instructions for it

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"{field.name}: expected {kind.__name__}, got {value!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}: expected one of {choices}, got {getattr(self, name)!r}")
        if not 0 < self.unsil_threshold < math.inf:
            raise ValueError(f"unsil_threshold: expected a positive number, got {self.unsil_threshold}")
        counts = ("fsa_coalitions", "unsil_check")
        for name in ("train_size", "width", "dim", "proposals", "batch", "steps", "box_images", *counts):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.width % 4:
            raise ValueError(f"width: expected a multiple of the text encoder's 4 heads, got {self.width}")
        weights = ("cmc", "late_interaction", "sparse_grouping", "region_phrase", "fsa", "tsa", "boxes")
        for name in weights:
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name}: expected a weight, 0 or more, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in weights):
            raise ValueError(f"{', '.join(weights)}: expected one above 0")
        if not 0 < self.scale <= self.scale_cap:
            raise ValueError(f"scale: expected above 0, at most scale_cap ({self.scale_cap}), got {self.scale}")
        if self.train_size < self.batch:
            raise ValueError(f"train_size: expected at least a batch ({self.batch}), got {self.train_size}")

    def but(self, **changes: Any) -> "Config":
        return replace(self, **changes)

    def save(self, path: Path) -> None:
        path.write_text(self.to_yaml())

    def to_yaml(self) -> str:
        with needs("pyyaml"):
            import yaml
        return yaml.safe_dump(asdict(self), sort_keys=False)

    @classmethod
    def from_yaml(cls, text: str) -> "Config":
        with needs("pyyaml"):
            import yaml
        values = yaml.safe_load(text) or {}
        if not isinstance(values, dict):
            raise ValueError(f"config: expected a mapping of names to values, got {type(values).__name__}")
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"config: expected names of Config's fields, got {', '.join(map(str, unknown))}")
        return cls(**values)

    @classmethod
    def load(cls, path: Path) -> "Config":
        return cls.from_yaml(path.read_text())
