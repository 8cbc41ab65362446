"""Sentence embedders of the library `sentence-transformers`, explained: two texts are the two sides."""

from typing import Any

import torch
from torch import Tensor

from loupe_ext._checks import shown
from loupe_ext._dtypes import at_least_float32, directions
from loupe_ext.explain.adapters._sides import located, presence, text_players
from loupe_ext.explain.encoders import MaskedEncoder
from loupe_ext.extras import needs
from loupe_ext.phrases import Chunker, chunk
from loupe_ext.phrases.phrase import check_text


class SentenceEncoders:
    """Texts of a sentence embedder with only some of their words present.

    ```
    encoders = SentenceEncoders(SentenceTransformer("all-MiniLM-L6-v2"))
    query, document = encoders.text("why is it closed?"), encoders.text("The bridge is being repaired.")
    explained = explain_dual_encoder(query, document)
    ```

    Embeddings have length one, so that their product is the cosine. With all players present they are the directions of
    `model.encode`. An absent token is hidden by the attention mask, from attention and from pooling; the others keep
    their positions. The tokenizer's marks and a prompt are always there; a text without either has, with no word left,
    the embedding 0.

    Args:
        model: a `SentenceTransformer` whose first module is a transformer that takes an attention mask. It is put in
            evaluation mode, as `model.encode` does.

    Raises:
        ImportError: `sentence-transformers` is not installed. TypeError: the model is of another kind.
    """

    def __init__(self, model: Any) -> None:
        with needs("sentence-transformers"):
            from sentence_transformers import SentenceTransformer
        if not isinstance(model, SentenceTransformer):
            raise TypeError(f"model: expected a SentenceTransformer, got {type(model).__name__}")
        self.model: Any = model

    def text(
        self, caption: str, players: str = "words", *, prompt: str | None = None, chunker: Chunker = chunk
    ) -> MaskedEncoder:
        """A text with only some of its words.

        Args:
            caption: cut off behind the model's `max_seq_length`.
            players: "words", and punctuation marks; "phrases": noun phrases, and the words and marks outside them;
                "tokens".
            prompt: what is put before it, such as `model.prompts["query"]`; None: the model's default.
            chunker: from a text to its noun phrases: the rules, `SpacyChunker(nlp)`, or your own.

        Raises:
            TypeError, ValueError: an argument has the wrong type or value; the caption has no word; the model's
                embedding depends on tokens that its attention mask hides.
        """
        if prompt is None:
            prompt = self.model.prompts.get(self.model.default_prompt_name) or ""
        if not isinstance(prompt, str):
            raise TypeError(f"prompt: expected None or a str, got {shown(prompt)}")
        caption = check_text("caption", caption)
        features = self.model.preprocess([caption], prompt=check_text("prompt", prompt) or None)
        if "attention_mask" not in features or "input_ids" not in features:
            raise ValueError(f"model: expected one that takes an attention mask, got {type(self.model[0]).__name__}")
        options = {"truncation": True, "max_length": self.model.max_seq_length}
        ids, places = located(self.model.tokenizer, prompt + caption, **options)
        if not torch.equal(ids, features["input_ids"][0].cpu()):
            raise ValueError("model: expected the tokens of its tokenizer, got others from its preprocessing")
        ahead = len(prompt)
        places = [(max(a, ahead) - ahead, b - ahead) if b > max(a, ahead) else (0, 0) for a, b in places]
        found, owner = text_players(players, caption, places, chunker)

        @torch.no_grad()
        def encode(masks: Tensor, ids: Tensor = ids) -> Tensor:
            self.model.eval()
            device = self.model.device
            present = presence(masks, owner, device)
            inputs = {
                key: x.to(device).expand(len(masks), -1) if isinstance(x, Tensor) and x.dim() == 2 else x
                for key, x in features.items()
            }
            inputs |= {"input_ids": ids.to(device).expand(len(masks), -1), "attention_mask": present.long()}
            found = self.model(inputs)["sentence_embedding"][:, : self.model.truncate_dim]
            found = torch.where(present.any(1, keepdim=True), found, 0)
            return directions(at_least_float32(found))

        self._check_unseen(encode, ids, owner)
        return MaskedEncoder(encode, found)

    def _check_unseen(self, encode: Any, ids: Tensor, owner: Tensor) -> None:
        """Any architecture may be in a SentenceTransformer: hide every other player, then all others."""
        n = int(owner.max()) + 1
        even = torch.arange(n)[None] % 2 == 0
        masks = torch.cat([even, ~even])
        others = torch.where(presence(masks, owner, ids.device), ids, (ids + 1) % len(self.model.tokenizer))
        moved = (encode(masks) - encode(masks, others)).abs().max()
        if not moved <= 1e-4:
            raise ValueError(
                f"model: expected an embedding of what its attention mask leaves, got one that moves by {moved:.2g} "
                "with the tokens that it hides"
            )
