"""Streams of batches: every sample once, the same ones after a stop, and what cannot be read counted and named."""

import contextlib
import io
import multiprocessing
import os
import pickle
import signal
from functools import partial
from itertools import islice

import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image

from loupe_ext.data import Vocabulary
from loupe_ext.data.sources import Sample, Skip, read_folder
from loupe_ext.data.stream import Stream, WordTokenizer, _start_worker

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
WORDS = [f"w{i}" for i in range(64)]
TOKENIZE = WordTokenizer(Vocabulary(["a", *WORDS]))


def png(i, broken=False):
    file = io.BytesIO()
    Image.new("RGB", (6, 4), (i, 255 - i, 0)).save(file, "PNG")
    return file.getvalue()[: 47 if broken else None]


def folder_of(path, n, captions=1, broken=()):
    for i in range(n):
        (path / f"{i:02}.png").write_bytes(png(i, i in broken))
        (path / f"{i:02}.txt").write_text("\n".join(f"a w{(i + 20 * k) % 64}" for k in range(captions)))
    return read_folder(path)


class Parts:
    """A source of parts in memory, as shards are."""

    one_each = False

    def __init__(self, sizes, broken=()):
        self.firsts, self.sizes, self.broken = [sum(sizes[:i]) for i in range(len(sizes))], sizes, broken

    def __len__(self):
        return len(self.sizes)

    def read(self, part):
        for i in range(self.firsts[part], self.firsts[part] + self.sizes[part]):
            yield Skip(f"{i}", "no caption") if i in self.broken else Sample(f"{i}", png(i), (f"a w{i}",))

    def fingerprint(self):
        return {"sizes": str(self.sizes)}


def stream(source, **options):
    return Stream(source, TOKENIZE, **{"size": 2, "batch_size": 4, **options})


def numbers(batch):
    """Which pictures a batch has, after a look at whether their captions are theirs."""
    shown = batch.images[:, 0, 0, 0].tolist()
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape[1:] == (3, 2, 2)
    captions = (batch.tokens[:, 1] - 2).tolist()
    assert all((caption - i) % 20 in (0, 4, 16) for i, caption in zip(shown, captions, strict=True))  # modulo 64 also
    assert batch.spans.shape == (len(shown), 1, 2)
    assert batch.phrase_lengths.tolist() == [1] * len(shown)
    return shown


def given(batches):
    return [numbers(batch) for batch in batches]


def same(found, expected):
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        for name in ("images", "tokens", "spans", "phrase_lengths"):
            assert torch.equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_nothing_is_lost_or_given_twice(tmp_path, world_size, workers):
    """By what each lane reads, without its process; and with processes in the next test."""
    for source in (folder_of(tmp_path, 29), Parts([5, 1, 9, 14]), Parts([29]), Parts([3, 0, 6, 5, 5, 4, 6])):
        for options in ({}, {"shuffle": False}, {"buffer": 1}, {"captions": "all"}):
            epochs = []
            for epoch in range(2):
                found = []
                for rank in range(world_size):
                    made = stream(source, rank=rank, world_size=world_size, drop_last=False, **options)
                    lanes = max(1, workers)
                    for lane in range(lanes):
                        read = made._loader.dataset._samples(epoch, lane, lanes, 0, 0)
                        found.append([sample.name for _, _, sample in read])
                epochs.append(found)
            for found in epochs:
                assert len({name for part in found for name in part}) == sum(map(len, found)) == 29
            still = "shuffle" in options or (len(source) == 1 and "buffer" in options)
            assert (epochs[0] == epochs[1]) == still


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_every_picture_of_each_epoch(tmp_path, workers):
    for source in (folder_of(tmp_path, 29), Parts([5, 1, 9, 14])):
        batches = stream(source, drop_last=False, epochs=2, num_workers=workers)
        found = given(batches)
        flat = [i for batch in found for i in batch]
        assert sorted(flat[:29]) == sorted(flat[29:]) == list(range(29))
        assert flat[:29] != flat[29:]
        assert given(batches) == found  # and again
    assert len(found) == len(given(stream(source, drop_last=False, epochs=2, num_workers=workers)))


def test_batches_of_files_do_not_depend_on_the_workers(tmp_path):
    source = folder_of(tmp_path, 30, captions=3)
    expected = list(stream(source, epochs=2))
    assert [len(batch.images) for batch in expected] == [4] * 14
    for workers in (1, 2, 3):
        same(list(stream(source, epochs=2, num_workers=workers)), expected)
    assert given(stream(source, epochs=2, seed=1)) != given(expected)


