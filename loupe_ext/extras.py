"""Optional dependencies: imported where they are used, and missed in plain words."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

# Of each package, the module that it is imported as, and the extra of pyproject.toml that installs it.
PACKAGES = {
    "faster-coco-eval": ("faster_coco_eval", "detection"),
    "huggingface_hub": ("huggingface_hub", "hub"),
    "matplotlib": ("matplotlib", "plot"),
    "open-clip-torch": ("open_clip", "open-clip"),
    "pillow": ("PIL", "data"),
    "pyyaml": ("yaml", "train"),
    "rich": ("rich", "train"),
    "safetensors": ("safetensors", "train"),
    "scikit-learn": ("sklearn", "digits"),
    "scipy": ("scipy", "train"),
    "sentence-transformers": ("sentence_transformers", "sentence-transformers"),
    "shapiq": ("shapiq", "shapiq"),
    "spacy": ("spacy", "phrases"),
    "tensorboard": ("tensorboard", "tensorboard"),
    "tokenizers": ("tokenizers", "paper"),
    "trackio": ("trackio", "trackio"),
    "transformers": ("transformers", "paper"),
    "wandb": ("wandb", "wandb"),
    "webdataset": ("webdataset", "data"),
}


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Turn a failed import of an optional package into a message that says what to install."""
    try:
        yield
    except ImportError as error:
        extra = PACKAGES[package][1]
        raise ImportError(f"{package} is needed here: pip install 'loupe-ext[{extra}]' ({error})") from error


def require(*packages: str) -> None:
    """Miss optional packages before the work that will need them, without importing them."""
    modules = {package: PACKAGES[package][0] for package in packages}
    missing = [name for name, module in modules.items() if not sys.modules.get(module) and not find_spec(module)]
    if missing:
        extras = ",".join(sorted({PACKAGES[package][1] for package in missing}))
        are = "is" if len(missing) == 1 else "are"
        raise ImportError(f"{', '.join(missing)} {are} needed here: pip install 'loupe-ext[{extras}]'")
