"""Tables, folders and shards of captioned pictures; nothing here is decoded."""

import json
import re

import pytest

from loupe_ext.data.sources import Skip, read_folder, read_table


def table(tmp_path, content, name="a.csv", **columns):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, **columns)


def rows(listing, folder):
    return [(sample.picture.relative_to(folder).as_posix(), *sample.captions) for sample in listing.samples]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", 'image,caption\nx.jpg,a dog\nb/y.jpg,"two, ""big"" cats"\n'),
        ("a.csv", '\ufeffcaption,Image,more\r\na dog,x.jpg,1\r\n"two, ""big"" cats",b/y.jpg,2'),
        ("a.csv", 'x.jpg,a dog\rb/y.jpg,"two, ""big"" cats"\r'),
        ("a.tsv", 'title\tfilepath\na dog\tx.jpg\ntwo, "big" cats\tb/y.jpg\n'),
        ("a.tsv", 'x.jpg\ta dog\n\nb/y.jpg\t"two, ""big"" cats"\n'),
        ("a.txt", 'x.jpg\ta dog\nb/y.jpg\ttwo, "big" cats\n'),
        ("a.txt", 'image,caption\nx.jpg,a dog\nb/y.jpg,"two, ""big"" cats"\n'),
        (
            "a.jsonl",
            '{"file_name": "x.jpg", "text": "a dog"}\n\n{"text": "two, \\"big\\" cats", "file_name": "b/y.jpg"}',
        ),
    ],
)
def test_tables_as_people_write_them(tmp_path, name, content):
    listing = table(tmp_path, content, name)
    assert rows(listing, tmp_path) == [("x.jpg", "a dog"), ("b/y.jpg", 'two, "big" cats')]
    assert "guessed" in listing.columns
    assert not len(listing.skipped)


def test_columns_that_are_given(tmp_path):
    content = "caption,image,wanted,path\nno,no.jpg,a dog,x.jpg\n"
    listing = table(tmp_path, content, picture="path", caption="wanted")
    assert rows(listing, tmp_path) == [("x.jpg", "a dog")]
    assert listing.columns == "pictures of 'path', captions of 'wanted'"
    assert rows(table(tmp_path, content, picture="path"), tmp_path) == [("x.jpg", "no")]
    line = json.dumps({"caption": "no", "a": "x.jpg", "b": ["a dog", " a cat "]})
    assert rows(table(tmp_path, line, "a.jsonl", picture="a", caption="b"), tmp_path) == [("x.jpg", "a dog", "a cat")]


def test_lines_about_one_picture_are_its_captions(tmp_path):
    listing = table(tmp_path, "x.jpg,a dog\ny.jpg,a cat\n./x.jpg,a brown dog\n")
    assert rows(listing, tmp_path) == [("x.jpg", "a dog", "a brown dog"), ("y.jpg", "a cat")]
    assert rows(listing.one_caption_each(), tmp_path) == [
        ("x.jpg", "a dog"),
        ("x.jpg", "a brown dog"),
        ("y.jpg", "a cat"),
    ]


def test_bad_lines_of_a_csv_are_counted_and_named(tmp_path):
    lines = [
        b"path,caption",
        b"x.jpg,a dog",
        b"y.jpg,a dog, running",  # 3
        b'z.jpg,"never closed',  # 4
        b'v.jpg,"two\nlines"',  # 5
        b"w.jpg,caf\xe9",  # 7
        b"w.jpg,",  # 8
        b",a cat",  # 9
        b"caf\xe9.jpg,a cat",
    ]
    with pytest.warns(UserWarning, match=r"a\.csv: 5 skipped: 1 x a line of other than 2 columns \(.*a\.csv:3\)"):
        listing = table(tmp_path, b"\n".join(lines))
    assert [sample.captions for sample in listing.samples] == [("a dog",), ("two\nlines",), ("a cat",)]
    found = {re.sub(": .*", "", reason): names for reason, names in listing.skipped.names.items()}
    numbers = {reason: [name.rpartition(":")[2] for name in names] for reason, names in found.items()}
    numbers["no caption"] = found["no caption"] == [str(tmp_path / "w.jpg")]
    assert numbers == {
        "a line of other than 2 columns": ["3"],
        "a line that is no CSV": ["4"],
        "a caption that is not UTF-8": ["7"],
        "no caption": True,
        "a line without a path": ["9"],
    }


def test_bad_lines_of_jsonl_are_counted_and_named(tmp_path):
    good = '{"image": "x.jpg", "caption": "a dog"}'
    bad = [
        "{",
        "[1]",
        '{"image": "y.jpg"}',
        '{"image": 3, "caption": "a"}',
        '{"image": "y.jpg", "caption": [1]}',
        "[" * 9999,
    ]
    bad += ['{"image": "y.jpg", "caption": "\\ud800"}', '{"image": "y.jpg", "caption": []}']
    with pytest.warns(UserWarning, match="8 skipped: 3 x a line that is no JSON object"):
        listing = table(tmp_path, "\n".join([good, *bad]), "a.jsonl")
    assert rows(listing, tmp_path) == [("x.jpg", "a dog")]
    assert listing.skipped.counts["a line without a caption"] == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", r"expected columns of paths and of captions in .*a\.csv, got \[\]"),
        ("a.csv", "path,caption\n", "expected captioned pictures, got none"),
        ("a.csv", "a,b,c\n1,2,3\n", r"expected columns of paths and of captions in .*, got \['a', 'b', 'c'\]"),
        ("a.jsonl", '{"a": 1}', r"expected keys of paths and of captions in .*, got \['a'\]"),
        ("a.csv", "path,caption\nx.jpg,a dog\n".encode("utf-16"), "expected a file in UTF-8, got UTF-16"),
        ("a.parquet", "", r"expected a \.csv, \.tsv, \.jsonl or \.txt file"),
    ],
)
def test_what_is_no_table(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=f"path: {message}"):
        table(tmp_path, content, name)
    with pytest.raises(
        ValueError, match=r"picture: expected a column of .*, which has \['path', 'caption'\], got 'nowh"
    ):
        table(tmp_path, "path,caption\nx.jpg,a dog\n", picture="nowhere")