def test_ranks_get_as_many_batches(tmp_path):
    source = folder_of(tmp_path, 30)
    found = [given(stream(source, epochs=1, rank=rank, world_size=4, batch_size=2)) for rank in range(4)]
    assert [len(batches) for batches in found] == [3] * 4
    flat = [i for batches in found for batch in batches for i in batch]
    assert len(set(flat)) == len(flat) == 24


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_stopped(tmp_path, workers):
    files = folder_of(tmp_path, 23, captions=2, broken=(3, 11, 12))
    sources = {"files": files, "parts": Parts([5, 1, 9, 8], broken=(2, 17)), "part": Parts([23])}
    for name, source in sources.items():
        options = {"buffer": 3, "num_workers": workers, "drop_last": name != "part", "batch_size": 3}
        with pytest.warns(UserWarning, match="skipped") if name != "part" else pytest.MonkeyPatch.context():
            expected = list(islice(stream(source, **options), 17))
            first = stream(source, **options)
            stops = (1, 5, 6, 7, 13) if workers == 0 else (6,)
            for stop in stops:
                first.load_state_dict(stream(source, **options).state_dict())
                same(list(islice(first, stop)), expected[:stop])
                state = pickle.loads(pickle.dumps(first.state_dict()))
                second = stream(source, **options)
                second.load_state_dict(state)
                same(list(islice(second, 17 - stop)), expected[stop:])
            same(list(islice(first, 17 - stop)), expected[stop:])  # and after a break


def test_resuming_decodes_nothing_again(tmp_path, monkeypatch):
    source, read = folder_of(tmp_path, 23), []
    first = stream(source)
    list(islice(first, 3))
    monkeypatch.setattr("loupe_ext.data.stream.read_picture", lambda *a: read.append(a) or torch.zeros(3, 2, 2))
    second = stream(source)
    second.load_state_dict(first.state_dict())
    next(iter(second))
    assert len(read) == 4


def test_a_state_of_other_batches_is_refused(tmp_path):
    source = folder_of(tmp_path, 8)
    state = stream(source).state_dict()
    others = {"seed": 1, "batch_size": 2, "num_workers": 2, "drop_last": False, "captions": "all", "size": 3}
    for name, value in others.items():
        with pytest.raises(ValueError, match=f"state: expected {name.replace('num_workers', 'lanes')} "):
            stream(source, **{name: value}).load_state_dict(state)
    with pytest.raises(ValueError, match="state: expected world_size 2 as here, got 1"):
        stream(source, rank=0, world_size=2).load_state_dict(state)
    for wrong in (None, {}, {"seed": 0}):
        with pytest.raises(TypeError, match="state: expected a dict as state_dict gives it"):
            stream(source).load_state_dict(wrong)


@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_counted_and_the_next_takes_its_place(tmp_path, workers):
    source = folder_of(tmp_path, 24, broken=range(0, 12, 2))
    (tmp_path / "01.png").unlink()
    (tmp_path / "03.png").write_bytes(b"")
    batches = stream(source, drop_last=False, epochs=1, num_workers=workers)
    with pytest.warns(UserWarning, match=r"epoch 0: 8 skipped: 6 x a damaged picture \(.*, \.\.\.\); 1 x "):
        found = given(batches)
    assert sorted(i for batch in found for i in batch) == [5, 7, 9, 11, *range(12, 24)]
    assert all(len(batch) == 4 for batch in found[:-2])
    assert batches.skipped.counts == {"a damaged picture": 6, "no such file": 1, "an empty file": 1}
    assert batches.skipped.names["no such file"] == [str(tmp_path / "01.png")]
    assert len(batches.skipped.names["a damaged picture"]) == 5


def test_captions_that_the_model_cannot_read(tmp_path):
    folder_of(tmp_path, 8)
    for i, text in ((2, "..."), (5, "a stranger"), (6, "\u200b")):
        (tmp_path / f"{i:02}.txt").write_text(text)
    batches = stream(read_folder(tmp_path), epochs=1, drop_last=False)
    with pytest.warns(UserWarning, match=r"3 skipped: .*what the model cannot read: .* expected words of the vocab"):
        found = given(batches)
    assert sorted(i for batch in found for i in batch) == [0, 1, 3, 4, 7]


