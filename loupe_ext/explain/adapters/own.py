"""Our own `DualEncoder`, explained."""

from typing import Any

import torch
from torch import Tensor

from loupe_ext.data.pairs import Vocabulary
from loupe_ext.data.stream import WordTokenizer
from loupe_ext.explain.adapters._sides import (
    as_picture,
    check_eval,
    packed,
    picture_players,
    presence,
    text_players,
)
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.model.dual import DualEncoder
from loupe_ext.model.features import device_of
from loupe_ext.phrases import Chunker, chunk


class OwnEncoders:
    """Images and captions of a `DualEncoder` with only some of their players present.

    ```
    encoders = OwnEncoders(from_pretrained(folder).model)
    explained = explain_dual_encoder(encoders.image(picture), encoders.text("a red square above a blue circle"))
    ```

    Embeddings have length one, or are 0 of a caption without a word, so that their product is the cosine; no
    temperature is applied. With all players present they are `encode_image(...).pooled` and `encode_text(...).pooled`.

    An image encoder of convolutions sees beyond its patches: the pixels of absent ones are the mean of those present,
    grey where none is. Absent words are taken out: what is left moves together, in the phrases of the whole caption.

    Args:
        model: in evaluation mode.
        vocabulary: whose ids it has learned; None: the model's own.
        longest: the ids that are kept of a caption.

    Raises:
        TypeError, ValueError: an argument has the wrong type; the model knows no vocabulary.
    """

    def __init__(self, model: DualEncoder, vocabulary: Vocabulary | None = None, longest: int = 60) -> None:
        if not isinstance(model, DualEncoder):
            raise TypeError(f"model: expected a DualEncoder, got {type(model).__name__}")
        vocabulary = model.vocabulary if vocabulary is None else vocabulary
        if vocabulary is None:
            raise ValueError("vocabulary: expected the one that the model has learned, got None")
        self.model, self.vocabulary, self.longest = model, vocabulary, longest
        WordTokenizer(vocabulary, longest=longest)  # checks them

    @torch.no_grad()
    def image(self, picture: Any, players: str | Tensor = "patches", *, num_superpixels: int = 24) -> MaskedEncoder:
        """An image with only some of its patches, those of the image encoder.

        Args:
            picture: a PIL image, a file or its content, or uint8 [H, W, 3] or [3, H, W], of a size that the model
                takes.
            players: "patches"; "superpixels": SLIC's, each with the patches that lie in it for the most part; or int64
                [rows, columns], the player of each patch, from 0, or -1: always there.
            num_superpixels: about how many.

        Raises:
            TypeError, ValueError: an argument has the wrong type, shape or value; the model is in training mode.
            ImportError: superpixels without scikit-image.
        """
        check_eval(self.model)
        seen = as_picture(picture)
        pixels = seen.permute(2, 0, 1)[None]
        rows, columns = self.model.image(pixels.to(device_of(self.model))).shape[1:3]
        found, owner = picture_players(players, seen, rows, columns, num_superpixels)
        down, across = (torch.arange(n) * m // n for n, m in zip(seen.shape, (rows, columns), strict=False))
        owner = owner.view(rows, columns)[down[:, None], across].flatten()  # of each pixel

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            device = device_of(self.model)
            present = presence(masks, owner, device).view(-1, 1, *seen.shape[:2])
            image = pixels.to(device).float()
            count = present.sum((2, 3), keepdim=True)
            mean = torch.where(count == 0, 128, (image * present).sum((2, 3), keepdim=True) / count)
            return self.model.encode_image(torch.where(present, image, mean.round()).to(torch.uint8)).pooled

        return MaskedEncoder(encode, found)

    def text(self, caption: str, players: str = "words", *, chunker: Chunker = chunk) -> MaskedEncoder:
        """A caption with only some of its words.

        Args:
            players: "words", and punctuation marks; "phrases": noun phrases, and the words and marks outside them;
                "tokens".
            chunker: from a text to its noun phrases, for the model too: the rules, `SpacyChunker(nlp)`, or your own.

        Raises:
            TypeError, ValueError: an argument has the wrong type or value; the caption has no word, or one that the
                vocabulary lacks; the model is in training mode.
        """
        check_eval(self.model)
        inputs = WordTokenizer(self.vocabulary, chunker, self.longest)([caption])
        frame, ids, spans = int(self.vocabulary.framed), inputs["tokens"][0], inputs["spans"][0]
        starts = [start for _, start in self.vocabulary.located(caption)] + [len(caption)]
        places = [(starts[i], starts[i + 1]) for i in range(len(ids))]
        if frame:
            places[0] = places[-1] = (0, 0)
        found, owner = text_players(players, caption, places, chunker)

        @torch.no_grad()
        def encode(masks: Tensor) -> Tensor:
            check_eval(self.model)
            device = device_of(self.model)
            present = presence(masks, owner, device)
            at, there = packed(present)
            before = torch.nn.functional.pad(present.cumsum(1), (1, 0))  # how many are present ahead of a token
            lengths = inputs["phrase_lengths"].to(device).expand(len(masks))
            return self.model.encode_text(ids.to(device)[at] * there, before[:, spans.to(device)], lengths).pooled

        return MaskedEncoder(encode, found)
