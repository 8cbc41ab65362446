"""The ColBERT models of PyLate."""

from typing import Any

from loupe_ext._checks import check_int
from loupe_ext.explain.adapters._tokens import Row, TokenModel


class PylateTokens(TokenModel):
    """The tokens that a `pylate.models.ColBERT` scores, as it scores them.

    Documents leave out its skiplist of punctuation. Most of a query's tokens are its expansion by [MASK]. (PyLate 1.6
    installs with sentence-transformers 5.3 and transformers up to 5.3, so not beside the extra sentence-transformers.)

    Args:
        model: the model.
        batch_size: documents encoded at a time.

    Raises:
        TypeError: the model is something else.
    """

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        if not all(hasattr(model, name) for name in ("encode", "skiplist", "query_length")):
            raise TypeError(f"model: expected a ColBERT model of PyLate, got {type(model).__name__}")
        self.model, self.tokenizer = model, model.tokenizer
        self.batch_size = check_int("batch_size", batch_size, 1, 2**20)

    def _encode(self, contents: list[Any], is_query: bool) -> list[Row]:
        options = {"convert_to_tensor": True, "show_progress_bar": False, "batch_size": self.batch_size}
        found = self.model.encode(contents, is_query=is_query, output_value=None, **options)
        parts = (found[name] for name in ("input_ids", "masks", "token_embeddings"))
        return [Row(ids, mask.bool(), embeddings) for ids, mask, embeddings in zip(*parts, strict=True)]

    def _prefix(self, is_query: bool) -> str:
        return self.model.prompts.get(self.model.default_prompt_name) or ""