def test_an_epoch_without_a_batch_is_an_error(tmp_path):
    source = folder_of(tmp_path, 4, broken=(0,))
    for workers in (0, 2):
        batches = stream(source, num_workers=workers)
        with (
            pytest.warns(UserWarning, match="1 skipped"),
            pytest.raises(ValueError, match=r"batch_size: expected at most .* got 4 \(1 skipped: 1 x a damaged pict"),
        ):
            next(iter(batches))


def test_captions_are_drawn_anew_each_epoch(tmp_path):
    source = folder_of(tmp_path, 12, captions=3)
    drawn = []
    for batch in stream(source, epochs=12):
        drawn += zip(numbers(batch), (batch.tokens[:, 1] - 2).tolist(), strict=True)
    counts = [drawn.count((i, (i + 20 * k) % 64)) for i in range(12) for k in range(3)]
    assert sum(counts) == len(drawn) == 144
    assert min(counts) > 0
    every = [
        caption
        for batch in stream(source, epochs=1, captions="all")
        for caption in zip(numbers(batch), batch.tokens[:, 1].tolist(), strict=True)
    ]
    assert len(set(every)) == len(every) == 36


def test_the_buffer_shuffles_within_a_part():
    (order,) = given(stream(Parts([60]), batch_size=60, buffer=8, epochs=1))
    assert order != sorted(order)
    assert max(i - at for at, i in enumerate(order)) <= 8  # nobody comes before he is in the buffer
    assert given(stream(Parts([60]), batch_size=60, shuffle=False, epochs=1)) == [list(range(60))]


def test_torch_s_generator_is_left_alone(tmp_path):
    source = folder_of(tmp_path, 8)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    batches = stream(source, num_workers=1)
    next(iter(batches))
    assert torch.equal(torch.rand(3), expected)
    assert batches.seconds_waited > 0


def test_a_newer_iteration_ends_the_older(tmp_path):
    batches = stream(folder_of(tmp_path, 12))
    old = iter(batches)
    first = [numbers(next(old)), numbers(next(iter(batches)))]
    assert first == given(islice(stream(folder_of(tmp_path, 12)), 2))
    with pytest.raises(RuntimeError, match="a newer iteration"):
        next(old)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_a_signal_to_the_main_process(tmp_path, number):
    batches = stream(folder_of(tmp_path, 12), num_workers=2)
    found = given(islice(batches, 2))  # of each worker
    for worker in batches._loader._iterator._workers:
        os.kill(worker.pid, number)
    found += given(islice(batches, 11))
    assert found == given(islice(stream(batches.source), 13))


def terminated_twice(answer):
    _start_worker(0)
    signal.raise_signal(signal.SIGTERM)
    answer.send("once")
    signal.raise_signal(signal.SIGTERM)


def forked(target, *args):
    """What a process of this function says, and how it ends."""
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=target, args=(*args, there))
    process.start()
    there.close()
    said = []
    with contextlib.suppress(EOFError):
        while here.poll(60):
            said.append(here.recv())
    process.join(60)
    return said, process.exitcode


def test_a_second_sigterm_ends_a_worker():
    assert forked(terminated_twice) == (["once"], -signal.SIGTERM)


def signalled(batches, answer):
    """What a stream gives in a process group of its own, which gets a SIGTERM after the first batch of each worker."""
    os.setsid()
    found = given(islice(batches, 2))
    signal.signal(signal.SIGTERM, lambda *_: answer.send("held"))
    os.killpg(0, signal.SIGTERM)
    answer.send(found + given(islice(batches, 11)))


def test_a_stream_outlives_sigterm_to_its_process_group(tmp_path):
    batches = stream(folder_of(tmp_path, 12), num_workers=2)
    said = forked(signalled, batches)
    assert said == (["held", given(islice(stream(batches.source), 13))], 0)


def test_workers_end_in_peace(tmp_path, monkeypatch):
    registered = []
    finalize = lambda of, call, given, exitpriority: registered.append((call, given))  # noqa: E731
    monkeypatch.setattr("loupe_ext.data.stream.Finalize", finalize)
    batches = stream(folder_of(tmp_path, 12), num_workers=2)
    next(iter(batches))
    workers = batches._loader._iterator._workers
    ((call, given),) = [(call, given) for call, given in registered if call.__name__ == "_end_workers"]
    call(*given)
    assert [worker.exitcode for worker in workers] == [0, 0]


