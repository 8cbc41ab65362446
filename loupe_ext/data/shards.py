"""Captioned pictures in webdataset shards."""

import glob
import json
import os
import re
from collections.abc import Iterator, Sequence
from typing import Any

from loupe_ext._checks import check_names
from loupe_ext.data.sources import CAPTION_NAMES, SUFFIXES, Sample, Skip, as_sample, first_of, new_digest
from loupe_ext.extras import needs


class Shards:
    """Tar files as `webdataset` writes them: `0001.jpg` and, for its captions, `0001.txt` or `0001.json`.

    A text file has a caption per line. A JSON object has it (or a list of them) under the first of `CAPTION_NAMES`.
    Where a sample has both, the text file counts. Each shard is a part.

    Args:
        urls: paths or what else `webdataset` opens ("https://...", "pipe:..."), with braces ("cc-{0000..0331}.tar") or,
            of paths, with * and ?.

    Raises:
        ValueError: there is no such file. ImportError: `webdataset` is not installed.
    """

    one_each = False

    def __init__(self, urls: str | os.PathLike[str] | Sequence[str]) -> None:
        with needs("webdataset"):
            from webdataset.shardlists import expand_urls
        several = [os.fspath(urls)] if isinstance(urls, (str, os.PathLike)) else check_names("urls", urls)
        self.urls: list[str] = []
        for url in (url for pattern in several for url in expand_urls(str(pattern))):
            matches = sorted(glob.glob(url)) if _is_local(url) and re.search(r"[*?]", url) else [url]
            if not matches or (_is_local(url) and not all(map(os.path.isfile, matches))):
                raise ValueError(f"urls: expected shards, got no file {url}")
            self.urls += matches
        if not self.urls:
            raise ValueError("urls: expected one or more shards, got none")

    def __len__(self) -> int:
        return len(self.urls)

    def read(self, part: int) -> Iterator[Sample | Skip]:
        from webdataset.tariterators import tarfile_samples

        wrong: list[Skip] = []

        def left_out(error: Exception) -> bool:
            wrong.append(Skip(self.urls[part], f"a damaged shard: {type(error).__name__}"))
            return True

        for files in tarfile_samples([{"url": self.urls[part]}], left_out):
            yield _of_shard(f"{self.urls[part]}/{files['__key__']}", files)
        yield from wrong

    def fingerprint(self) -> dict[str, str]:
        """A hash of the shards' names and, where they are files here, of their sizes in bytes."""
        digest = new_digest()
        for url in self.urls:
            size = os.path.getsize(url) if _is_local(url) else -1
            digest.update(json.dumps([os.path.basename(url), size]).encode())
        return {"shards": f"{len(self)} shards {digest.hexdigest()}"}


def _is_local(url: str) -> bool:
    return not re.match(r"[a-z0-9+]+:", url, re.IGNORECASE)


def _of_shard(name: str, files: dict[str, Any]) -> Sample | Skip:
    ends = {key: key.rpartition(".")[2] for key in files if not key.startswith("__")}
    pictures = [key for key, end in ends.items() if end in SUFFIXES]
    texts, jsons = ([key for key, end in ends.items() if end == kind] for kind in ("txt", "json"))
    if len(pictures) != 1 or len(texts) > 1 or len(jsons) > 1:
        return Skip(name, "no picture" if not pictures else "several pictures or captions under one name")
    try:
        if texts:
            captions = files[texts[0]].decode("utf-8-sig").splitlines()
        else:
            found = json.loads(files[jsons[0]]) if jsons else {}
            captions = found.get(first_of(None, CAPTION_NAMES, list(found)), [])
            captions = [captions] if isinstance(captions, str) else captions
        for caption in captions:
            caption.encode()
    except (ValueError, RecursionError, AttributeError, TypeError):  # no UTF-8, no JSON, no object, or no list of str
        return Skip(name, "a caption that cannot be read")
    return as_sample(name, files[pictures[0]], captions)
