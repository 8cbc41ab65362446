"""Pictures of every kind: right, or refused with the reason."""

import io
import os
import re
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import torch

pytest.importorskip("PIL")

from PIL import Image, ImageOps

from loupe_ext.data import pictures
from loupe_ext.data.pictures import BadPicture, read_picture

RGB = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)  # blocks of 8


def written(picture, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def array(tensor):
    assert tensor.dtype == torch.uint8
    assert tensor.is_contiguous()
    return tensor.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP"])
def test_colours_come_back(kind, tmp_path):
    content = written(Image.fromarray(RGB), kind, **({"lossless": True} if kind == "WEBP" else {}))
    (tmp_path / "a.picture").write_bytes(content)
    for picture in (content, tmp_path / "a.picture", str(tmp_path / "a.picture")):
        np.testing.assert_array_equal(array(read_picture(picture)), RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "TIFF", "PNG"])
def test_pictures_stand_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    content = written(Image.fromarray(RGB), kind, exif=exif, **options)
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
    assert expected.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    np.testing.assert_array_equal(array(read_picture(content)), expected)
    square = np.asarray(Image.fromarray(expected).resize((9, 9), Image.Resampling.BICUBIC))
    found = array(read_picture(content, 9, "squash"))
    assert np.abs(found.astype(int) - square).max() <= 2


def test_damaged_metadata_of_a_whole_picture():
    content = written(Image.fromarray(RGB), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\xff" * 40)
    assert read_picture(content).shape == (3, 16, 24)


def test_modes_of_eight_bits():
    grey = Image.fromarray(RGB[..., 0])
    for picture in (grey, grey.convert("1"), grey.convert("L")):
        expected = np.asarray(picture.convert("L"))
        np.testing.assert_array_equal(array(read_picture(written(picture))), expected[..., None].repeat(3, 2))
    palette = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    np.testing.assert_array_equal(array(read_picture(written(palette))), np.asarray(palette.convert("RGB")))
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))  # red
    for kind in ("JPEG", "TIFF"):
        found = read_picture(written(ink, kind))
        assert found[0].min() > 245
        assert found[1:].max() < 10


