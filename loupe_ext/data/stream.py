"""Batches of captioned pictures from files, decoded by worker processes; the same ones for the same seed, also after a
stop.
"""

import os
import random
import signal
import time
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import count, islice
from multiprocessing.util import Finalize
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from loupe_ext._checks import check_choice, check_flag, check_int, check_kind, shown
from loupe_ext.data.batch import Batch
from loupe_ext.data.pairs import Vocabulary, encode_texts
from loupe_ext.data.pictures import BadPicture, read_picture
from loupe_ext.data.sources import Listing, Sample, Skip, Skipped, Source
from loupe_ext.phrases import Chunker, chunk

Tokenize = Callable[[Sequence[str]], dict[str, Tensor]]
"""From captions to "tokens" or "input_ids" [B, L], "spans" [B, P, 2], "phrase_lengths" [B], and further inputs."""

THINNEST = 50  # times as long as wide; processors that make the shorter side 224 would run out of memory


class WordTokenizer:
    """The words of a `Vocabulary` as tokens, beside `PhraseTokenizer`, which has those of a model of `transformers`.

    Args: see `Pairs.from_captions`.
    """

    def __init__(self, vocabulary: Vocabulary, chunker: Chunker = chunk, longest: int = 60) -> None:
        encode_texts("captions", [], vocabulary, chunker, longest)  # checks the arguments
        self.vocabulary, self.chunker, self.longest = vocabulary, chunker, longest

    def __call__(self, captions: Sequence[str]) -> dict[str, Tensor]:
        """`tokens`, `spans` and `phrase_lengths` of B captions.

        Raises:
            TypeError, ValueError: a caption is no str, or has no word, or one that the vocabulary lacks.
        """
        found = encode_texts("captions", captions, self.vocabulary, self.chunker, self.longest)
        return dict(zip(("tokens", "spans", "phrase_lengths"), found, strict=True))


def collate(
    pictures: Sequence[Tensor],
    encoded: dict[str, Tensor],
    processor: Callable[[list[Tensor]], Any] | None = None,
) -> Batch:
    """A batch of pictures [3, H, W] uint8 (of one size, without a processor) and encoded captions."""
    if processor is None:
        image_options, images = {}, torch.stack(list(pictures))
    else:
        image_options = dict(processor(list(pictures)))
        images = image_options.pop("pixel_values")
    text_options = dict(encoded)
    tokens = text_options.pop("tokens" if "tokens" in encoded else "input_ids")
    spans, phrase_lengths = text_options.pop("spans"), text_options.pop("phrase_lengths")
    return Batch(images, tokens, spans, phrase_lengths, image_options, text_options)


class _Message(NamedTuple):
    """From a lane: a batch, or None at its epoch's end; what was skipped on the way; and where the lane is then."""

    lane: int
    part: int  # of the lane's parts of this epoch, the one that was read last
    taken: int  # samples of it
    batch: Batch | None
    skips: list[Skip]