def processed(pictures, return_tensors):
    """As an image processor of transformers: pictures of any sizes, and a further tensor."""
    shapes = torch.tensor([picture.shape for picture in pictures])
    return {"pixel_values": torch.stack([p[:, :2, :2] / 255 for p in pictures]), "shapes": shapes}


def test_a_processor_and_a_tokenizer_of_the_model(tmp_path):
    def tokenize(captions):
        encoded = TOKENIZE(captions)
        return {"input_ids": encoded.pop("tokens"), "attention_mask": torch.ones(len(captions), 2), **encoded}

    processor = partial(processed, return_tensors="pt")
    batch = next(iter(Stream(folder_of(tmp_path, 6), tokenize, processor=processor, batch_size=5, num_workers=1)))
    assert batch.images.shape == (5, 3, 2, 2)
    assert batch.images.is_floating_point()
    assert batch.image_options["shapes"].tolist() == [[3, 4, 6]] * 5
    assert batch.text_options.keys() == {"attention_mask"}
    assert batch.tokens.shape == (5, 2)


def test_what_transformers_make_of_pictures_and_captions(tmp_path):
    """Their image processor gives the same as of the pictures themselves; phrases are spans of their tokens."""
    pytest.importorskip("transformers")
    from transformers import Siglip2ImageProcessor

    from loupe_ext.model.clip import PhraseTokenizer
    from tests.test_clip import tokenizer

    pictures = {
        name: Image.effect_noise(shape, 60).convert("RGB") for name, shape in (("a", (40, 30)), ("b", (20, 50)))
    }
    for name, picture in pictures.items():
        picture.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text("A small dog chases two cats.")
    Image.new("RGB", (20_000, 3)).save(tmp_path / "c.png")
    (tmp_path / "c.txt").write_text("a dog")
    image_processor = Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
    batches = Stream(
        read_folder(tmp_path),
        PhraseTokenizer(tokenizer()),
        processor=partial(image_processor, input_data_format="channels_first", return_tensors="pt"),
        batch_size=2,
        shuffle=False,
        epochs=1,
        num_workers=1,
    )
    with pytest.warns(UserWarning, match=r"1 skipped: 1 x too thin a picture \(.*c\.png\)"):
        (batch,) = batches
    expected = dict(image_processor(list(pictures.values()), return_tensors="pt"))
    assert torch.equal(batch.images, expected.pop("pixel_values"))
    assert batch.image_options.keys() == expected.keys() == {"pixel_attention_mask", "spatial_shapes"}
    assert all(torch.equal(value, expected[name]) for name, value in batch.image_options.items())
    tokens = PhraseTokenizer(tokenizer())(["A small dog chases two cats."] * 2)
    assert torch.equal(batch.tokens, tokens["tokens" if "tokens" in tokens else "input_ids"])
    assert torch.equal(batch.spans, tokens["spans"])
    assert batch.phrase_lengths.tolist() == [2, 2]
    assert "attention_mask" in batch.text_options


def test_the_rank_is_that_of_the_process_group(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    source = folder_of(tmp_path, 12)
    assert given(stream(source, epochs=1)) == given(stream(source, epochs=1, rank=2, world_size=3))
    assert given(stream(source, epochs=1)) != given(stream(source, epochs=1, rank=0, world_size=3))
    with pytest.raises(ValueError, match="rank: expected rank and world_size, got one of them"):
        stream(source, rank=0)


def test_shards_stream(tmp_path):
    wds = pytest.importorskip("webdataset")
    from loupe_ext.data.shards import Shards

    for n in range(3):
        with wds.TarWriter(str(tmp_path / f"{n}.tar")) as writer:
            for i in range(10 * n, 10 * n + 10):
                writer.write({"__key__": f"{i:03}", "png": png(i, i == 14), "txt": f"a w{i}"})
    batches = stream(Shards(tmp_path / "*.tar"), drop_last=False, epochs=1, num_workers=2)
    with pytest.warns(UserWarning, match=r"1 skipped: 1 x a damaged picture \(.*1\.tar/014\)"):
        found = given(batches)
    assert sorted(i for batch in found for i in batch) == [i for i in range(30) if i != 14]
    assert batches.fingerprint().keys() == {"shards"}