def test_what_is_transparent_is_white():
    alpha = np.zeros((16, 24), np.uint8)
    alpha[:, 8:16], alpha[:, 16:] = 128, 255
    grey = np.full_like(alpha, 100)
    expected = np.broadcast_to(np.array([255, 177, 100], np.uint8).repeat(8)[:, None], (16, 24, 3))
    for picture in (Image.fromarray(np.dstack([grey, alpha])), Image.fromarray(np.dstack([grey, grey, grey, alpha]))):
        np.testing.assert_array_equal(array(read_picture(written(picture))), expected)
        small = array(read_picture(written(picture), 3, "squash"))
        assert np.all(np.abs(small[:, [0, 2]].astype(int) - [[[255], [100]]]) < 20), small  # no black around the edges
    palette = Image.new("P", (4, 2), 1)
    palette.putpalette([1, 2, 3, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    for kind in ("PNG", "GIF"):
        found = array(read_picture(written(palette, kind, transparency=0)))
        assert found[0, 0].tolist() == [255, 255, 255]
        assert found[1, 3].tolist() == [10, 20, 30]
    keyed = Image.new("RGB", (4, 2), (10, 20, 30))
    assert array(read_picture(written(keyed, transparency=(10, 20, 30))))[0, 0].tolist() == [255, 255, 255]


@pytest.mark.parametrize(
    ("values", "kind", "shown"),
    [
        (np.array([[0, 257, 32896, 65535]], np.uint16), "PNG", [0, 1, 128, 255]),
        (np.array([[0, 257, 32896, 65535]], np.uint16), "TIFF", [0, 1, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), "TIFF", [0, 100, 255]),
        (np.array([[0, 257, 65535]], np.int32), "TIFF", [0, 1, 255]),
        (np.array([[-(2**31), 0, 2**31 - 1]], np.int32), "TIFF", [0, 128, 255]),
        (np.array([[0, 0.5, 1]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[0, 0.5, 200]], np.float32), "TIFF", [0, 0, 200]),
        (np.array([[-3e38, 0, 3e38]], np.float32), "TIFF", [0, 128, 255]),
        (np.array([[-2, -2, -2]], np.float32), "TIFF", [0, 0, 0]),
    ],
)
def test_grey_levels_of_more_than_eight_bits(values, kind, shown):
    found = array(read_picture(written(Image.fromarray(values), kind)))
    np.testing.assert_array_equal(found, np.array([[[x] * 3 for x in shown]]))


def test_big_endian_grey_levels():
    tags = [(256, 4), (257, 1), (258, 16), (259, 1), (262, 1), (273, 122), (277, 1), (278, 1), (279, 8)]
    directory = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    content = b"MM\0*\0\0\0\x08" + struct.pack(">H", len(tags)) + directory + b"\0\0\0\0"
    content = content.ljust(122, b"\0") + struct.pack(">4H", 0, 257, 32896, 65535)
    assert array(read_picture(content))[0, :, 0].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = written(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert array(read_picture(content))[0, 0].tolist() == [255, 0, 0]


def test_shapes_of_every_proportion():
    dot = written(Image.new("RGB", (1, 1), (9, 8, 7)))
    assert read_picture(dot).flatten().tolist() == [9, 8, 7]
    for shape in ((1, 1), (20_000, 1), (20_000, 3), (1, 20_000)):
        content = written(Image.new("RGB", shape, (9, 8, 7)))
        for fit in ("crop", "squash"):
            found = read_picture(content, 5, fit)
            assert found.shape == (3, 5, 5)
            assert (found == torch.tensor([9, 8, 7])[:, None, None]).all()
    striped = np.zeros((8, 24, 3), np.uint8)
    striped[:, 8:16] = 255
    assert (read_picture(written(Image.fromarray(striped)), 8) == 255).all()
    assert (read_picture(written(Image.fromarray(striped)), 3, "squash")[:, :, ::2] < 40).all()


def test_a_large_jpeg_is_decoded_small(monkeypatch):
    """Near what the whole decoded picture gives; and within the limit, which the whole one is not."""
    waves = np.add.outer(np.arange(600), 2 * np.arange(900))[..., None] * np.array([0.01, 0.02, 0.03])
    picture = Image.fromarray(((np.sin(waves) + 1) * 127).astype(np.uint8))
    jpeg = written(picture, "JPEG", quality=98)
    for fit, whole in (("crop", picture.crop((150, 0, 750, 600))), ("squash", picture)):
        expected = np.asarray(whole.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
        assert np.abs(array(read_picture(jpeg, 32, fit)) - expected).mean() < 2
    monkeypatch.setattr(pictures, "MOST_PIXELS", 400_000)
    assert read_picture(jpeg, 32).shape == (3, 32, 32)
    with pytest.raises(BadPicture, match="too many pixels"):
        read_picture(jpeg)


def test_bombs_are_refused_before_they_are_decoded():
    for shape in ((30_000, 30_000), (10_000, 10_000)):  # beyond Pillow's limit and beyond ours
        header = struct.pack(">IIBBBBB", *shape, 8, 2, 0, 0, 0)
        content = written(Image.new("RGB", (1, 1)))
        content = content[:16] + header + struct.pack(">I", 0) + content[33:]
        content = content[:29] + struct.pack(">I", zlib.crc32(content[12:29])) + content[33:]
        tracemalloc.start()
        with pytest.raises(BadPicture, match="too many pixels"):
            read_picture(content, 8)
        assert tracemalloc.get_traced_memory()[1] < 2**22
        tracemalloc.stop()


def test_what_shows_no_whole_picture_says_why(tmp_path):
    jpeg = written(Image.fromarray(RGB.repeat(20, 0).repeat(20, 1)), "JPEG")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "locked.png").write_bytes(b"x")
    not_finite = written(Image.fromarray(np.array([[0, np.nan]], np.float32)), "TIFF")
    cases = {
        "an empty file": b"",
        "no picture": b"<html>404</html>",
        "a damaged picture": jpeg[: len(jpeg) // 2],
        "no such file": tmp_path / "nowhere.jpg",
        "a folder": tmp_path,
        "no regular file": tmp_path / "pipe",
        "grey levels that are not finite": not_finite,
        "a file that cannot be read": tmp_path / ("x" * 300),
    }
    for reason, picture in cases.items():
        name = f"{len(picture)} bytes" if isinstance(picture, bytes) else str(picture)
        with pytest.raises(
            BadPicture, match=f"picture: expected a whole one in {re.escape(name)}, got {reason}"
        ) as bad:
            read_picture(picture)
        assert bad.value.reason == reason


def test_damaged_bytes_give_a_picture_or_the_error():
    rng = np.random.default_rng(0)
    refused = 0
    for kind in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"):
        content = np.frombuffer(written(Image.fromarray(RGB), kind), np.uint8)
        for _ in range(60):
            damaged = content[: rng.integers(1, len(content) + 1)].copy()
            damaged[rng.integers(0, len(damaged), 4)] = rng.integers(0, 256, 4)
            try:
                assert read_picture(damaged.tobytes(), 4).shape == (3, 4, 4)
            except BadPicture:
                refused += 1
    assert refused > 60
