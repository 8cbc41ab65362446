"""Checkpoints: one safetensors file with the model, the optimiser and the history, replaced in one piece."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loupe_ext._io import write
from loupe_ext.data.pairs import Vocabulary
from loupe_ext.extras import needs
from loupe_ext.train.config import Config
from loupe_ext.train.task import Task

FORMAT = "loupe-1"


@dataclass
class Checkpoint:
    """What a file holds. `history` maps the name of a loss to its value at each step so far (NaN where it was off)."""

    config: Config
    vocabulary: Vocabulary
    step: int
    history: dict[str, Tensor]
    tensors: dict[str, Tensor]

    def restore(self, task: Task, optimizer: torch.optim.Optimizer | None = None) -> None:
        """Put the weights, and the optimiser's state, where they were."""
        task.load_state_dict({n[6:]: t for n, t in self.tensors.items() if n.startswith("model.")})
        if optimizer is None:
            return
        for name, parameter in task.named_parameters():
            state = optimizer.state[parameter]
            for key, value in self.tensors.items():
                if key.startswith(f"optimizer.{name}:"):
                    like = torch.empty_like(parameter) if value.dim() else torch.empty_like(value)
                    state[key.rpartition(":")[2]] = like.copy_(value)

    def task(self) -> Task:
        """The trained model."""
        task = Task(self.config, len(self.vocabulary), pretrained=False)
        self.restore(task)
        task.vocabulary = self.vocabulary
        return task.eval()


def save(
    path: Path,
    task: Task,
    vocabulary: Vocabulary,
    step: int,
    history: dict[str, Tensor],
    optimizer: torch.optim.Optimizer | None = None,
    seconds: Tensor | None = None,
) -> None:
    """Write a checkpoint. Whoever reads `path`, at any moment, finds the old file or the new one, never a part.

    `seconds` are those that each step took, [steps].
    """
    with needs("safetensors"):
        from safetensors.torch import save as to_bytes
    tensors = {f"model.{name}": value for name, value in task.state_dict().items()}
    tensors |= {f"history.{name}": value for name, value in history.items()}
    if seconds is not None:
        tensors["seconds"] = seconds
    if optimizer is not None:
        for name, parameter in task.named_parameters():
            tensors |= {f"optimizer.{name}:{key}": value for key, value in optimizer.state[parameter].items()}
    metadata = {
        "format": FORMAT,
        "config": task.config.to_yaml(),
        "vocabulary": json.dumps(vocabulary.words),
        "step": str(step),
    }
    write(path, to_bytes({name: value.detach().contiguous() for name, value in tensors.items()}, metadata))


def load(path: Path) -> Checkpoint:
    """Read a checkpoint. Nothing in the file is executed."""
    with needs("safetensors"):
        from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"path: expected a safetensors file, got {path} ({error})") from error
    if metadata.get("format") != FORMAT:
        raise ValueError(f"path: expected a checkpoint of format {FORMAT}, got {metadata.get('format')} in {path}")
    return Checkpoint(
        Config.from_yaml(metadata["config"]),
        Vocabulary(json.loads(metadata["vocabulary"])),
        int(metadata["step"]),
        {name[8:]: value for name, value in tensors.items() if name.startswith("history.")},
        tensors,
    )
