"""Training: configuration, objective, loop and checkpoints."""

from loupe_ext.train.check import check_run
from loupe_ext.train.config import Config
from loupe_ext.train.interrupt import Interrupted
from loupe_ext.train.loop import Progress, Trained, train
from loupe_ext.train.task import Task

__all__ = ["Config", "Interrupted", "Progress", "Task", "Trained", "check_run", "train"]
