"""What a run is: data, model, objective and optimisation, with presets and YAML."""

import difflib
import math
import os
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from loupe_ext._checks import check_int, check_number, shown
from loupe_ext._io import write
from loupe_ext.model.dual import GLOBAL_CAP
from loupe_ext.model.pretrained import swin_unit
from loupe_ext.ops.region import GAMES
from loupe_ext.train.flat_yaml import LONGEST, read_flat, write_flat

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
LOSSES = ("cmc", "late_interaction", "sparse_grouping", "region_phrase", "fsa", "tsa", "boxes")
MANY, WIDE, DEEP = 2**31 - 1, 2**16, 1000

# The least and the most of each number. The floats in ABOVE lie above their least, those in BELOW below their most.
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),
    "warmup": (0, MANY),
    "blocks": (0, DEEP),
    "bert_layers": (1, DEEP),
    "tsa_samples": (2, MANY),
    "scale": (0, GLOBAL_CAP),
    **dict.fromkeys(("width", "dim", "swin_width", "swin_side", "bert_width"), (1, WIDE)),
    **dict.fromkeys(("train_size", "steps", "batch", "window", "window_stride"), (1, MANY)),
    **dict.fromkeys(("fsa_coalitions", "unsil_check", "box_images", "proposals"), (1, MANY)),
    **dict.fromkeys((*LOSSES, "lr", "weight_decay", "clip", "box_colour"), (0, math.inf)),
    **dict.fromkeys(("fsa_temperature", "unsil_threshold", "scale_cap"), (0, math.inf)),
    **dict.fromkeys(("box_threshold", "overlap", "beta1", "beta2"), (0, 1)),
}
ABOVE = ("clip", "fsa_temperature", "unsil_threshold", "scale", "scale_cap")
BELOW = ("box_threshold", "beta1", "beta2")
MULTIPLES = {"width": 4, "swin_width": 32, "bert_width": 64}  # the text encoder's heads; a head each of Swin and BERT


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
            value = _checked(field.name, type(field.default), getattr(self, field.name))
            object.__setattr__(self, field.name, value)
        for name, unit in (*MULTIPLES.items(), ("swin_side", swin_unit(len(self.swin_stages)))):
            if getattr(self, name) % unit:
                raise ValueError(f"{name}: expected a multiple of {unit}, got {getattr(self, name)}")
        if not any(getattr(self, name) for name in LOSSES):
            raise ValueError(f"{', '.join(LOSSES)}: expected one above 0")
        if self.scale > self.scale_cap:
            raise ValueError(f"scale: expected at most scale_cap ({self.scale_cap}), got {self.scale}")
        if self.train_size < self.batch:
            raise ValueError(f"train_size: expected at least a batch ({self.batch}), got {self.train_size}")

    @property
    def swin_stages(self) -> tuple[int, ...]:
        """The blocks of each stage of Swin."""
        if not re.fullmatch(r"[1-9][0-9]{0,2}(-[1-9][0-9]{0,2}){0,5}", self.swin_depths):
            raise ValueError(
                f"swin_depths: expected the blocks of each stage, as 2-2-18-2, got {shown(self.swin_depths)}"
            )
        return tuple(int(blocks) for blocks in self.swin_depths.split("-"))

    @classmethod
    def preset(cls, name: str) -> "Config":
        """The configuration of a name: "tiny", "small" or "paper"; see `PRESETS`."""
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"preset: expected one of {', '.join(PRESETS)}, got {shown(name)}")
        return cls(name=name, **PRESETS[name])

    def but(self, **changes: Any) -> "Config":
        """The same with other values of some fields. Raises as `Config` does, and ValueError for an unknown field."""
        _check_names(changes)
        return replace(self, **changes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration as YAML, in one piece."""
        write(path, self.to_yaml())

    def to_yaml(self) -> str:
        """`name: value` lines. Raises ImportError without pyyaml."""
        return write_flat(asdict(self))

    @classmethod
    def from_yaml(cls, text: str) -> "Config":
        """The configuration of `name: value` lines; what they leave out is as in `tiny`.

        Numbers may be written in any usual way: 3e-3, 0.003, 20_000.

        Raises:
            ValueError, TypeError: it is no such text, or names an unknown field or a bad value.
            ImportError: pyyaml is missing.
        """
        values = read_flat("config", text)
        _check_names(values)
        return cls(**values)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Config":
        """Read a file of `from_yaml`'s text. Raises as it does, naming the file, and OSError."""
        with open(path, "rb") as file:
            content = file.read(LONGEST + 1)
        try:
            return cls.from_yaml(content.decode())
        except UnicodeDecodeError as error:
            raise ValueError(f"path: expected text in UTF-8, got other bytes in {os.fspath(path)}") from error
        except (ValueError, TypeError) as error:
            raise type(error)(f"{error} (in {os.fspath(path)})") from error


def _checked(name: str, kind: type, value: object) -> Any:
    """The value, if it is of its field's type, and in its range."""
    if name in RANGES:
        least, most = RANGES[name]
        try:
            if kind is int:
                return check_int(name, value, int(least), int(most))
            number = check_number(name, value, least, most, above=name in ABOVE)
        except TypeError:
            raise TypeError(f"{name}: expected {kind.__name__}, got {shown(value)}") from None
        if name in BELOW and number == most:
            raise ValueError(f"{name}: expected a number below {most}, got {number}")
        return number
    if not isinstance(value, kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {shown(value)}")
    if name in CHOICES and value not in CHOICES[name]:
        raise ValueError(f"{name}: expected one of {CHOICES[name]}, got {shown(value)}")
    if isinstance(value, str) and (len(value) > 4096 or not value.isprintable()):
        raise ValueError(f"{name}: expected at most 4096 printable characters, got {shown(value)}")
    return value


def _check_names(names: Iterable[str]) -> None:
    """Raise for names that no field has, with the nearest that one has."""
    known = [field.name for field in fields(Config)]
    unknown = [name for name in names if name not in known]
    if unknown:
        near = [(shown(name)[1:-1], difflib.get_close_matches(name[:100], known, 1)) for name in unknown[:5]]
        got = ", ".join(name + (f" (nearest: {names[0]})" if names else "") for name, names in near)
        more = f" and {len(unknown) - 5} more" if len(unknown) > 5 else ""
        raise ValueError(f"config: expected names of Config's fields, got {got}{more}")


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
