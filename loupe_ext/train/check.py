"""What can be found wrong with a run before its data are made."""

import os
from pathlib import Path

import torch

from loupe_ext._checks import check_kind, shown
from loupe_ext._io import check_path, check_writable
from loupe_ext.extras import require
from loupe_ext.train.config import Config


def check_run(
    config: Config, device: torch.device | str = "cpu", path: str | os.PathLike[str] | None = None
) -> torch.device:
    """The device, if a run of this configuration can start on it and keep itself in the folder `path`.

    Raises:
        TypeError, ValueError: an argument is of the wrong type, or torch has no such device here.
        OSError: `path` cannot be written, or a folder of weights is not there.
        ImportError: a package that this configuration needs is missing.
    """
    check_kind("config", config, Config, "a Config")
    found = check_device_there(device)
    model = config.model
    swin, bert = model.image_encoder == "swin", model.text_encoder == "bert"
    require(*["transformers"] * (swin or bert), *["scipy"] * (config.objective.boxes.weight > 0))
    for name, used in (("image_weights", swin), ("text_weights", bert)):
        weights = getattr(model, name)
        if used and weights and not Path(weights).is_dir():
            raise FileNotFoundError(f"{name}: expected a folder, got {shown(weights)}")
    if path is not None:
        check_folder(path)
    return found


def check_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of a run, if a checkpoint can be kept in it."""
    require("safetensors")
    folder = check_path("path", path)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"path: expected a folder, got {folder}, which is a file")
    check_writable("path", folder / "state.safetensors")
    return folder


def check_device_there(device: torch.device | str) -> torch.device:
    """The device, if torch has it here."""
    try:
        torch.empty(1, device=device).cpu()
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"device: expected one that torch has here, got {shown(str(device))} ({reason})") from error
