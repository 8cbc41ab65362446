"""A trained model in a folder: config.json, model.safetensors, vocab.txt and a README, read back in one call."""

import contextlib
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from loupe_ext._checks import check_int, check_kind, shown
from loupe_ext._io import check_path, write
from loupe_ext.data.pairs import Vocabulary
from loupe_ext.extras import needs
from loupe_ext.model.dual import DualEncoder
from loupe_ext.objective import Objective
from loupe_ext.train import checkpoint
from loupe_ext.train.build import build
from loupe_ext.train.config import Config

CONFIG, WEIGHTS, WORDS, CARD = "config.json", "model.safetensors", "vocab.txt", "README.md"
FORMAT = "loupe-model-1"


class Pretrained(NamedTuple):
    """What a folder holds, in evaluation mode."""

    model: DualEncoder
    objective: Objective  # with the temperatures that it learned
    config: Config

    @property
    def vocabulary(self) -> Vocabulary | None:
        """None: the model was built for a number of ids."""
        return self.model.vocabulary


def save_pretrained(folder: str | os.PathLike[str], model: nn.Module, objective: Objective, config: Config) -> None:
    """Write a model, and the temperatures of its objective, to a folder: what `from_pretrained` reads.

    Each file is replaced in one piece.

    Raises:
        TypeError, ValueError: an argument has the wrong type, or the configuration is not the objective's.
        OSError: the folder cannot be written. ImportError: safetensors is missing.
    """
    check_kind("model", model, nn.Module, "a Module")
    check_kind("objective", objective, Objective, "an Objective")
    check_kind("config", config, Config, "a Config")
    if config.objective != objective.config:
        raise ValueError("config: expected that of the objective, got another one")
    save(check_path("folder", folder), _tensors(model, objective), config.flat(), model, None)


def save(folder: Path, tensors: dict[str, Tensor], settings: dict[str, Any], model: Any, step: int | None) -> None:
    vocabulary = getattr(model, "vocabulary", None)
    about = {"format": FORMAT, "class": type(model).__name__, "step": step, "settings": settings}
    if isinstance(vocabulary, Vocabulary):
        write(folder / WORDS, "\n".join(["[PAD]", *vocabulary.words]) + "\n")
    else:  # how many ids there are is all that is known
        (folder / WORDS).unlink(missing_ok=True)
        about["vocabulary_size"] = getattr(model, "vocabulary_size", None)
    write(folder / CARD, _card(about))
    write(folder / CONFIG, json.dumps(about, indent=1) + "\n")
    checkpoint.write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def from_pretrained(folder: str | os.PathLike[str]) -> Pretrained:
    """The library's own model from a folder that `train` or `save_pretrained` wrote. Nothing in it is executed.

    Raises:
        ValueError: its files are not those of such a model, or contradict each other; naming which and how.
        OSError: they cannot be read. ImportError: safetensors is missing.
    """
    folder = check_path("folder", folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"folder: expected a folder with a model, got {folder}")
    with open(folder / CONFIG, "rb") as file:
        text = file.read(2**20)
    try:
        about = json.loads(text)
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            got = about.get("format") if isinstance(about, dict) else about
            raise ValueError(f"expected a model of format {FORMAT}, got {shown(got)}")
        settings = about.get("settings")
        if about.get("class") != DualEncoder.__name__ or not isinstance(settings, dict) or "model.dim" not in settings:
            raise ValueError(f"expected a {DualEncoder.__name__} and its settings, got {shown(about.get('class'))}")
        config = Config().but(settings)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"folder: {error} (in {folder / CONFIG})") from error
    vocabulary: Vocabulary | int
    try:
        size = about.get("vocabulary_size")  # of a model that was built without words
        vocabulary = Vocabulary.read(folder / WORDS) if size is None else check_int("vocabulary_size", size, 1, 2**31)
    except (ValueError, TypeError) as error:
        raise ValueError(f"folder: expected words, a line each ({error}, in {folder / WORDS})") from error
    tensors, _ = checkpoint.read_tensors(folder / WEIGHTS)
    # Before any memory is taken for sizes that the file only claims. An older transformers builds none on "meta".
    with contextlib.suppress(RuntimeError), torch.device("meta"):
        checkpoint.compare(_tensors(*build(config, vocabulary, pretrained=False)), tensors, folder / WEIGHTS)
    model, objective = build(config, vocabulary, pretrained=False)
    checkpoint.compare(_tensors(model, objective), tensors, folder / WEIGHTS)
    model.load_state_dict({name[6:]: x for name, x in tensors.items() if name.startswith("model.")})
    objective.load_state_dict({name[10:]: x for name, x in tensors.items() if name.startswith("objective.")})
    return Pretrained(model.eval(), objective.eval(), config)


def _tensors(model: nn.Module, objective: nn.Module) -> dict[str, Tensor]:
    parts = (("model", model), ("objective", objective))
    return {f"{head}.{name}": x for head, part in parts for name, x in part.state_dict().items()}


def push_to_hub(folder: str | os.PathLike[str], repo: str, **options: Any) -> str:
    """Upload a model's folder to a hub as `repo` ("owner/name"), without the state of its run; gives the address.

    Raises:
        ImportError: huggingface_hub is missing; and what its `HfApi.upload_folder` raises, whose options these are.
    """
    with needs("huggingface_hub"):
        from huggingface_hub import HfApi
    api = HfApi()
    api.create_repo(repo, exist_ok=True)
    files = [CONFIG, WEIGHTS, WORDS, CARD]
    return str(
        api.upload_folder(repo_id=repo, folder_path=check_path("folder", folder), allow_patterns=files, **options)
    )


def _card(about: dict[str, Any]) -> str:
    """What a stranger wants to know of a folder."""
    settings = about["settings"]
    trained = f"{about['step']} of {settings.get('optim.steps')} steps" if about["step"] else "see config.json"
    terms = [n.split(".")[1] for n, v in settings.items() if n.startswith("objective.") and n.endswith(".weight") and v]
    data = settings.get("data.dataset", "not said")
    ours = """
```python
from loupe_ext.train import from_pretrained
model, objective, config = from_pretrained("this folder")
```
"""
    return f"""---
library_name: loupe_ext
tags: [image-text, zero-shot, grounding]
---
# A {about["class"]} trained with loupe_ext

- Data: {data}. Steps: {trained}. Loss terms: {", ".join(terms)}.
- It gives embeddings of images, patches, captions and noun phrases in one space.
{ours if about["class"] == DualEncoder.__name__ else ""}"""
