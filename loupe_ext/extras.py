"""Optional dependencies: imported where they are used, and missed in plain words."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(package: str) -> Iterator[None]:
    """Turn a failed import of a package of the [train] extra into a message that says what to install."""
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{package} is needed here: pip install 'loupe-ext[train]' ({error})") from error