def test_a_folder_with_captions_beside_its_pictures(tmp_path):
    (tmp_path / "b").mkdir()
    for name in ("z.JPG", "b/y.png", "b/silent.png", "b/.hidden.png", "blank.gif", "latin.png", "notes.md"):
        (tmp_path / name).write_bytes(b"")
    for name, text in {
        "z": "a dog\n\n a brown dog \n",
        "b/y": "\ufeffa cat",
        "blank": "\n",
        "alone": "no picture",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.warns(UserWarning, match="3 skipped: 2 x no caption"):
        listing = read_folder(tmp_path)
    assert rows(listing, tmp_path) == [("z.JPG", "a dog", "a brown dog"), ("b/y.png", "a cat")]


def test_a_folder_with_a_table(tmp_path):
    (tmp_path / "captions.txt").write_text("image,caption\nx.jpg,no\n")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "x.jpg", "text": "a dog"}\n')
    assert rows(read_folder(tmp_path), tmp_path) == [("x.jpg", "a dog")]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="path: expected captioned pictures, got none in"):
        read_folder(tmp_path / "empty")
    with pytest.raises(NotADirectoryError, match="path: expected a folder, got"):
        read_folder(tmp_path / "nowhere")


def test_a_fingerprint_tells_data_apart(tmp_path):
    def of(folder, size=3, caption="a dog", name="x.jpg"):
        here = tmp_path / folder
        here.mkdir(exist_ok=True)
        for old in here.iterdir():
            old.unlink()
        (here / name).write_bytes(b"x" * size)
        (here / "y.jpg").write_bytes(b"y")
        return table(here, f"{name},{caption}\ny.jpg,a cat\n").fingerprint()

    first = of("one")
    assert of("two") == first
    assert first.keys() == {"pictures", "captions"}
    assert of("one", size=4)["pictures"] != first["pictures"]
    assert of("one", name="z.jpg")["pictures"] != first["pictures"]
    assert of("one", caption="a fox")["captions"] != first["captions"]


def test_shards(tmp_path):
    wds = pytest.importorskip("webdataset")
    from loupe_ext.data.shards import Shards

    samples = [
        {"__key__": "a", "jpg": b"1", "txt": b"a dog\na brown dog"},
        {"__key__": "b", "png": b"2", "json": b'{"width": 3, "caption": "a cat"}'},
        {"__key__": "c", "jpg": b"3", "json": b'{"captions": ["a fox", "foxes"]}', "cls": b"7"},
        {"__key__": "d", "jpg": b"4", "txt": "café".encode("latin-1")},
        {"__key__": "e", "jpg": b"5", "json": b"[1]"},
        {"__key__": "f", "jpg": b"6"},
        {"__key__": "g", "txt": b"a dog"},
        {"__key__": "h", "jpg": b"7", "webp": b"8", "txt": b"a dog"},
        {"__key__": "i.v1", "jpg": b"9", "txt": b"a bird"},
    ]
    for n in range(3):
        with wds.TarWriter(str(tmp_path / f"s-{n}.tar")) as writer:
            for sample in samples:
                writer.write(sample)
    shards = Shards(f"{tmp_path}/s-{{0..2}}.tar")
    assert len(shards) == 3
    found = list(shards.read(1))
    assert [(s.name[-5:], s.picture, s.captions) for s in found if not isinstance(s, Skip)] == [
        ("tar/a", b"1", ("a dog", "a brown dog")),
        ("tar/b", b"2", ("a cat",)),
        ("tar/c", b"3", ("a fox", "foxes")),
        ("tar/i", b"9", ("a bird",)),
    ]
    assert [(s.name[-1], s.reason) for s in found if isinstance(s, Skip)] == [
        ("d", "a caption that cannot be read"),
        ("e", "a caption that cannot be read"),
        ("f", "no caption"),
        ("g", "no picture"),
        ("h", "several pictures or captions under one name"),
    ]
    assert Shards(tmp_path / "s-*.tar").fingerprint() == shards.fingerprint() != Shards(shards.urls[:2]).fingerprint()
    for urls, message in (
        ("nowhere-{0..3}.tar", "no file nowhere-0.tar"),
        ([], "got none"),
        (f"{tmp_path}/*.zip", "no file"),
    ):
        with pytest.raises(ValueError, match=f"urls: expected .*{message}"):
            Shards(urls)
    whole = (tmp_path / "s-0.tar").read_bytes()
    (tmp_path / "s-0.tar").write_bytes(whole[:1500])
    (tmp_path / "s-2.tar").write_bytes(b"<html>" * 99)
    for part in (0, 2):
        *_, last = shards.read(part)
        assert last == (shards.urls[part], "a damaged shard: ReadError")
