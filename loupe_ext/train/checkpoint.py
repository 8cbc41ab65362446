"""The state of a run: one safetensors file with everything it goes on from, replaced in one piece."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from loupe_ext._checks import shown
from loupe_ext._io import check_path, write
from loupe_ext.extras import needs

FORMAT = "loupe-3"
STATE = "state.safetensors"  # of a run's folder


@dataclass
class State:
    """What a file holds."""

    path: Path
    step: int
    settings: dict[str, Any]  # of the run, by dotted name
    data: dict[str, str] | None  # the fingerprint of the training data; None: they have none
    position: dict[str, Any] | None  # where the next batch is; None: the batches do not say
    tensors: dict[str, Tensor]

    def restore(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """Put the weights and the optimiser's state where they were.

        Raises:
            ValueError: the tensors are not those of this module, or not all of them.
        """
        want = tensors_of(module, optimizer)
        compare(want, self.tensors, self.path)
        for name, tensor in self.tensors.items():
            count = tensor.item() if name.endswith(":step") else 0
            if not (0 <= count <= self.step and count == int(count)):
                raise ValueError(f"path: expected 0 to {self.step} for {shown(name)}, got {count} in {self.path}")
        module.load_state_dict({name: self.tensors[name] for name in module.state_dict()})
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                for key, like in _moments(parameter).items():
                    optimizer.state[parameter][key] = like.copy_(self.tensors[f"optimizer.{name}:{key}"])


def compare(want: dict[str, Tensor], got: dict[str, Tensor], path: Path) -> None:
    """Raise ValueError, naming the first tensor that differs in shape or dtype, or that only one side has."""
    for name in sorted(want.keys() | got.keys()):
        expected, found = (
            f"{x.dtype} {list(x.shape)}" if (x := side.get(name)) is not None else "none" for side in (want, got)
        )
        if expected != found:
            raise ValueError(f"path: expected {expected} for the tensor {shown(name)}, got {found} in {path}")


def _moments(parameter: Tensor) -> dict[str, Tensor]:
    """AdamW's state of a parameter before its first step."""
    zeros = (torch.zeros_like(parameter) for _ in range(2))
    return {"step": torch.tensor(0.0, device="cpu"), **dict(zip(("exp_avg", "exp_avg_sq"), zeros, strict=True))}


def tensors_of(module: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """All tensors of a module and of its optimiser, by their names in a file."""
    tensors = dict(module.state_dict())
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            state = optimizer.state.get(parameter) or _moments(parameter)  # the latter where no gradient came yet
            tensors |= {f"optimizer.{name}:{key}": value for key, value in state.items()}
    return tensors


def save(
    path: str | os.PathLike[str],
    tensors: dict[str, Tensor],
    step: int,
    settings: dict[str, Any],
    data: dict[str, str] | None,
    position: dict[str, Any] | None,
) -> None:
    """Write the state. Whoever reads `path`, at any moment, finds the old file or the new one, never a part."""
    about = {"step": step, "settings": settings, "data": data, "position": position}
    write_tensors(path, tensors, {"format": FORMAT, **{name: json.dumps(value) for name, value in about.items()}})


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file, replaced in one piece."""
    with needs("safetensors"):
        from safetensors.torch import save as to_bytes
    write(path, to_bytes({name: value.detach().contiguous() for name, value in tensors.items()}, metadata))


def load(path: str | os.PathLike[str]) -> State:
    """Read a state file, or that of a run's folder. Nothing in it is executed.

    Raises:
        ValueError: it is no such file, or one whose parts are missing or contradict each other.
        OSError: it cannot be read. ImportError: safetensors is missing.
    """
    path = check_path("path", path)
    if path.is_dir():
        path = path / STATE
    tensors, metadata = read_tensors(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(
            f"path: expected the state of a run, of format {FORMAT}, got {shown(metadata.get('format'))} in {path}"
        )
    try:
        step, settings = _entry(metadata, "step"), _json(metadata, "settings")
        data, position = _json(metadata, "data"), _json(metadata, "position")
        for name, value in (("settings", settings), ("data", data), ("position", position)):
            if not isinstance(value, dict) and (value is not None or name == "settings"):
                raise ValueError(f"{name}: expected a mapping, got {shown(value)}")
        steps = settings.get("optim.steps")
        if not isinstance(steps, int) or not re.fullmatch("[0-9]{1,10}", step) or int(step) > steps:
            raise ValueError(f"step: expected 0 to {shown(steps)}, got {shown(step)}")
        if data is not None and not all(isinstance(line, str) for line in data.values()):
            raise ValueError(f"data: expected a line per property of the training data, got {shown(data)}")
    except (ValueError, TypeError) as error:
        raise ValueError(f"path: expected the state of a run, got {path} ({error})") from error
    return State(path, int(step), settings, data, position, tensors)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file. Raises ValueError, OSError, ImportError as `load`."""
    with needs("safetensors"):
        from safetensors import SafetensorError, safe_open
    if path.exists() and not path.is_file():
        raise OSError(f"path: expected a file, got {path}, which is a folder or no regular file")
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"path: expected a safetensors file, got {path} ({shown(str(error))})") from error
    except OSError as error:
        raise type(error)(f"path: expected a safetensors file, got {path} ({error.strerror or error})") from error


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
