"""A small training run, which the tests of training share."""

import functools
import typing

import torch

from loupe_ext import data
from loupe_ext.data import Grounded
from loupe_ext.train import Config, Progress, Trained, train

# Every loss is on: a resumed run has to find all of their state again.
SMALL = Config(
    width=16, dim=16, batch=8, train_size=40, steps=7, warmup=2, box_images=4, late_interaction=0.5, precision="float32"
)

UNSIL = SMALL.but(fsa_source="unsil", unsil_threshold=20.0, fsa_coalitions=4)  # so good an error is soon found


@functools.cache
def scenes() -> Grounded:
    return data.load("scenes", "train", 40)


def trained(config: Config = SMALL, **options: typing.Any) -> Trained:
    return train(scenes().pairs, config, **options)


@functools.cache
def uninterrupted() -> Trained:
    return trained()


def assert_identical(one: Trained, other: Trained) -> None:
    for name, value in one.task.state_dict().items():
        assert torch.equal(value, other.task.state_dict()[name]), name
    assert one.history.keys() == other.history.keys()
    for name, losses in one.history.items():
        assert not losses.isnan().any()
        assert torch.equal(losses, other.history[name]), name


def interrupt_at(step: int) -> typing.Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if progress.step == step:
            raise KeyboardInterrupt

    return report
