"""Optional dependencies: imported where they are used, and missed in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(package: str, install: str = "'loupe-ext[train]'") -> Iterator[None]:
    """Turn a failed import of an optional package into a message that says what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{package} is needed here: pip install {install} ({error})") from error
