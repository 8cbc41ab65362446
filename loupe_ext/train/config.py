"""What a run is: data, model, objective and optimisation, with presets and YAML."""

import os
import re
from dataclasses import dataclass
from importlib.resources import files

from loupe_ext._checks import shown
from loupe_ext._io import write
from loupe_ext._settings import Settings, setting
from loupe_ext.model.pretrained import swin_unit
from loupe_ext.objective import ObjectiveConfig
from loupe_ext.train.yaml import LONGEST, read_yaml, write_yaml

MANY, WIDE, DEEP = 2**31 - 1, 2**16, 1000
PRESETS = ("tiny", "small", "paper")


@dataclass(frozen=True)
class DataConfig(Settings):
    """An embedded data set, and how many pairs of it are the training set."""

    dataset: str = setting("scenes")
    train_size: int = setting(20_000, 1, MANY)


@dataclass(frozen=True)
class ModelConfig(Settings):
    """A `DualEncoder`.

    width: channels of both small encoders. blocks, context_blocks: of the image encoder, that see near and far;
        box_blocks: of the region head. dim: of the common space.
    image_encoder: "conv", or "swin": the numbers of Swin-L, unless changed; its tokens stand for 32 pixels.
    text_encoder: "phrase", each noun phrase alone; or "bert", the whole caption: BERT-small, unless changed.
    swin_width: channels of the first stage; swin_depths: blocks of each; swin_side: pixels to which images are brought.
    image_weights, text_weights: folders with pretrained weights of Swin and BERT; "": random ones.
    """

    width: int = setting(64, 1, WIDE, unit=4)  # the heads of the small text encoder
    dim: int = setting(64, 1, WIDE)
    blocks: int = setting(1, 0, DEEP)
    context_blocks: int = setting(1, 0, DEEP)
    box_blocks: int = setting(2, 0, DEEP)
    image_encoder: str = setting("conv", choices=("conv", "swin"))
    text_encoder: str = setting("phrase", choices=("phrase", "bert"))
    swin_width: int = setting(192, 1, WIDE, unit=32)  # a head each
    swin_depths: str = setting("2-2-18-2")
    swin_side: int = setting(224, 1, WIDE)
    bert_width: int = setting(512, 1, WIDE, unit=64)  # a head each
    bert_layers: int = setting(4, 1, DEEP)
    image_weights: str = setting("")
    text_weights: str = setting("")

    def __post_init__(self) -> None:
        super().__post_init__()
        unit = swin_unit(len(self.swin_stages))
        if self.swin_side % unit:
            raise ValueError(f"swin_side: expected a multiple of {unit}, got {self.swin_side}")

    @property
    def swin_stages(self) -> tuple[int, ...]:
        """The blocks of each stage of Swin."""
        if not re.fullmatch(r"[1-9][0-9]{0,2}(-[1-9][0-9]{0,2}){0,5}", self.swin_depths):
            raise ValueError(
                f"swin_depths: expected the blocks of each stage, as 2-2-18-2, got {shown(self.swin_depths)}"
            )
        return tuple(int(blocks) for blocks in self.swin_depths.split("-"))


@dataclass(frozen=True)
class OptimConfig(Settings):
    """AdamW with a linear warm-up and a cosine to zero.

    steps: of the optimiser. batch_size: pairs per step that compete, over all processes; and where gradients of
        `accumulate` batches are added up before a step, per batch.
    warmup: steps; clip: of the gradient's norm, of the model with the objective's temperatures, and of each learner.
    precision: of the encoders, "float32", "bfloat16", or "auto": bfloat16 where the device has instructions for it.
    compile: whether `torch.compile` compiles the encoders.
    ema: decay of the moving average of the weights, which is kept beside them; 0: none.
    """

    steps: int = setting(600, 1, MANY)
    batch_size: int = setting(64, 1, MANY)
    accumulate: int = setting(1, 1, MANY)
    lr: float = setting(3e-3, 0)
    beta1: float = setting(0.9, 0, 1, below=True)
    beta2: float = setting(0.98, 0, 1, below=True)
    weight_decay: float = setting(0.01, 0)
    warmup: int = setting(100, 0, MANY)
    clip: float = setting(1.0, 0, above=True)
    precision: str = setting("auto", choices=("auto", "float32", "bfloat16"))
    compile: bool = setting(False)
    ema: float = setting(0.0, 0, 1, below=True)


@dataclass(frozen=True)
class Config(Settings):
    """A training run of the library's own model. The defaults are the preset `tiny`.

    A field of a section can be named without it: `Config().but(lr=1e-3, fsa=0)`, `but({"fsa.temperature": 0.1})`.
    seed: of the initialisation, the batches and what is sampled; the data are the same for every seed.
    """

    name: str = setting("tiny")
    seed: int = setting(0, 0, 2**32 - 1)
    data: DataConfig = setting(DataConfig())
    model: ModelConfig = setting(ModelConfig())
    objective: ObjectiveConfig = setting(ObjectiveConfig())
    optim: OptimConfig = setting(OptimConfig())

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data.train_size < self.optim.batch_size:
            least = self.optim.batch_size
            raise ValueError(f"train_size: expected at least a batch ({least}), got {self.data.train_size}")

    @classmethod
    def preset(cls, name: str) -> "Config":
        """The configuration of a file in loupe_ext/train/presets: "tiny", "small" or "paper".

        Raises:
            ValueError: there is no such file. ImportError: pyyaml is missing.
        """
        if not isinstance(name, str) or name not in PRESETS:
            raise ValueError(f"name: expected one of {', '.join(PRESETS)}, got {shown(name)}")
        return cls.from_yaml((files("loupe_ext.train") / "presets" / f"{name}.yaml").read_text(encoding="utf-8"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the configuration as YAML, in one piece."""
        write(path, self.to_yaml())

    def to_yaml(self) -> str:
        """`name: value` lines, those of a section behind its name. Raises ImportError without pyyaml."""
        return write_yaml(self.to_dict())

    @classmethod
    def from_yaml(cls, text: str) -> "Config":
        """The configuration of such a text; what it leaves out is as in `tiny`.

        Numbers may be written in any usual way: 3e-3, 0.003, 20_000. A term's weight may stand for it: `fsa: 0`.

        Raises:
            ValueError, TypeError: it is no such text, or names an unknown field or a bad value.
            ImportError: pyyaml is missing.
        """
        return cls().but(read_yaml("config", text))

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
