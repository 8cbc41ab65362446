"""The models of colpali-engine: ColPali, ColQwen2 and their like, whose documents are pictures of pages."""

import inspect
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from loupe_ext.explain.adapters._tokens import Row, TokenModel


class ColpaliTokens(TokenModel):
    """The tokens that a model of colpali-engine scores, as its `score_multi_vector` does.

    The players of a picture (PIL) are its patches. The prompt around it, a query's prefix and the tokens that pad it
    out are special. Each document is encoded by itself: in a batch of several, colpali-engine scores the padding of the
    shorter too, at 0. Where patches are no even grid over the picture (Idefics3 cuts it up), they have no place.

    Args:
        model, processor: the two of one kind, such as ColPali and ColPaliProcessor.

    Raises:
        TypeError: one of them is something else.
    """

    takes: ClassVar[str] = "a str or a picture (a PIL image)"

    def __init__(self, model: Any, processor: Any) -> None:
        if not isinstance(model, torch.nn.Module):
            raise TypeError(f"model: expected a model of colpali-engine, got {type(model).__name__}")
        if not all(hasattr(processor, name) for name in ("process_images", "process_queries", "get_image_mask")):
            raise TypeError(f"processor: expected a processor of colpali-engine, got {type(processor).__name__}")
        self.model, self.processor, self.tokenizer = model, processor, processor.tokenizer

    @torch.no_grad()
    def _encode(self, contents: list[Any], is_query: bool) -> list[Row]:
        rows = []
        training = self.model.training
        self.model.eval()
        for one in contents:
            if not isinstance(one, str):
                batch = self.processor.process_images([one])
            else:
                batch = (self.processor.process_queries if is_query else self.processor.process_texts)(texts=[one])
            batch = batch.to(next(self.model.parameters()).device)
            embeddings = self.model(**batch)[0]
            rows.append(Row(batch["input_ids"][0], batch["attention_mask"][0].bool(), embeddings))
        self.model.train(training)
        return rows

    def _prefix(self, is_query: bool) -> str:
        return self.processor.query_prefix if is_query else ""

    def _patches(self, picture: Any, ids: Tensor) -> tuple[Tensor, tuple[int, int] | None]:
        patches = self.processor.get_image_mask(SimpleNamespace(input_ids=ids))
        wanted = inspect.signature(self.processor.get_n_patches).parameters
        vision = getattr(self.model.config, "vision_config", None)  # the model's own properties depend on transformers'
        sizes = {
            name: getattr(self.model, name, getattr(vision, name, None))
            for name in ("patch_size", "spatial_merge_size")
            if name in wanted
        }
        if None in sizes.values():
            return patches, None
        columns, rows = self.processor.get_n_patches(picture.size, **sizes)
        return patches, (rows, columns) if rows * columns == int(patches.sum()) else None
