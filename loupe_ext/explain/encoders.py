"""What is explained: one side of a dual encoder as a function of masks, one side of late interaction as embeddings.

`loupe_ext.explain.adapters` makes both of models of transformers, open_clip, sentence-transformers, PyLate and
colpali-engine. Make your own of any function or any embeddings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loupe_ext._checks import check_features, check_int, check_names, check_tensor
from loupe_ext.explain.players import Players


def as_players(name: str, value: Players | Sequence[str] | int) -> Players:
    """Players as they are, or by their names, or so many."""
    if isinstance(value, Players):
        return value
    if isinstance(value, Sequence):
        return Players(check_names(name, value))
    return Players(tuple(map(str, range(check_int(name, value, 0, 2**20)))))


class MaskedEncoder:
    """One image or text, and its embedding with only some of its players present.

    Args:
        function: masks bool [K, n] -> embeddings [K, d], floating and finite, of any length: they are taken as they
            come (normalise them for a cosine). A player that a mask leaves out must not be seen at all.
        players: `Players`, their names, or how many.

    Raises:
        TypeError, ValueError: an argument has the wrong type or value.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], players: Players | Sequence[str] | int) -> None:
        if not callable(function):
            raise TypeError(f"function: expected a callable, got {type(function).__name__}")
        self.function, self.players = function, as_players("players", players)

    @property
    def n(self) -> int:
        return self.players.n

    @torch.no_grad()
    def __call__(self, masks: Tensor) -> Tensor:
        """Embeddings float32 or float64 [K, d] of masks bool [K, n].

        Raises:
            TypeError, ValueError: the masks are no bool [K, n] with K of 1 or more, or the function's result no
                floating [K, d] with values.
        """
        check_tensor("masks", masks)
        if masks.dtype != torch.bool or masks.dim() != 2 or not len(masks) or masks.shape[1] != self.n:
            got = f"{masks.dtype} {tuple(masks.shape)}"
            raise ValueError(f"masks: expected bool [K, {self.n}], K at least 1, got {got}")
        found = check_features("function's result", self.function(masks), "Kd").detach()
        if found.is_meta:
            raise ValueError("function's result: expected embeddings with values, got a tensor on meta")
        if len(found) != len(masks):
            raise ValueError(f"function's result: expected {len(masks)} embeddings, one per mask, got {len(found)}")
        return found if found.dtype in (torch.float32, torch.float64) else found.float()


@dataclass(frozen=True, eq=False)
class TokenEmbeddings:
    """A query or a document as a model of late interaction sees it.

    Attributes:
        embeddings: floating [n, d], one per token that is scored, normalised if the model's score is of cosines.
        players: `Players` of the n tokens, their names, or None for their numbers.
        name: of the document.
    """

    embeddings: Tensor
    players: Players | Sequence[str] | None = None
    name: str = ""

    def __post_init__(self) -> None:
        n = len(check_features("embeddings", self.embeddings, "nd"))
        players = as_players("players", n if self.players is None else self.players)
        if players.n != n:
            raise ValueError(f"players: expected {n}, one per embedding, got {players.n}")
        object.__setattr__(self, "players", players)
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a str, got {type(self.name).__name__}")
