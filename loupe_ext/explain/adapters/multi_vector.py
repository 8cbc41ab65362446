"""The multi-vector models of sentence-transformers (ColBERT, and ColPali by its `transformers` port)."""

from typing import Any, ClassVar

from torch import Tensor

from loupe_ext._checks import check_int
from loupe_ext.explain.adapters._tokens import Row, TokenModel
from loupe_ext.extras import needs


class MultiVectorTokens(TokenModel):
    """The tokens that a `MultiVectorEncoder` of sentence-transformers scores, as it scores them.

    A picture (PIL) is a document where the model takes pictures, its players the patches. The embeddings are those of
    `encode_query` and `encode_document`; those of a query are divided by their number where the model's similarity is
    "meanmaxsim", so that the score is `model.similarity`'s.

    Args:
        model: the model. Per token there must be one embedding: no token pooling.
        batch_size: documents encoded at a time.

    Raises:
        TypeError: the model is something else.
        ImportError: sentence-transformers is missing.
    """

    takes: ClassVar[str] = "a str or a picture (a PIL image)"

    def __init__(self, model: Any, batch_size: int = 32) -> None:
        with needs("sentence-transformers"):
            from sentence_transformers import MultiVectorEncoder
        if not isinstance(model, MultiVectorEncoder):
            raise TypeError(f"model: expected a MultiVectorEncoder, got {type(model).__name__}")
        self.model, self.tokenizer = model, model.tokenizer
        self.batch_size = check_int("batch_size", batch_size, 1, 2**20)

    def _encode(self, contents: list[Any], is_query: bool) -> list[Row]:
        encode = self.model.encode_query if is_query else self.model.encode_document
        found = encode(contents, output_value=None, batch_size=self.batch_size, show_progress_bar=False)
        rows = []
        for one in found:
            ids, scored, embeddings = one["input_ids"], one["attention_mask"].bool(), one["token_embeddings"]
            if len(ids) != len(embeddings):
                raise ValueError(f"model: expected an embedding per token, got {len(embeddings)} of {len(ids)} tokens")
            if is_query and self.model.similarity_fn_name == "meanmaxsim":
                embeddings = embeddings / scored.sum()
            rows.append(Row(ids, scored, embeddings))
        return rows

    def _prefix(self, is_query: bool) -> str:
        names = ("query",) if is_query else ("document", "passage", "corpus")  # as encode_query and encode_document
        return next((self.model.prompts[name] for name in names if name in self.model.prompts), None) or ""

    def _patches(self, picture: Any, ids: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        from sentence_transformers.multi_vector_encoder.interpretability import get_n_patches

        processor = self.model.processor
        patches = ids == self.tokenizer.convert_tokens_to_ids(processor.image_token)
        try:
            columns, rows = get_n_patches(self.model, picture.size)
        except (NotImplementedError, ValueError):  # patches in an order of its own
            return patches, None
        return patches, (rows, columns) if rows * columns == int(patches.sum()) else None
