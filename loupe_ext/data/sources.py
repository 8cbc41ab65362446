"""Where captioned pictures are: tables of paths and captions, and folders. (`shards` has those of webdataset.)

Nothing is decoded here. What is no captioned picture comes as a `Skip`, so that it can be counted and named.
"""

import csv
import hashlib
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from loupe_ext._checks import check_kind, shown
from loupe_ext._io import check_path

# Names of columns, keys and files that are looked for where none is given, the first of them first.
PICTURE_NAMES = (
    "file_name",
    "filename",
    "filepath",
    "file_path",
    "image_path",
    "image",
    "img",
    "picture",
    "path",
    "file",
)
CAPTION_NAMES = ("caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "comment")
TABLES = tuple(f"{name}.{end}" for name in ("metadata", "captions") for end in ("jsonl", "csv", "tsv", "txt"))
SUFFIXES = frozenset(["avif", "bmp", "gif", "jfif", "jpe", "jpeg", "jpg", "png", "ppm", "tif", "tiff", "webp"])


class Sample(NamedTuple):
    """A picture, not decoded yet, and its captions, one or more."""

    name: str
    picture: Path | bytes
    captions: tuple[str, ...]


class Skip(NamedTuple):
    """What is left out, and why: a few words, the same for all of a kind."""

    name: str
    reason: str


@dataclass
class Skipped:
    """How many were left out, and the first few names, by reason."""

    counts: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)

    def add(self, skips: Iterable[Skip]) -> None:
        for name, reason in skips:
            self.counts[reason] += 1
            if len(first := self.names.setdefault(reason, [])) < 5:
                first.append(name)

    def __len__(self) -> int:
        return self.counts.total()

    def __str__(self) -> str:
        parts = [
            f"{count:,} x {reason} ({', '.join(self.names[reason])}{', ...' if count > 5 else ''})"
            for reason, count in self.counts.most_common()
        ]
        return f"{len(self):,} skipped: " + "; ".join(parts)


class Source(Protocol):
    """Samples in parts that can be read apart from each other, in any order, each always the same."""

    one_each: bool  # every part is one sample

    def __len__(self) -> int:
        """How many parts there are."""

    def read(self, part: int) -> Iterator[Sample | Skip]: ...

    def fingerprint(self) -> dict[str, str]:
        """A line per property of the data, the same for the same data only."""


class Listing:
    """Samples that are listed one by one; each is a part of its own.

    Attributes:
        samples: all of them.
        skipped: the lines or files that were left out.
        columns: which columns (or keys) were read, and whether that was guessed.
    """

    one_each = True

    def __init__(self, samples: Iterable[Sample | Skip], name: str, columns: str = "") -> None:
        by_picture: dict[Path | bytes, Sample] = {}
        self.skipped, self.columns = Skipped(), columns
        for sample in samples:
            if isinstance(sample, Skip):
                self.skipped.add([sample])
            else:  # lines about the same picture are its several captions
                old = by_picture.get(sample.picture)
                by_picture[sample.picture] = sample._replace(captions=(old.captions if old else ()) + sample.captions)
        self.samples = list(by_picture.values())
        if not self.samples:
            raise ValueError(f"path: expected captioned pictures, got none in {name} ({self.skipped})")
        if len(self.skipped):
            warnings.warn(f"{name}: {self.skipped}", stacklevel=3)

    def __len__(self) -> int:
        return len(self.samples)

    def read(self, part: int) -> Iterator[Sample | Skip]:
        yield self.samples[part]

    def one_caption_each(self) -> "Listing":
        """The same with every caption as a sample of its own."""
        flat = object.__new__(Listing)
        flat.skipped, flat.columns = self.skipped, self.columns
        flat.samples = [s._replace(captions=(caption,)) for s in self.samples for caption in s.captions]
        return flat

    def fingerprint(self) -> dict[str, str]:
        """A hash of each picture's name and size in bytes, and of its captions. (Not of where their folder lies.)"""
        paths = [os.path.abspath(s.name) for s in self.samples]
        shared = os.path.commonpath([os.path.dirname(path) for path in paths])
        files, captions = new_digest(), new_digest()
        for sample, path in zip(self.samples, paths, strict=True):
            size = os.path.getsize(path) if os.path.isfile(path) else -1
            files.update(json.dumps([os.path.relpath(path, shared), size]).encode())
            captions.update(json.dumps(sample.captions).encode())
        return {
            "pictures": f"{len(self)} files {files.hexdigest()}",
            "captions": f"{sum(len(s.captions) for s in self.samples)} captions {captions.hexdigest()}",
        }


