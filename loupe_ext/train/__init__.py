"""Training: configuration, objective, loop and checkpoints."""

from loupe_ext.train.config import Config
from loupe_ext.train.loop import Progress, Trained, train
from loupe_ext.train.task import Task

__all__ = ["Config", "Progress", "Task", "Trained", "train"]
