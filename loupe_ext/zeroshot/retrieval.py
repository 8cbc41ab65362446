"""Zero-shot image-text retrieval."""

from torch import Tensor


def recalls(
    image_to_text: Tensor, text_to_image: Tensor | None = None, at: tuple[int, ...] = (1, 5)
) -> dict[str, float]:
    """Recall at K both ways: how often the match is among the K most similar.

    Args:
        image_to_text: [n, n] similarities; entry i, j is of image i and text j, and i matches i.
        text_to_image: the same for the other way, where the two ways score differently. None: the same.
        at: the K.

    Returns:
        "i2t_r1", "t2i_r1", ... in 0..1. A text that ties with the match counts as better than it; so does NaN.
    """
    if text_to_image is None:
        text_to_image = image_to_text
    for name, similarity in (("image_to_text", image_to_text), ("text_to_image", text_to_image)):
        if similarity.dim() != 2 or similarity.shape[0] != similarity.shape[1] or not len(similarity):
            raise ValueError(f"{name}: expected a square [n, n], n > 0, got {tuple(similarity.shape)}")
    result: dict[str, float] = {}
    for way, similarity in (("i2t", image_to_text), ("t2i", text_to_image.T)):
        better = (~(similarity < similarity.diagonal()[:, None])).sum(1)  # the match itself among them
        result |= {f"{way}_r{k}": (better <= k).double().mean().item() for k in at}
    return result
