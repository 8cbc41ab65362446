"""What only evaluation may see: the true boxes of phrases and objects."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import (
    check_device,
    check_floating,
    check_int,
    check_kind,
    check_names,
    check_number,
    check_tensor,
    shown,
)
from loupe_ext.data.pairs import Pairs, Vocabulary, check_images, encode_all
from loupe_ext.phrases.phrase import Chunker, Phrase


@dataclass(frozen=True)
class Grounded:
    """Pairs with the true boxes of every phrase and object. Evaluation takes this; training takes its `pairs`.

    Attributes:
        pairs: n captioned images.
        boxes: [n, P, 4] float32, x0, y0, x1, y1 in pixels of each phrase's object; NaN where there is no phrase.
        objects: [n, K, 4] float32, the boxes of all objects, also of those that the caption does not name; NaN where
            there is none.
        classes: [n, K] int64, what each object is, an index of `prompts`; -1 where there is none.
        prompts: what a caption would call an object of each class, in the words of the vocabulary.
    """

    pairs: Pairs
    boxes: Tensor
    objects: Tensor
    classes: Tensor
    prompts: tuple[str, ...]

    def __post_init__(self) -> None:
        check_kind("pairs", self.pairs, Pairs, "Pairs")
        for name in ("boxes", "objects", "classes"):
            check_tensor(name, getattr(self, name))
            check_device(name, getattr(self, name), "pairs.images", self.pairs.images)
        check_floating("boxes", self.boxes)
        check_floating("objects", self.objects)
        check_names("prompts", self.prompts)
        shape = (*self.pairs.spans.shape[:2], 4)
        if self.boxes.shape != shape:
            raise ValueError(f"boxes: expected shape {shape}, got {tuple(self.boxes.shape)}")
        check_objects(self.objects, self.classes, len(self), len(self.prompts))

    @classmethod
    def from_captions(
        cls,
        images: Tensor,
        captions: Sequence[str],
        phrases: Sequence[Sequence[tuple[int, int, Sequence[float] | None]]],
        vocabulary: Vocabulary | None = None,
        longest: int = 60,
    ) -> "Grounded":
        """Images with raw captions, whose phrases are given by their characters, each with its box, if it has one.

            caption, door = "A dog at the red door.", (60, 8, 90, 64)
            scenes = Grounded.from_captions(images, [caption], [[(0, 5, (4, 20, 40, 60)), (9, 21, door)]], vocabulary)
            evaluate(model, scenes)

        It has no objects besides the phrases', and no classes: for detection, `dataclasses.replace` them.

        Args:
            images, captions, longest: as in `Pairs.from_captions`.
            phrases: of each caption, (start, end, box) in order and apart from each other: the characters
                caption[start:end], and x0, y0, x1, y1 in pixels, or None where the image shows no such thing.
            vocabulary: the one that the model was trained with. None: as in `Pairs.from_captions`.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; a caption has no word.
        """
        check_images(images)
        captions = check_names("captions", captions)
        check_kind("phrases", phrases, Sequence, "a sequence")
        if not len(images) == len(captions) == len(phrases):
            got = f"{len(captions)} and {len(phrases)}"
            raise ValueError(f"captions, phrases: expected one per image ({len(images)}), got {got}")
        given = [_given(f"phrases[{i}]", of, text) for i, (of, text) in enumerate(zip(phrases, captions, strict=True))]
        vocabulary = Vocabulary.of(captions) if vocabulary is None else vocabulary
        chunkers: list[Chunker] = [lambda text, found=found: found for found, _ in given]  # type: ignore[misc]
        words, spans, lengths, characters = encode_all("captions", captions, vocabulary, chunkers, longest)
        boxes = torch.full((*characters.shape[:2], 4), torch.nan)
        for row, where, (_, of) in zip(boxes, characters.tolist(), given, strict=True):
            for k, at in enumerate(where):
                row[k] = torch.tensor(of.get(tuple(at), [torch.nan] * 4))
        none = torch.zeros(len(images), 0, dtype=torch.int64)
        pairs = Pairs(images, words, spans, lengths, vocabulary, characters)
        return cls(pairs, boxes, boxes.new_zeros(len(images), 0, 4), none, ())

    def __len__(self) -> int:
        return len(self.pairs)


def _given(name: str, phrases: Any, text: str) -> tuple[list[Phrase], dict[tuple[int, int], list[float]]]:
    """The phrases of a caption that are given by their characters, and the boxes of those that have one."""
    check_kind(name, phrases, Sequence, "a sequence of (start, end, box)")
    found, boxes, last = [], {}, 0
    for k, phrase in enumerate(phrases):
        if not isinstance(phrase, Sequence) or len(phrase) != 3:
            raise TypeError(f"{name}[{k}]: expected (start, end, box), got {shown(phrase)}")
        start = check_int(f"{name}[{k}]: start", phrase[0], last, len(text))
        end = last = check_int(f"{name}[{k}]: end", phrase[1], start + 1, len(text))
        found.append(Phrase(text[start:end], start, end, 0, 0))
        if phrase[2] is None:
            continue
        x0, y0, x1, y1 = box = _box(f"{name}[{k}]: box", phrase[2])
        if not (x0 < x1 and y0 < y1):
            raise ValueError(f"{name}[{k}]: box: expected x0 < x1 and y0 < y1, got {box}")
        boxes[start, end] = box
    return found, boxes


def _box(name: str, box: Any) -> list[float]:
    box = box.tolist() if isinstance(box, Tensor) else box
    if not isinstance(box, Sequence) or isinstance(box, str) or len(box) != 4:
        raise TypeError(f"{name}: expected x0, y0, x1, y1, got {shown(box)}")
    return [check_number(name, x) for x in box]


def check_objects(objects: Tensor, classes: Tensor, n: int, count: int) -> None:
    """Raise unless these are the boxes [n, K, 4] and the classes [n, K], of `count`, of the objects of n images."""
    if classes.dim() != 2 or len(classes) != n or classes.dtype != torch.int64:
        raise ValueError(f"classes: expected int64 of shape [{n}, *], got {classes.dtype} {tuple(classes.shape)}")
    if objects.shape != (*classes.shape, 4):
        raise ValueError(f"objects: expected shape {(*classes.shape, 4)}, got {tuple(objects.shape)}")
    if ((classes < -1) | (classes >= count)).any():
        raise ValueError(f"classes: expected -1 to {count - 1}, got {classes.min()} to {classes.max()}")
    if not objects[classes >= 0].isfinite().all():
        raise ValueError("objects: expected finite boxes of all objects, got NaN or infinity")
