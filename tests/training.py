"""A small training run, which the tests of training share."""

import functools
import typing

import torch

from loupe_ext import data
from loupe_ext.data import Grounded
from loupe_ext.train import Config, Progress, Trained, fit

# Every kind of loss is on: a resumed run has to find all of their state again.
SMALL = Config().but(
    {"late_interaction": 0.5, "boxes.images": 4},
    width=16,
    dim=16,
    batch_size=8,
    train_size=40,
    steps=7,
    warmup=2,
    precision="float32",
)
# So good an error is soon found.
UNSIL = SMALL.but({"fsa.source": "unsil", "fsa.threshold": 20.0, "fsa.coalitions": 4})


@functools.cache
def scenes() -> Grounded:
    return data.load("scenes", "train", 40)


def trained(config: Config = SMALL, **options: typing.Any) -> Trained:
    return fit(scenes().pairs, config, **{"log_every": 1, **options})


@functools.cache
def uninterrupted() -> Trained:
    return trained()


TIMES = ("seconds", "seconds_waiting")


def assert_identical(one: Trained, other: Trained) -> None:
    for part in ("model", "objective"):
        for name, value in getattr(one, part).state_dict().items():
            assert torch.equal(value, getattr(other, part).state_dict()[name]), name
    assert one.history.keys() == other.history.keys()
    for name, losses in one.history.items():
        assert not losses.isnan().any()
        assert name in TIMES or torch.equal(losses, other.history[name]), name


def interrupt_at(step: int) -> typing.Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report
