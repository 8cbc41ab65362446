"""Checkpoints: one safetensors file with the model, the optimiser and the history, replaced in one piece."""

import contextlib
import json
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import shown
from loupe_ext._io import check_path, write
from loupe_ext.data.pairs import Pairs, Vocabulary
from loupe_ext.extras import needs
from loupe_ext.train.config import Config
from loupe_ext.train.task import Task

FORMAT = "loupe-2"
OLDER = ("loupe-1",)  # without `data`: to evaluate, not to go on from


@dataclass
class Checkpoint:
    """What a file holds. `history` maps the name of a loss to its value at each step so far (NaN where it was off)."""

    path: Path
    config: Config
    vocabulary: Vocabulary
    step: int
    history: dict[str, Tensor]
    tensors: dict[str, Tensor]
    data: dict[str, str] | None  # the fingerprint of the training set; None: the file does not say

    def restore(self, task: Task, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the weights, and the optimiser's state, where they were.

        Raises:
            ValueError: the tensors are not those of this task, or not all of them.
        """
        self._compare(task, optimizer)
        task.load_state_dict({n[6:]: t for n, t in self.tensors.items() if n.startswith("model.")})
        if optimizer is None:
            return
        for name, parameter in task.named_parameters():
            for key, like in _moments(parameter).items():
                optimizer.state[parameter][key] = like.copy_(self.tensors[f"optimizer.{name}:{key}"])

    def task(self) -> Task:
        """The trained model. Raises ValueError if the tensors are not those of its configuration."""
        # Before any memory is taken for sizes that the file only claims. An older transformers builds none on "meta".
        with contextlib.suppress(RuntimeError), torch.device("meta"):
            self._compare(Task(self.config, len(self.vocabulary), pretrained=False))
        task = Task(self.config, len(self.vocabulary), pretrained=False)
        self.restore(task)
        task.vocabulary = self.vocabulary
        return task.eval()

    def _compare(self, task: Task, optimizer: torch.optim.Optimizer | None = None) -> None:
        if optimizer is not None and not any(name.startswith("optimizer.") for name in self.tensors):
            raise ValueError(f"path: expected a checkpoint with the optimiser's state, got none in {self.path}")
        want = _state(task, optimizer)
        for name in sorted(want.keys() | {name for name in self.tensors if name.startswith("model.")}):
            expected, got = (
                f"{x.dtype} {list(x.shape)}" if (x := of.get(name)) is not None else "none"
                for of in (want, self.tensors)
            )
            if expected != got:
                raise ValueError(f"path: expected {expected} for the tensor {shown(name)}, got {got} in {self.path}")
            count = self.tensors[name].item() if name.endswith(":step") else 0
            if not (0 <= count <= self.step and count == int(count)):
                raise ValueError(f"path: expected 0 to {self.step} for {shown(name)}, got {count} in {self.path}")


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter before its first step."""
    zeros = (torch.zeros_like(parameter) for _ in range(2))
    return {"step": torch.tensor(0.0, device="cpu"), **dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))}


def _state(task: Task, optimizer: torch.optim.Optimizer | None) -> dict[str, Tensor]:
    """All tensors of a task, and of its optimiser, by their names in a file."""
    tensors = {f"model.{name}": value for name, value in task.state_dict().items()}
    if optimizer is not None:
        for name, parameter in task.named_parameters():
            state = optimizer.state.get(parameter) or _moments(parameter)  # the latter where no gradient came yet
            tensors |= {f"optimizer.{name}:{key}": value for key, value in state.items()}
    return tensors


def save(
    path: str | os.PathLike[str],
    task: Task,
    vocabulary: Vocabulary,
    step: int,
    history: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    seconds: Tensor | None = None,
    data: dict[str, str] | None = None,
) -> None:
    """Write a checkpoint. Whoever reads `path`, at any moment, finds the old file or the new one, never a part.

    `seconds` are those that each step took, [steps]; `data` is the `Pairs.fingerprint` of the training set. Without it,
    or without the optimiser, the file can be evaluated, but training does not go on from it.
    """
    with needs("safetensors"):
        from safetensors.torch import save as to_bytes
    tensors = _state(task, optimizer) | {f"history.{name}": value for name, value in history.items()}
    if seconds is not None:
        tensors["seconds"] = seconds
    metadata = {
        "format": FORMAT,
        "config": task.config.to_yaml(),
        "vocabulary": json.dumps(vocabulary.words),
        "step": str(step),
    }
    if data is not None:
        metadata["data"] = json.dumps(data)
    write(path, to_bytes({name: value.detach().contiguous() for name, value in tensors.items()}, metadata))


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint. Nothing in the file is executed. Those of format loupe-1 can be evaluated, not gone on from.

    Raises:
        ValueError: it is no checkpoint, or one whose parts are missing or contradict each other.
        OSError: it cannot be read.
        ImportError: safetensors or pyyaml is missing.
    """
    path = check_path("path", path)
    with needs("safetensors"):
        from safetensors import SafetensorError, safe_open
    if path.exists() and not path.is_file():
        raise OSError(f"path: expected a checkpoint file, got {path}, which is a folder or no regular file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"path: expected a safetensors file, got {path} ({shown(str(error))})") from error
    except OSError as error:
        raise type(error)(f"path: expected a checkpoint file, got {path} ({error.strerror or error})") from error
    if metadata.get("format") not in (FORMAT, *OLDER):
        got = shown(metadata.get("format"))
        raise ValueError(f"path: expected a checkpoint of format {FORMAT}, got {got} in {path}")
    try:
        config = Config.from_yaml(_entry(metadata, "config"))
        words = _json(metadata, "vocabulary")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise ValueError(f"vocabulary: expected a list of words, got {shown(words)}")
        vocabulary = Vocabulary(words)
        step = _entry(metadata, "step")
        if not re.fullmatch("[0-9]{1,10}", step) or int(step) > config.steps:
            raise ValueError(f"step: expected 0 to {config.steps}, got {shown(step)}")
        data = _json(metadata, "data") if "data" in metadata else None
        if "data" in metadata and not _is_fingerprint(data):
            raise ValueError(f"data: expected a line for each field of the training set, got {shown(data)}")
        history = {name[8:]: value for name, value in tensors.items() if name.startswith("history.")}
        for name, value in {**history, "seconds": tensors.get("seconds", torch.empty(config.steps))}.items():
            if value.shape != (config.steps,) or value.dtype != torch.float32:
                raise ValueError(
                    f"{shown(name)}: expected a number a step, torch.float32 [{config.steps}], "
                    f"got {value.dtype} {list(value.shape)}"
                )
    except (ValueError, TypeError) as error:
        raise ValueError(f"path: expected a checkpoint, got {path} ({error})") from error
    return Checkpoint(path, config, vocabulary, int(step), history, tensors, data)


def _is_fingerprint(data: object) -> bool:
    names = {field.name for field in fields(Pairs)}
    return isinstance(data, dict) and data.keys() == names and all(isinstance(line, str) for line in data.values())


def _entry(metadata: dict[str, str], name: str) -> str:
    if name not in metadata:
        raise ValueError(f"{name}: expected it in the file's metadata, got none")
    return metadata[name]


def _json(metadata: dict[str, str], name: str) -> Any:
    text = _entry(metadata, name)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: expected JSON, got {shown(text)}") from error
