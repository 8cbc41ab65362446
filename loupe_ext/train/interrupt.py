"""SIGINT and SIGTERM in a run: the step that is being taken is finished and kept."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupted(KeyboardInterrupt):
    """A signal ended the run after `step` of `steps`. `path` is the checkpoint that holds all of it, or None."""

    def __init__(self, signal: int, step: int, steps: int, path: str | os.PathLike[str] | None) -> None:
        super().__init__(signal, step, steps, path)
        self.signal, self.step, self.steps, self.path = signal, step, steps, path

    def __str__(self) -> str:
        kept = (
            "no path was given: nothing is kept"
            if self.path is None
            else f"{os.fspath(self.path)} holds everything up to it, and the same command goes on from there"
        )
        return f"interrupted at step {self.step} of {self.steps}; {kept}"


@contextmanager
def signals_held() -> Iterator[list[int]]:
    """A list, which the first SIGINT or SIGTERM enters instead of acting; a second one acts as it did before.

    In another thread than the main one signals are left alone, and so is one that is ignored. One that nobody acted on
    by the end of the block is raised again then.
    """
    held: list[int] = []
    before: dict[int, Any] = {}

    def restore() -> None:
        while before:
            signal.signal(*before.popitem())

    def hold(number: int, frame: FrameType | None) -> None:
        held.append(number)
        restore()

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if handler not in (signal.SIG_IGN, None):  # None: one that Python did not install and cannot restore
                    before[number] = handler
                    signal.signal(number, hold)
        yield held
    finally:
        restore()
    if held:
        signal.raise_signal(held[0])
