"""Optional dependencies: imported where they are used, and missed in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager

# The extra of pyproject.toml that installs a package for the purpose that it is needed for.
EXTRAS = {
    "faster-coco-eval": "detection",
    "matplotlib": "plot",
    "pillow": "demo",
    "pyyaml": "train",
    "rich": "train",
    "safetensors": "train",
    "scikit-learn": "digits",
    "scipy": "train",
    "shapiq": "shapiq",
    "spacy": "phrases",
    "tensorboard": "tensorboard",
    "transformers": "paper",
}


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Turn a failed import of an optional package into a message that says what to install."""
    try:
        yield
    except ImportError as error:
        extra = f"'loupe-ext[{EXTRAS[package]}]'"
        raise ImportError(f"{package} is needed here: pip install {extra} ({error})") from error
