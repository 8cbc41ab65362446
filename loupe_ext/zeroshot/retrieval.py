"""Zero-shot image-text retrieval."""

import sys

import torch
from torch import Tensor

from loupe_ext._checks import check_features, check_int, check_same, check_tensor


def recalls(
    image_to_text: Tensor,
    text_to_image: Tensor | None = None,
    at: tuple[int, ...] = (1, 5),
    image_of_caption: Tensor | None = None,
) -> dict[str, float]:
    """Recall at K both ways: how often a match is among the K most similar.

    An image is found a text for if any of its captions is among the K most similar texts; each caption counts as a
    query of its own the other way (the protocol of Karpathy and Fei-Fei, CVPR 2015).

    Args:
        image_to_text: [n, m] floating similarities; entry i, j is of image i and caption j.
        text_to_image: [n, m], the same for the other way, where the two ways score differently. None: the same.
        at: the K, 1 or more.
        image_of_caption: [m] int64, the image that each caption is of; each image has one or more. None: m = n, and
            caption i is of image i.

    Returns:
        "i2t_r1", "t2i_r1", ... in 0..1. What ties with the match counts as better than it (an image's own captions do
        not compete with each other), and so does NaN. A match whose own similarity is not finite is a miss at every K.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape, dtype or value.
    """
    if text_to_image is None:
        text_to_image = image_to_text
    for name, similarity in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        check_features(name, similarity, "nm")
        if image_of_caption is None and similarity.shape[0] != similarity.shape[1]:
            raise ValueError(
                f"{name}: expected a square [n, n] without image_of_caption, got {tuple(similarity.shape)}"
            )
    check_same("text_to_image", text_to_image, "image_to_text", image_to_text, {"n": (0, 0), "m": (1, 1)})
    if not isinstance(at, tuple | list) or not at:
        raise TypeError(f"at: expected a tuple of ints, got {at!r}")
    at = tuple(check_int("at", k, 1, sys.maxsize) for k in at)
    n, m = image_to_text.shape
    if image_of_caption is None:
        image_of_caption = torch.arange(n, device=image_to_text.device)
    check_tensor("image_of_caption", image_of_caption)
    if image_of_caption.shape != (m,) or image_of_caption.dtype != torch.int64:
        got = f"{image_of_caption.dtype} {tuple(image_of_caption.shape)}"
        raise ValueError(f"image_of_caption: expected int64 of shape [{m}], got {got}")
    check_same("image_of_caption", image_of_caption, "image_to_text", image_to_text, {})
    present = image_of_caption.unique()
    if not torch.equal(present, torch.arange(n, device=present.device)):
        raise ValueError(f"image_of_caption: expected each of 0 to {n - 1}, got {present.tolist()[:5]} ...")
    own = image_of_caption == torch.arange(n, device=present.device)[:, None]  # [n, m]
    result: dict[str, float] = {}
    for way, similarity, match in (("i2t", image_to_text, own), ("t2i", text_to_image.T, own.T)):
        best = similarity.masked_fill(~(match & similarity.isfinite()), -torch.inf).amax(1, keepdim=True)
        better = (~(similarity < best) & ~match).sum(1)
        found = best[:, 0] > -torch.inf
        result |= {f"{way}_r{k}": (found & (better < k)).double().mean().item() for k in at}
    return result
