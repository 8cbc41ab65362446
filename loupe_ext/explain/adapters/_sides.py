"""What the adapters share: the players of a picture and of a text, and which patches and tokens a mask leaves."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from loupe_ext._checks import check_choice, check_int, check_kind, check_tensor
from loupe_ext.data.pictures import read_picture
from loupe_ext.explain.players import Players
from loupe_ext.extras import needs
from loupe_ext.phrases import Chunker, chunk, tokens

Place = tuple[int, int]  # characters, first and one after the last; of no character where they are the same


def as_picture(picture: object) -> Tensor:
    """uint8 [H, W, 3] of a PIL image, a file or its content, or uint8 [H, W, 3] or [3, H, W]."""
    with needs("pillow"):
        from PIL import Image
    if isinstance(picture, str | bytes | os.PathLike):
        return read_picture(picture).permute(1, 2, 0)
    if isinstance(picture, Image.Image):
        picture = np.array(picture.convert("RGB"))
    if isinstance(picture, np.ndarray) and picture.dtype == np.uint8:
        picture = torch.from_numpy(picture)
    if not isinstance(picture, Tensor):
        raise TypeError(f"picture: expected a PIL image, a file or a uint8 tensor, got {type(picture).__name__}")
    check_tensor("picture", picture)
    if picture.dtype != torch.uint8 or picture.dim() != 3 or 0 in picture.shape or 3 not in picture.shape[::2]:
        raise ValueError(f"picture: expected uint8 [H, W, 3] or [3, H, W], got {picture.dtype} {tuple(picture.shape)}")
    return (picture if picture.shape[2] == 3 else picture.permute(1, 2, 0)).cpu()


def as_image(picture: object) -> Any:
    """The same as a PIL image."""
    found = as_picture(picture).numpy()
    from PIL import Image

    return Image.fromarray(found)


def as_pixels(picture: Tensor) -> Tensor:
    """uint8 of a picture floating [..., 3] on the scale of 0 to 1."""
    return (picture.float().cpu() * 255).round().clamp(0, 255).to(torch.uint8)


def picture_players(
    players: object, picture: Tensor, rows: int, columns: int, superpixels: object
) -> tuple[Players, Tensor]:
    """Players of a picture uint8 [H, W, 3] with an even grid of patches; and int64 [rows * columns], the player of each
    patch, -1 where it is always there.
    """
    if isinstance(players, Tensor):
        return _segments(players, picture, rows, columns)
    check_choice("players", players, ("patches", "superpixels"))
    if players == "superpixels":
        count = check_int("num_superpixels", superpixels, 1, 2**20)
        return _segments(_superpixels(picture, rows, columns, count), picture, rows, columns)
    cells = torch.arange(rows * columns).view(rows, columns)
    names = tuple(f"patch {row},{column}" for row in range(rows) for column in range(columns))
    return Players(names, picture=picture, cells=cells), cells.flatten()


def _segments(cells: Tensor, picture: Tensor, rows: int, columns: int) -> tuple[Players, Tensor]:
    check_tensor("players", cells)
    if cells.dtype != torch.int64 or cells.shape != (rows, columns):
        got = f"{cells.dtype} {tuple(cells.shape)}"
        raise ValueError(f"players: expected int64 [{rows}, {columns}], the player of each patch, got {got}")
    found = [i for i in cells.unique().tolist() if i != -1]
    if found != list(range(len(found))) or not found:
        raise ValueError(f"players: expected players numbered from 0 without a gap, or -1 for none, got {found[:20]}")
    return Players(tuple(f"region {i}" for i in found), picture=picture, cells=cells), cells.flatten().cpu()


def _superpixels(picture: Tensor, rows: int, columns: int, count: int) -> Tensor:
    """Per patch the SLIC superpixel (Achanta et al., PAMI 2012) that most of its pixels are in, numbered anew."""
    with needs("scikit-image"):
        from skimage.segmentation import slic
    pixels = torch.from_numpy(slic(picture.numpy(), n_segments=count, start_label=0, channel_axis=-1))
    patches = pixels.view(rows, len(pixels) // rows, columns, -1).transpose(1, 2).flatten(2)
    return patches.mode().values.unique(return_inverse=True)[1]


def text_players(
    players: object, text: str, places: Sequence[Place], chunker: Chunker = chunk
) -> tuple[Players, Tensor]:
    """Players of a text whose L tokens are at these places; and int64 [L], the player of each token, -1 where it is
    always there: marks of the tokenizer, and what touches no player.
    """
    check_choice("players", players, ("words", "phrases", "tokens"))
    check_kind("chunker", chunker, Callable, "a callable")
    if players == "tokens":
        found = [place for place in places if place[0] < place[1]]
        owner, numbers = [], iter(range(len(found)))
        owner = [next(numbers) if place[0] < place[1] else -1 for place in places]
    else:
        phrases = [(phrase.start, phrase.end) for phrase in chunker(text)] if players == "phrases" else []
        words = [
            (w.start, w.end) for w in tokens(text, "caption") if not any(a < w.end and w.start < b for a, b in phrases)
        ]
        every = sorted(phrases + words)
        owner = [
            next((i for i, (a, b) in enumerate(every) if a < end and start < b and start < end), -1)
            for start, end in places
        ]
        there = sorted(set(owner) - {-1})  # the others are cut off
        found, owner = [every[i] for i in there], [there.index(i) if i >= 0 else -1 for i in owner]
    if not found:
        raise ValueError(f"caption: expected a word or more, got {text[:80]!r}")
    names = tuple(text[start:end].strip() or text[start:end] for start, end in found)
    return Players(names, text, tuple(((start, end),) for start, end in found)), torch.tensor(owner)


def located(tokenizer: Any, text: object, **options: Any) -> tuple[Tensor, list[Place]]:
    """The ids int64 [L] that a tokenizer of `transformers` makes of a text, and the place of each.

    A slow tokenizer knows no places: a word begins behind as many tokens as the text before it has.
    """
    words = tokens(text, "caption")  # type: ignore[arg-type]
    assert isinstance(text, str)
    if getattr(tokenizer, "is_fast", False):
        found = tokenizer(text, return_offsets_mapping=True, **options)
        places = [(start, end) for start, end in found["offset_mapping"]]
    else:
        found = tokenizer(text, return_special_tokens_mask=True, **options)
        own = [i for i, mark in enumerate(found["special_tokens_mask"]) if not mark]
        places = [(0, 0)] * len(found["input_ids"])

        def count(part: str) -> int:
            return len(tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]) if part else 0

        for word in words:
            for i in own[count(text[: word.start].rstrip()) : count(text[: word.end])]:
                places[i] = (word.start, word.end)
    ids = found["input_ids"]
    marks = {getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "pad", "cls", "sep")}
    return torch.tensor(ids), [(0, 0) if i in marks else place for i, place in zip(ids, places, strict=True)]


def presence(masks: Tensor, owner: Tensor, device: torch.device) -> Tensor:
    """Of masks bool [K, n], which of T patches or tokens with these owners are there: bool [K, T]."""
    check_tensor("masks", masks)
    n = int(owner.max()) + 1
    if masks.dtype != torch.bool or masks.dim() != 2 or not len(masks) or masks.shape[1] != n:
        raise ValueError(f"masks: expected bool [K, {n}], K at least 1, got {masks.dtype} {tuple(masks.shape)}")
    always = torch.ones(len(masks), 1, dtype=torch.bool, device=device)
    return torch.cat([masks.to(device), always], 1)[:, owner.to(device)]  # -1 is the last


def by_size(encode: Callable[[Tensor, Tensor], Tensor], present: Tensor) -> Tensor:
    """Embeddings [K, d] of bool [K, T], a quarter of the rows at a time, those of like size together, so that little of
    what `packed` gives `encode` is padding: Shapley's coalitions have all sizes.
    """
    rows = present.sum(1).argsort()
    found = torch.cat([encode(*packed(present[some])) for some in rows.chunk(4)])
    return found[rows.argsort()]


def packed(present: Tensor) -> tuple[Tensor, Tensor]:
    """Of bool [K, T] the places int64 [K, m] of what is there, in order, and whether each is: m is the most of a row.

    A transformer that knows positions by what was added to its tokens gives the same for these as under a mask of all
    T, and half of the players are absent from most coalitions.
    """
    most = max(int(present.sum(1).max()), 1)
    places = present.byte().argsort(dim=1, descending=True, stable=True)[:, :most]
    return places, present.gather(1, places)


def additive(valid: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The attention mask [K, 1, m, m] that keys bool [K, m] are to have; None where all are there. (Eager attention
    adds what it is given: a mask of booleans would hide nothing.)
    """
    if valid.all():
        return None
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device).masked_fill_(~valid, torch.finfo(dtype).min)
    return mask[:, None, None].expand(-1, 1, valid.shape[1], -1)


def check_eval(model: nn.Module) -> None:
    if any(part.training for part in model.modules()):
        raise ValueError("model: expected one in evaluation mode (model.eval()), got one in training mode")
