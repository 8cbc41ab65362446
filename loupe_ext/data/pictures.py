"""Pictures of every kind that people have, as RGB; and what is said of those that cannot be read."""

import io
import os
import stat
import warnings
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from loupe_ext._checks import check_choice, check_int
from loupe_ext._io import check_path
from loupe_ext.extras import needs

MOST_PIXELS = 2**26  # decoded, which takes up to 0.8 GB (an RGBA one)
_UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # from EXIF's orientation to Pillow's Transpose


class BadPicture(ValueError):  # noqa: N818
    """A file that shows no whole picture: `reason` says why in a few words, the same for all files of its kind."""

    def __init__(self, name: str, reason: str, detail: object = "") -> None:
        super().__init__(f"picture: expected a whole one in {name}, got {reason}{f' ({detail})' if detail else ''}")
        self.reason = reason


def read_picture(picture: bytes | str | os.PathLike[str], size: int | None = None, fit: str = "crop") -> Tensor:
    """A picture as people see it: [3, H, W] uint8, RGB.

    It is turned as its EXIF orientation says. What is transparent shows white. Of an animation the first frame
    counts.
    Grey levels of 16 bits keep their brightness; of 32 bits, integer or floating, 0 is black, and white is 1 (floating
    ones), 255 or 65535, the least that holds all values; from the lowest to the highest value where none does. Colour
    profiles are not applied.

    Args:
        picture: a file, or its content.
        size: the height and width of the result; None: as it is. A large JPEG is then decoded at 1/2, 1/4 or 1/8, never
            below twice this size.
        fit: "crop": the square in the middle, resized; "squash": all of it, resized to a square.

    Raises:
        BadPicture: there is no such file, it is no picture, or damaged, or has more than 67 million pixels to decode.
        ImportError: Pillow is not installed.
    """
    size = None if size is None else check_int("size", size, 1, 2**13)
    check_choice("fit", fit, ("crop", "squash"))
    name = f"{len(picture)} bytes" if isinstance(picture, bytes) else os.fspath(check_path("picture", picture))
    try:
        with _opened(picture, name) as file:
            return _decoded(file, name, size, fit)
    except OSError as error:
        raise BadPicture(name, "a file that cannot be read", error.strerror or error) from None


def _opened(picture: bytes | str | os.PathLike[str], name: str) -> BinaryIO:
    if isinstance(picture, bytes):
        return io.BytesIO(picture)
    try:
        kind = os.stat(picture).st_mode
    except (FileNotFoundError, ValueError):  # or no name that a file can have
        raise BadPicture(name, "no such file") from None
    if not stat.S_ISREG(kind):  # a pipe would wait for its writer
        raise BadPicture(name, "a folder" if stat.S_ISDIR(kind) else "no regular file")
    return open(picture, "rb")


def _decoded(file: BinaryIO, name: str, size: int | None, fit: str) -> Tensor:
    with needs("pillow"):
        from PIL import Image, UnidentifiedImageError
    if not file.read(1):
        raise BadPicture(name, "an empty file")
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are checked here
            with Image.open(file) as opened:
                shown = _rgb(opened, name, size, fit)
    except BadPicture:
        raise
    except UnidentifiedImageError:
        raise BadPicture(name, "no picture") from None
    except Image.DecompressionBombError as error:
        raise BadPicture(name, "too many pixels", error) from None
    except Exception as error:  # decoders raise anything
        raise BadPicture(name, "a damaged picture", f"{type(error).__name__}: {error}") from None
    return torch.from_numpy(np.asarray(shown).transpose(2, 0, 1).copy())


def _rgb(picture: Any, name: str, size: int | None, fit: str) -> Any:
    from PIL import Image

    small = None
    if size is not None:
        by = 2 * size / min(picture.size)
        small = picture.draft(None, [max(1, round(side * by)) if fit == "crop" else 2 * size for side in picture.size])
    if picture.width * picture.height > MOST_PIXELS:
        raise BadPicture(name, "too many pixels", f"{picture.width} x {picture.height}")
    picture.load()
    try:
        turn = _UPRIGHT.get(picture.getexif().get(0x0112))
    except Exception:  # damaged metadata of a picture that is whole
        turn = None
    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = Image.fromarray(_grey(np.asarray(picture), name))
    elif picture.mode in ("LA", "PA", "RGBA", "RGBa") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    elif picture.mode != "RGB":
        picture = picture.convert("RGB")
    if size is not None:
        extent = picture.size if small is None else small[1][2:]  # a draft's last pixels may show less than the others
        side = min(extent)
        left, top = ((along - side) / 2 for along in extent)
        box = (left, top, left + side, top + side) if fit == "crop" else (0, 0, *extent)
        picture = picture.resize((size, size), Image.Resampling.BICUBIC, box)
    if turn is not None:
        picture = picture.transpose(Image.Transpose(turn))
    if picture.mode == "RGBA":
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")


def _grey(values: np.ndarray, name: str) -> np.ndarray:
    """Grey levels of more than 8 bits as uint8."""
    low, high = 0.0, 65535.0
    if values.dtype.itemsize > 2:
        least, most = float(values.min()), float(values.max())
        if not np.isfinite([least, most]).all():
            raise BadPicture(name, "grey levels that are not finite")
        whites = [white for white in ((1.0,) if values.dtype.kind == "f" else ()) + (255.0, 65535.0) if most <= white]
        low, high = (0.0, whites[0]) if least >= 0 and whites else (least, most)
    by = 255 / max(high - low, 1e-30)
    return (values * np.float32(by) - np.float32(low * by)).round().clip(0, 255).astype(np.uint8)