class _Lanes(IterableDataset[_Message]):
    """What the workers of a process read: each a lane, a share of the source that no other reads.

    `start` holds the epoch, the lane whose turn it is, and of each lane the part and how many of its samples it took.
    """

    def __init__(self, source: Source, settings: dict[str, Any], start: Tensor) -> None:
        self.source, self.start = source, start
        self.seed, self.shuffle, self.captions = (settings[name] for name in ("seed", "shuffle", "captions"))
        self.rank, self.world_size, self.batch_size = (settings[n] for n in ("rank", "world_size", "batch_size"))
        self.drop_last, self.buffer, self.size = (settings[name] for name in ("drop_last", "buffer", "size"))
        self.fit, self.tokenize, self.processor = (settings[name] for name in ("fit", "tokenize", "processor"))

    def __iter__(self) -> Iterator[_Message]:
        info = get_worker_info()
        worker, lanes = (0, 1) if info is None else (info.id, info.num_workers)
        epoch, turn, *positions = self.start.tolist()
        lane = (turn + worker) % lanes
        part, taken = start = positions[2 * lane : 2 * lane + 2]
        skips: list[Skip] = []
        good: list[tuple[Sample, str, Tensor]] = []
        for part, taken, sample in self._samples(epoch, lane, lanes, *start):
            read = self._decoded(sample, epoch)
            if isinstance(read, Skip):
                skips.append(read)
                continue
            good.append(read)
            if len(good) == self.batch_size:
                batch, good = self._batch(good, skips)
                if batch is not None:
                    yield _Message(lane, part, taken, batch, skips)
                    skips = []
        batch = None
        while good and not self.drop_last and batch is None:
            batch, good = self._batch(good, skips)
        yield _Message(lane, part, taken, batch, skips)

    def _parts(self, epoch: int, lane: int, lanes: int) -> list[tuple[int, int, int]]:
        """The parts of an epoch that a lane reads, each with the first of its samples and the step to the next."""
        n, readers = len(self.source), self.world_size * lanes
        order = np.random.default_rng((self.seed, epoch)).permutation(n) if self.shuffle else np.arange(n)
        if self.source.one_each:
            if self.drop_last:  # as many on each rank
                order = order[: n - n % self.world_size]
            mine = order[self.rank :: self.world_size]
            dealt = np.arange(len(mine)) // self.batch_size % lanes  # whole batches, whatever the number of lanes
            return [(part, 0, 1) for part in mine[dealt == lane].tolist()]
        step = -(-readers // n)  # several read one part where there are fewer parts than readers
        pieces = [(part, first, step) for part in order.tolist() for first in range(step)]
        return pieces[self.rank :: self.world_size][lane::lanes]

    def _samples(
        self, epoch: int, lane: int, lanes: int, part: int, taken: int
    ) -> Iterator[tuple[int, int, Sample | Skip]]:
        """Samples from a position on, each with the position behind it."""
        for at, (which, first, step) in enumerate(self._parts(epoch, lane, lanes)[part:], part):
            found: Iterator[Sample | Skip] = islice(self.source.read(which), first, None, step)
            if self.captions == "all":
                found = (one for sample in found for one in _one_caption_each(sample))
            if self.shuffle and not self.source.one_each:
                found = _shuffled(found, self.buffer, random.Random(f"{self.seed}:{epoch}:{which}:{first}"))
            skip = taken if at == part else 0
            for number, sample in enumerate(islice(found, skip, None), skip + 1):
                yield at, number, sample

    def _decoded(self, sample: Sample | Skip, epoch: int) -> tuple[Sample, str, Tensor] | Skip:
        if isinstance(sample, Skip):
            return sample
        drawn = random.Random(f"{self.seed}:{epoch}:{os.path.basename(sample.name)}").randrange(len(sample.captions))
        try:
            picture = read_picture(sample.picture, self.size, self.fit)
        except BadPicture as bad:
            return Skip(sample.name, bad.reason)
        if max(picture.shape[1:]) > THINNEST * min(picture.shape[1:]):
            return Skip(sample.name, "too thin a picture")
        return sample, sample.captions[drawn], picture

    def _batch(
        self, good: list[tuple[Sample, str, Tensor]], skips: list[Skip]
    ) -> tuple[Batch | None, list[tuple[Sample, str, Tensor]]]:
        """A batch, and none left; or none, and those whose captions and pictures the model can read."""
        samples, captions, pictures = zip(*good, strict=True)
        try:
            return collate(pictures, self.tokenize(captions), self.processor), []
        except ValueError:
            readable = []
            for one, sample, caption, picture in zip(good, samples, captions, pictures, strict=True):
                try:
                    collate([picture], self.tokenize([caption]), self.processor)
                    readable.append(one)
                except ValueError as error:
                    skips.append(Skip(sample.name, f"what the model cannot read: {error}"[:120]))
            if len(readable) == len(good):
                raise
            return None, readable


def _one_caption_each(sample: Sample | Skip) -> list[Sample] | list[Skip]:
    return [sample] if isinstance(sample, Skip) else [sample._replace(captions=(text,)) for text in sample.captions]


def _shuffled(items: Iterator[Any], size: int, rng: random.Random) -> Iterator[Any]:
    """Items in an order in which each waits among `size` others for its turn."""
    held = list(islice(items, size))
    for item in items:
        at = rng.randrange(size)
        yield held[at]
        held[at] = item
    rng.shuffle(held)
    yield from held


def _alone(message: Any) -> Any:
    return message


def _end_workers(loader: Any) -> None:
    """At exit, before `multiprocessing` ends them by a signal, which torch reports as a failure."""
    iterator = getattr(loader(), "_iterator", None)
    if iterator is not None:
        iterator._shutdown_workers()


def _start_worker(worker: int) -> None:
    """Ctrl-C, and SIGTERM to a process group, are the main one's to answer, and may find it saving. A second SIGTERM
    ends a worker, such as one that hangs when the main process is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _ignore_once)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # workers are the parallelism


def _ignore_once(number: int, frame: object) -> None:
    signal.signal(number, signal.SIG_DFL)


class Stream:
    """Batches of captioned pictures, without end or for some epochs.

    ```
    batches = Stream(read_folder("pictures"), tokenize, size=224, batch_size=64, num_workers=4)
    for batch in islice(batches, 1000): ...
    ```

    In each epoch, every sample is given once: split over the processes (`rank` of `world_size`) and, within each, over
    the workers that decode. Samples of a `Listing` are shuffled as a whole; shards are read in random order, and a
    shard's samples are drawn from a buffer of `buffer` undecoded ones. What cannot be read is skipped, counted in
    `skipped` and named in a warning (at each 1,000, and at an epoch's end), and the next sample takes its place, so
    that batches are full.

    Each iteration goes on where the one before stopped, with an epoch's first batch again once all `epochs` are given.
    Batches depend on `seed`, the ranks and (for shards, and behind a skipped picture) on the number of workers, and on
    nothing else: `state_dict` and `load_state_dict` go on with the very batches that would have come.

    Ranks may have different numbers of batches in an epoch: where pictures are skipped, or with shards, or without
    `drop_last`. Training on several takes steps from a stream without end.

    Args:
        source: `read_table(path)`, `read_folder(path)`, `Shards(urls)`, or your own `Source`.
        tokenize: `WordTokenizer(vocabulary)`, `PhraseTokenizer(tokenizer)`, or your own `Tokenize`.
        size: pictures are resized to this height and width (see `read_picture`); None: the processor does it, and
            pictures more than 50 times as long as wide are skipped.
        fit: "crop" or "squash", how they are made square.
        processor: from B pictures [3, H, W] uint8 to "pixel_values" and further inputs of the model. For an image
            processor of `transformers`: functools.partial(processor, input_data_format="channels_first",
            return_tensors="pt"). None: pictures are stacked.
        batch_size: of this process.
        captions: of several captions of a picture, "draw" one per epoch, or give "all", each as a sample of its own.
        shuffle: False: the source's own order.
        drop_last: leave out an epoch's last samples (of each worker, for shards) that fill no batch.
        epochs: None: without end.
        num_workers: processes that decode; 0: this one. 0 and 1 give the same batches.
        prefetch: batches that each worker has ready.
        rank, world_size: None: those of torch.distributed if it is initialised, or else 0 of 1.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value. While iterating: ValueError: an epoch without a
            batch.
    """

    def __init__(
        self,
        source: Source,
        tokenize: Tokenize,
        *,
        size: int | None = None,
        fit: str = "crop",
        processor: Callable[[list[Tensor]], Any] | None = None,
        batch_size: int = 64,
        captions: str = "draw",
        shuffle: bool = True,
        buffer: int = 1000,
        drop_last: bool = True,
        epochs: int | None = None,
        seed: int = 0,
        num_workers: int = 0,
        prefetch: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        if not all(hasattr(source, name) for name in ("one_each", "read", "fingerprint", "__len__")):
            raise TypeError(f"source: expected a Listing, Shards or another Source, got {type(source).__name__}")
        check_kind("tokenize", tokenize, Callable, "a callable")
        check_kind("processor", processor, (Callable, type(None)), "a callable")
        if size is None and processor is None:
            raise ValueError("size: expected an int where there is no processor, got None")
        check_choice("captions", captions, ("draw", "all"))
        check_choice("fit", fit, ("crop", "squash"))
        if captions == "all" and isinstance(source, Listing):
            source = source.one_caption_each()
        rank, world_size = _place(rank, world_size)
        self.source = source
        self.epochs = None if epochs is None else check_int("epochs", epochs, 1, 2**31)
        self.num_workers = check_int("num_workers", num_workers, 0, 1024)
        self.settings: dict[str, Any] = {
            "size": None if size is None else check_int("size", size, 1, 2**13),
            "fit": fit,
            "captions": captions,
            "batch_size": check_int("batch_size", batch_size, 1, 2**24),
            "shuffle": check_flag("shuffle", shuffle),
            "buffer": check_int("buffer", buffer, 1, 2**31),
            "drop_last": check_flag("drop_last", drop_last),
            "seed": check_int("seed", seed, 0, 2**63 - 1),
            "rank": rank,
            "world_size": world_size,
        }
        self.lanes = max(1, self.num_workers)
        self.skipped = Skipped()  # in this epoch
        self.seconds_waited = 0.0  # for batches, in all
        self._epoch, self._turn = 0, 0
        self._positions = [[0, 0] for _ in range(self.lanes)]
        self._start = torch.zeros(2 + 2 * self.lanes, dtype=torch.int64).share_memory_()
        self._iteration = 0
        private = {**self.settings, "tokenize": tokenize, "processor": processor}
        prefetch = check_int("prefetch", prefetch, 1, 2**16)
        self._loader: DataLoader[_Message] = DataLoader(
            _Lanes(source, private, self._start),
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_alone,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),  # so that torch's own is left alone
            prefetch_factor=prefetch if self.num_workers else None,
            persistent_workers=self.num_workers > 0,
        )

    def __iter__(self) -> Iterator[Batch]:
        self._iteration += 1
        iteration = self._iteration
        # Of the process that reads, which may be a fork: no `atexit` of one runs.
        Finalize(self._loader, _end_workers, (weakref.ref(self._loader),), exitpriority=0)
        while True:
            whole, given = not any(map(any, self._positions)), 0
            self._start[:2] = torch.tensor([self._epoch, self._turn])
            self._start[2:] = torch.tensor(self._positions).flatten()
            if whole:
                self.skipped = Skipped()
            messages = iter(self._loader)
            for _ in count():
                begun = time.perf_counter()
                message = next(messages, None)
                self.seconds_waited += time.perf_counter() - begun
                if message is None:
                    break
                lane, *self._positions[message.lane], batch, skips = message
                self._turn = (lane + 1) % self.lanes
                thousands = len(self.skipped) // 1000
                self.skipped.add(skips)
                if len(self.skipped) // 1000 > thousands:
                    warnings.warn(f"epoch {self._epoch}: {self.skipped}", stacklevel=2)
                if batch is not None:
                    given += 1
                    yield batch
                    if iteration != self._iteration:
                        raise RuntimeError("a newer iteration over this stream has taken its place")
            if len(self.skipped):
                warnings.warn(f"epoch {self._epoch}: {self.skipped}", stacklevel=2)
            if whole and not given:
                batch_size, share = self.settings["batch_size"], self.settings["world_size"] * self.lanes
                raise ValueError(
                    f"batch_size: expected at most as many as an epoch has of readable pictures for each of {share} "
                    f"readers (ranks x workers), got {batch_size} ({self.skipped})"
                )
            self._epoch, self._turn, self._positions = self._epoch + 1, 0, [[0, 0] for _ in range(self.lanes)]
            if self._epoch == self.epochs:
                self._epoch = 0
                return

    def fingerprint(self) -> dict[str, str]:
        """A line per property of the data, the same for the same data only; see the source's."""
        return self.source.fingerprint()

    def state_dict(self) -> dict[str, Any]:
        """Where this process's stream stands behind the last batch that it gave, in plain numbers and lists."""
        position = {"epoch": self._epoch, "turn": self._turn, "positions": [list(p) for p in self._positions]}
        return {**self.settings, "lanes": self.lanes, **position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. (What was read of the last shard is read again, undecoded.)

        Raises:
            TypeError, ValueError: it is no state, or that of a stream that gives other batches.
        """
        now = self.state_dict()
        if not isinstance(state, dict) or state.keys() != now.keys():
            raise TypeError(f"state: expected a dict as state_dict gives it, got {shown(state)}")
        for name in (*self.settings, "lanes"):
            if state[name] != now[name]:
                raise ValueError(f"state: expected {name} {now[name]} as here, got {shown(state[name])}")
        self._epoch, self._turn = state["epoch"], state["turn"]
        self._positions = [list(position) for position in state["positions"]]
        self._iteration += 1


def _place(rank: int | None, world_size: int | None) -> tuple[int, int]:
    """This process's rank and how many there are."""
    if (rank is None) != (world_size is None):
        raise ValueError("rank: expected rank and world_size, got one of them")
    if rank is None:
        there = torch.distributed.is_available() and torch.distributed.is_initialized()
        return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if there else (0, 1)
    world_size = check_int("world_size", world_size, 1, 2**31)
    return check_int("rank", rank, 0, world_size - 1), world_size
