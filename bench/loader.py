"""Pictures per second that a stream gives, apart from any training step: python -m bench.loader

JPEGs are made in a temporary folder, read from its cache, decoded, cropped to a square and batched, captions and all.
"""

import argparse
import os
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from loupe_ext.data import Stream, Vocabulary, WordTokenizer, read_folder

CAPTION = "A small dog chases two brown cats past the red door of a house"


def make(folder: Path, count: int, width: int, height: int) -> None:
    """Pictures about as detailed, in bytes per pixel, as photographs."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.float32)
        noisy = (smooth + rng.normal(0, 4, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04}.jpg", quality=90)
        (folder / f"{i:04}.txt").write_text(CAPTION)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1024, help="pictures")
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--height", type=int, default=384)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--batches", type=int, default=64)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    tokenize = WordTokenizer(Vocabulary.of([CAPTION]))
    with tempfile.TemporaryDirectory() as folder:
        make(Path(folder), options.count, options.width, options.height)
        source = read_folder(folder)
        kilobytes = sum(path.stat().st_size for path in Path(folder).glob("*.jpg")) / options.count / 1000
        print(
            f"{options.width} x {options.height} JPEGs of {kilobytes:.0f} kB to {options.size}, "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
        )
        for workers in options.workers:
            stream = Stream(
                source, tokenize, size=options.size, batch_size=options.batch_size, num_workers=workers, drop_last=False
            )
            next(iter(stream))  # processes have started
            begun, waited = time.perf_counter(), stream.seconds_waited
            given = sum(len(batch) for batch in islice(stream, options.batches))
            seconds = time.perf_counter() - begun
            print(
                f"{workers} workers: {given / seconds:6.0f} pictures/s, "
                f"waited {(stream.seconds_waited - waited) / seconds:.0%} of the time"
            )


if __name__ == "__main__":
    main()