def read_table(path: str | os.PathLike[str], picture: str | None = None, caption: str | None = None) -> Listing:
    """Pictures and captions listed in a CSV, TSV or JSONL file (by its suffix; .txt: tabs, or else commas), in UTF-8.

    Paths are relative to the file. Lines about the same picture give it several captions; in JSONL a caption may be a
    list of them. A line that cannot be read is left out, counted and named. In a TSV, quotes that make no sense
    are part of the text.

    Args:
        picture, caption: the names of their columns or keys. None: the first of `PICTURE_NAMES` and of `CAPTION_NAMES`
            that the header (or the first JSON object) has; a CSV or TSV without such a header has two columns, first
            the path. `columns` of the result says what was found.

    Raises:
        OSError: the file cannot be read. ValueError: it has no such columns, no captioned picture, or is not UTF-8.
    """
    path = check_path("path", path)
    for name, value in (("picture", picture), ("caption", caption)):
        check_kind(name, value, (str, type(None)), "None or a str")
    if not path.is_file():
        raise FileNotFoundError(f"path: expected a file, got {path}")
    content = path.read_bytes()
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError(f"path: expected a file in UTF-8, got UTF-16 in {path}")
    text = content.decode("utf-8-sig", "surrogateescape")  # file names may be any bytes
    lines = re.findall(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+$", text)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        rows, columns = _json_rows(lines, picture, caption, path)
    elif path.suffix.lower() in (".csv", ".tsv", ".txt"):
        tabs = path.suffix.lower() == ".tsv" or (path.suffix.lower() == ".txt" and "\t" in "".join(lines[:1]))
        rows, columns = _columns(_records(lines, "\t" if tabs else ","), picture, caption, path)
    else:
        raise ValueError(f"path: expected a .csv, .tsv, .jsonl or .txt file, got {path}")
    return Listing((_row_sample(path, *row) for row in rows), str(path), columns)


def read_folder(path: str | os.PathLike[str]) -> Listing:
    """The pictures of a folder and the folders in it, each with its captions.

    They stand in the first file of `TABLES` that the folder has (see `read_table`), or else beside each picture: in
    `cat.txt` for `cat.jpg`, a caption per line. Files and folders whose names start with a dot are not looked at.

    Raises:
        OSError: the folder cannot be read. ValueError: it has no captioned picture.
    """
    path = check_path("path", path)
    if not path.is_dir():
        raise NotADirectoryError(f"path: expected a folder, got {path}")
    for table in TABLES:
        if (path / table).is_file():
            return read_table(path / table)
    return Listing(_beside(path), str(path), "captions in .txt files beside the pictures")


def _beside(folder: Path) -> Iterator[Sample | Skip]:
    for here, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            stem, dot, suffix = name.rpartition(".")
            if name.startswith(".") or not dot or suffix.lower() not in SUFFIXES:
                continue
            picture = Path(here, name)
            try:
                text = Path(here, f"{stem}.txt").read_text(encoding="utf-8-sig")
            except OSError:
                yield Skip(str(picture), "no caption")
            except UnicodeDecodeError:
                yield Skip(str(picture), "a caption that is not UTF-8")
            else:
                yield as_sample(str(picture), picture, text.splitlines())


def as_sample(name: str, picture: Path | bytes, captions: Iterable[str]) -> Sample | Skip:
    clean = tuple(caption.strip() for caption in captions if caption.strip())
    return Sample(name, picture, clean) if clean else Skip(name, "no caption")


def _row_sample(path: Path, line: int, picture: object, captions: object) -> Sample | Skip:
    """A sample of a line; `picture` an exception if the line is wrong."""
    captions = [captions] if isinstance(captions, str) else captions
    where = f"{path}:{line}"
    if not isinstance(picture, str) or not picture.strip() or "\0" in picture:
        return Skip(where, str(picture) if isinstance(picture, Exception) else "a line without a path")
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        return Skip(where, "a line without a caption")
    try:
        for caption in captions:
            caption.encode()
    except UnicodeEncodeError:
        return Skip(where, "a caption that is not UTF-8")
    found = path.parent / picture.strip()
    return as_sample(str(found), found, captions)


Row = tuple[int, object, object]  # the number of the line, the path, and the captions


def _records(lines: list[str], delimiter: str) -> Iterator[tuple[int, list[str] | Exception]]:
    """The records of a CSV or TSV, and the number of its first line. After a wrong one, the next line is tried."""
    at = 0
    while at < len(lines):
        reader = csv.reader(islice(lines, at, None), delimiter=delimiter, strict=True)
        start = at
        try:
            for record in reader:
                if record:
                    yield start + 1, record
                start = at + reader.line_num
            return
        except csv.Error as error:
            if delimiter == "\t":
                yield start + 1, lines[start].rstrip("\r\n").split("\t")
            else:
                yield start + 1, ValueError(f"a line that is no CSV: {error}")
            at = start + 1


def _columns(
    records: Iterator[tuple[int, list[str] | Exception]], picture: str | None, caption: str | None, path: Path
) -> tuple[Iterator[Row], str]:
    line, first = next(records, (0, []))
    header = [] if isinstance(first, Exception) else [name.strip() for name in first]
    names = [
        first_of(given, guesses, header) for given, guesses in ((picture, PICTURE_NAMES), (caption, CAPTION_NAMES))
    ]
    start: list[tuple[int, list[str] | Exception]] = []
    if None not in names:
        i, j = (header.index(str(name)) for name in names)
        columns = _described(header[i], header[j], picture is None or caption is None)
    elif picture is None and caption is None and (isinstance(first, Exception) or len(header) == 2):
        header, i, j, start = ["path", "caption"], 0, 1, [(line, first)]
        columns = "first the path, then the caption (guessed: there is no header)"
    else:
        for name, given in (("picture", picture), ("caption", caption)):
            if given is not None and given not in header:
                raise ValueError(f"{name}: expected a column of {path}, which has {shown(header)}, got {given!r}")
        raise ValueError(f"path: expected columns of paths and of captions in {path}, got {shown(header)}")

    def rows() -> Iterator[Row]:
        for part in (start, records):
            for number, record in part:
                if isinstance(record, Exception):
                    yield number, record, None
                elif len(record) != len(header):
                    yield number, ValueError(f"a line of other than {len(header)} columns"), None
                else:
                    yield number, record[i], record[j]

    return rows(), columns


def _json_rows(lines: list[str], picture: str | None, caption: str | None, path: Path) -> tuple[Iterator[Row], str]:
    def objects() -> Iterator[tuple[int, dict[str, Any] | Exception]]:
        for number, line in enumerate(lines, 1):
            if line.strip():
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    value = None
                yield number, value if isinstance(value, dict) else ValueError("a line that is no JSON object")

    first = next((value for _, value in objects() if isinstance(value, dict)), {})
    names = [
        picture or first_of(None, PICTURE_NAMES, list(first)),
        caption or first_of(None, CAPTION_NAMES, list(first)),
    ]
    if None in names:
        raise ValueError(f"path: expected keys of paths and of captions in {path}, got {shown(list(first))}")
    i, j = map(str, names)
    rows = (
        (n, value, None) if isinstance(value, Exception) else (n, value.get(i), value.get(j)) for n, value in objects()
    )
    return rows, _described(i, j, picture is None or caption is None)


def _described(picture: str, caption: str, guessed: bool) -> str:
    return f"pictures of {picture!r}, captions of {caption!r}" + (" (guessed from the names)" if guessed else "")


def first_of(given: str | None, guesses: Sequence[str], there: Sequence[str]) -> str | None:
    """The name given, if it is there; or the first of the guesses that is, in upper or lower case."""
    if given is not None:
        return given if given in there else None
    lower = {name.lower(): name for name in reversed(there)}
    return next((lower[guess] for guess in guesses if guess in lower), None)


def new_digest() -> Any:
    return hashlib.blake2b(digest_size=12)
