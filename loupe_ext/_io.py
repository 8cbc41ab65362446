"""Files written whole: whoever reads one, at any moment, finds its old content or the new, never a part."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_TAIL = ".partial"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write, which takes the place of `path` when the block ends, and is gone when the block raises.

    The folder is made if it is missing. A symlink stays one: what it points to is replaced. Partial files that killed
    writers of the same file left are removed.

    Raises:
        OSError: the file cannot be written there, or `path` is something other than a file.
    """
    target = _target(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    partial, descriptor = _open_partial(target)
    try:
        with open(descriptor, "wb") as file:
            yield file
            file.flush()
            if target.exists():
                os.fchmod(file.fileno(), stat.S_IMODE(target.stat().st_mode))
            os.fsync(file.fileno())
            os.replace(partial, target)  # while the lock is held, so that nobody takes the file for an abandoned one
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Write `content` (text as UTF-8) to `path` in one piece; see `replacing`."""
    with replacing(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def check_path(name: str, path: object) -> Path:
    """The path as a `Path`."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"{name}: expected a str or os.PathLike, got {type(path).__name__}")
    found = Path(path)
    if "\0" in str(found):
        raise ValueError(f"{name}: expected a path without NUL, got {str(found)!r}")
    return found


def check_writable(name: str, path: str | os.PathLike[str]) -> Path:
    """The path, if `replacing` can write there; to find out before the work, not after it.

    Raises:
        OSError: naming the argument, and what is in the way.
    """
    path = check_path(name, path)
    try:
        target = _target(path)
        there = next(folder for folder in target.parents if folder.exists())  # the rest is made when it is needed
        partial, descriptor = _open_partial(there / target.name)
        os.close(descriptor)
        partial.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        raise type(error)(f"{name}: expected a file that can be written, got {os.fspath(path)!r} ({reason})") from error
    return path


def _target(path: str | os.PathLike[str]) -> Path:
    """The file to replace: `path`, or what it links to."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder", os.fspath(path))
    if target.exists() and not target.is_file():
        raise FileExistsError(errno.EEXIST, "it is no regular file", os.fspath(path))
    return target


def _open_partial(target: Path) -> tuple[Path, int]:
    """A new file beside `target`, locked for as long as it is open. Its name cannot be foretold."""
    while True:
        partial = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}{_TAIL}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(descriptor).st_nlink:
                return partial, descriptor
        except BlockingIOError:
            pass  # taken for abandoned between its making and its lock
        except OSError:  # a file system without locks, where nothing is taken for abandoned
            return partial, descriptor
        os.close(descriptor)


def _remove_abandoned(target: Path) -> None:
    """Remove partial files of `target` whose writers are dead: a lock ends with the process that holds it."""
    head = f".{target.name[:200]}."
    for name in os.listdir(target.parent):
        if not re.fullmatch(re.escape(head) + "[0-9a-f]{16}" + re.escape(_TAIL), name):
            continue
        with contextlib.suppress(OSError):  # BlockingIOError: its writer lives
            descriptor = os.open(target.with_name(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(target.with_name(name))
            finally:
                os.close(descriptor)
