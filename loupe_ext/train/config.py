"""What a run is: data, model, objective and optimisation, with presets and YAML."""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from loupe_ext._io import write
from loupe_ext.extras import needs
from loupe_ext.model.pretrained import swin_unit
from loupe_ext.ops.region import GAMES

CHOICES: dict[str, tuple[str, ...]] = {
    "image_encoder": ("conv", "swin"),
    "text_encoder": ("phrase", "bert"),
    "fsa_source": ("exact", "sampled", "unsil"),
    "unsil_targets": ("sampled", "exact"),
    "tsa_game": GAMES,
    "tsa_source": ("computed", "unsil"),
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

    image_encoder: str = "conv"  # or "swin": the numbers of Swin-L, unless changed; its tokens stand for 32 pixels
    text_encoder: str = "phrase"  # each noun phrase alone; or "bert", the whole caption: BERT-small, unless changed
    swin_width: int = 192  # channels of the first stage
    swin_depths: str = "2-2-18-2"  # blocks of each stage
    swin_side: int = 224  # pixels to which images are brought
    bert_width: int = 512
    bert_layers: int = 4
    image_weights: str = ""  # folders with pretrained weights of Swin and BERT; "": random ones
    text_weights: str = ""

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
    unsil_targets: str = "sampled"  # what FSA's learner learns from: "sampled", as LOUPE has it, or "exact"
    unsil_threshold: float = 0.3  # the error, in units of the interactions' root mean square, that is small enough
    unsil_check: int = 8  # of the images that could be predicted, one in so many is computed, to check
    negatives: bool = True  # whether the phrases of other captions compete in FSA
    tsa_game: str = "pooled-cosine"  # or "late-interaction"
    tsa_samples: int = 16  # walks an image, of the pooled cosine; the late interaction needs none
    tsa_source: str = "computed"  # or "unsil", a learner of TSA's own
    tsa_literal: bool = False  # label confidences with I(R), as the paper does, instead of -I(R)/|R|
    regions: str = "windows"  # of the region losses; or "proposals", whose boxes then learn from these losses
    box_images: int = 32  # of a batch, that get pseudo boxes
    box_threshold: float = 0.3  # of the map that makes a pseudo box
    box_colour: float = 1.0  # weight of the image's colours in that map, beside the heat
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
        for name, unit in (
            ("swin_width", 32),
            ("swin_side", swin_unit(len(self.swin_stages))),
            ("bert_width", 64),
            ("bert_layers", 1),
        ):
            if getattr(self, name) < 1 or getattr(self, name) % unit:
                raise ValueError(f"{name}: expected a multiple of {unit}, got {getattr(self, name)}")

    @property
    def swin_stages(self) -> tuple[int, ...]:
        """The blocks of each stage of Swin."""
        if not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)*", self.swin_depths):
            raise ValueError(f"swin_depths: expected the blocks of each stage, as 2-2-18-2, got {self.swin_depths!r}")
        return tuple(int(blocks) for blocks in self.swin_depths.split("-"))

    @classmethod
    def preset(cls, name: str) -> "Config":
        """The configuration of a name: "tiny", "small" or "paper"; see `PRESETS`."""
        if name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {name!r}")
        return cls(name=name, **PRESETS[name])

    def but(self, **changes: Any) -> "Config":
        return replace(self, **changes)

    def save(self, path: Path) -> None:
        write(path, self.to_yaml())

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


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {},  # the demo's: minutes on a CPU
    "small": {"width": 128, "dim": 128, "batch": 128, "steps": 8000, "train_size": 60_000, "warmup": 300},
    # LOUPE's own: Swin-L of 49 tokens, BERT-small, L = L_CMC + L_TSA + L_FSA, batches of 512, 20 epochs, Adam with
    # weight decay. Its 240 million pairs make 9,375,000 steps; here they are those of 20,480. `dim` is a guess.
    "paper": {
        "image_encoder": "swin",
        "text_encoder": "bert",
        "dim": 512,
        "cmc": 1.0,
        "tsa": 1.0,
        "tsa_literal": True,
        "tsa_source": "unsil",
        "fsa": 1.0,
        "fsa_source": "unsil",
        "region_phrase": 0.0,
        "boxes": 0.0,
        "regions": "proposals",
        "negatives": False,
        "batch": 512,
        "train_size": 20_480,
        "steps": 800,
        "lr": 2e-4,
        "beta2": 0.999,
    },
}
