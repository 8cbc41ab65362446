"""Training: configuration, loop, checkpoints, and models in folders."""

from loupe_ext.train.build import build
from loupe_ext.train.check import check_run
from loupe_ext.train.config import Config, DataConfig, ModelConfig, OptimConfig
from loupe_ext.train.interrupt import Interrupted
from loupe_ext.train.loop import Trained, fit, train
from loupe_ext.train.metrics import Progress
from loupe_ext.train.parallel import processes
from loupe_ext.train.pretrained import Pretrained, from_pretrained, push_to_hub, save_pretrained

__all__ = [
    "Config",
    "DataConfig",
    "Interrupted",
    "ModelConfig",
    "OptimConfig",
    "Pretrained",
    "Progress",
    "Trained",
    "build",
    "check_run",
    "fit",
    "from_pretrained",
    "processes",
    "push_to_hub",
    "save_pretrained",
    "train",
]
