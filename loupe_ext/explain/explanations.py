"""What an explanation of a score holds, as a result that can be read, kept and shown."""

import json
import numbers
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from loupe_ext._checks import check_floating, check_index, check_int, check_tensor, shown
from loupe_ext._indices import Index
from loupe_ext._io import write
from loupe_ext.explain._maxsim import token_pairs
from loupe_ext.explain.players import Players, check_groups
from loupe_ext.extras import needs

Self = TypeVar("Self", bound="Explanation")


class Explanation:
    """What both kinds share: they are kept as JSON, and shown as a page."""

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, strings and lists, of which `from_dict` makes the same again."""
        plain: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if isinstance(value, Players):
                value = value.to_dict()
            plain[field.name] = value.tolist() if isinstance(value, Tensor) else value
        return plain

    @classmethod
    def from_dict(cls: type[Self], stored: dict[str, Any]) -> Self:
        """The reverse of `to_dict`."""
        if stored["kind"] != cls.kind:
            raise ValueError(f"stored: expected {cls.kind}, got {stored['kind']}")
        made: dict[str, Any] = {}
        for field in fields(cls):  # type: ignore[arg-type]
            value = stored[field.name]
            if isinstance(value, dict):
                value = Players.from_dict(value)
            elif isinstance(value, list):
                whole = field.name in cls.whole_numbers
                value = torch.tensor(value, dtype=torch.int64 if whole else torch.float64)
                if field.name == "pairs" and not len(value):  # a list does not say that it is [0, 0]
                    value = value.reshape(0, 0)
            made[field.name] = value
        return cls(**made)

    whole_numbers: ClassVar[tuple[str, ...]] = ()  # fields of int64

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write as JSON, in one piece. Every digit is kept."""
        write(path, json.dumps(self.to_dict()))

    @classmethod
    def load(cls: type[Self], path: str | os.PathLike[str]) -> Self:
        """What `save` wrote."""
        stored = Path(path).read_bytes()
        try:
            return cls.from_dict(json.loads(stored))
        except (AttributeError, TypeError, ValueError, KeyError, OverflowError, RuntimeError, OSError) as error:
            raise ValueError(f"path: expected a saved explanation, got {path} ({error})") from error

    def to_html(self, path: str | os.PathLike[str]) -> None:
        """Write a page that needs no network; see `explain.write_page`, which takes several."""
        from loupe_ext.explain.page import write_page

        write_page(path, [self])

    def plot(self, word: str | int | None = None, axes: Any = None) -> Any:
        """A heat map over the picture or the text; see `explain.plots.heat_map`."""
        from loupe_ext.explain.plots import heat_map

        return heat_map(self, word, axes)

    def plot_links(self, k: int = 10, axes: Any = None) -> Any:
        """Lines between the parts of the `k` largest pairs, on matplotlib's `axes` (None: new ones)."""
        from loupe_ext.explain.plots import links

        return links(self, k, axes)

    def plot_bars(self, k: int = 10, axes: Any = None) -> Any:
        """Bars of the `k` largest pairs, with standard errors, on matplotlib's `axes` (None: new ones)."""
        from loupe_ext.explain.plots import bars

        return bars(self, k, axes)

    def _check_players(self, *sides: str) -> None:
        """And what else both kinds have."""
        for side in sides:
            if not isinstance(getattr(self, side), Players):
                raise TypeError(f"{side}: expected Players, got {type(getattr(self, side)).__name__}")
        check_index(self.index, self.p)  # type: ignore[attr-defined]
        for name in ("score", "baseline", "p"):
            if not hasattr(self, name):
                continue
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"{name}: expected a float, got {type(value).__name__}")
            object.__setattr__(self, name, float(value))  # which JSON knows, as it does not NumPy's or a fraction

    def _check(self, shapes: dict[str, tuple[int, ...]]) -> None:
        for name, shape in shapes.items():
            value = getattr(self, name)
            check_tensor(name, value)
            if name not in self.whole_numbers:
                check_floating(name, value)
            elif value.dtype != torch.int64:
                raise TypeError(f"{name}: expected dtype int64, got {value.dtype}")
            if tuple(value.shape) != shape:
                raise ValueError(f"{name}: expected shape {shape} for these players, got {tuple(value.shape)}")


@dataclass(frozen=True, eq=False)
class DualEncoderExplanation(Explanation):
    """Why an image and a text (or two texts) score as they do, by a model with an encoder for each.

    The game: v(S, T) = <f(S), g(T)>, the embeddings with only the players S of the one and T of the other present.

    Attributes:
        image, text: the players of the two sides, n_I and n_T. (Of two texts, `image` is the first.)
        pairs: float64 [n_I, n_T], the interaction of each player of the image with each of the text.
        image_values [n_I], text_values [n_T]: the value of each player in the game of all n_I + n_T.
        image_pairs [n_I, n_I], text_pairs [n_T, n_T]: interactions within a side, symmetric with diagonal 0, or None.
        pair_errors, image_value_errors, text_value_errors, image_pair_errors, text_pair_errors: their standard errors,
            0 where exact, NaN where unknown; None where what they belong to is.
        score, baseline: the value of all players and of none.
        index, p: "shapley", or "banzhaf" with its probability.
        method: how they were found.
        image_passes, text_passes: coalitions that each encoder has seen.
    """

    kind: ClassVar[str] = "dual encoder"

    image: Players
    text: Players
    pairs: Tensor
    pair_errors: Tensor
    image_values: Tensor
    image_value_errors: Tensor
    text_values: Tensor
    text_value_errors: Tensor
    score: float
    baseline: float
    image_pairs: Tensor | None = None
    image_pair_errors: Tensor | None = None
    text_pairs: Tensor | None = None
    text_pair_errors: Tensor | None = None
    index: Index = "banzhaf"
    p: float = 0.5
    method: str = "exact, by enumeration"
    image_passes: int = 0
    text_passes: int = 0

    def __post_init__(self) -> None:
        self._check_players("image", "text")
        if not isinstance(self.method, str):
            raise TypeError(f"method: expected a str, got {type(self.method).__name__}")
        for name in ("image_passes", "text_passes"):
            object.__setattr__(self, name, check_int(name, getattr(self, name), 0, 2**63 - 1))
        m, n = self.image.n, self.text.n
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("pairs", "pair_errors"), (m, n))
        shapes |= {"image_values": (m,), "image_value_errors": (m,), "text_values": (n,), "text_value_errors": (n,)}
        for side, count in (("image", m), ("text", n)):
            if getattr(self, f"{side}_pairs") is not None:
                shapes |= {f"{side}_pairs": (count, count), f"{side}_pair_errors": (count, count)}
        self._check(shapes)

    def top(self, k: int = 10) -> list[tuple[str, str, float, float]]:
        """The `k` pairs largest in size, as (image's player, text's, interaction, standard error). NaN last."""
        k = check_int("k", k, 0, 2**31)
        order = self.pairs.flatten().abs().nan_to_num(-1.0).argsort(descending=True, stable=True)[:k].tolist()
        places = [divmod(at, self.text.n) for at in order]
        return [
            (self.image.names[i], self.text.names[j], self.pairs[i, j].item(), self.pair_errors[i, j].item())
            for i, j in places
        ]

    def to_shapiq(self) -> Any:
        """As shapiq's `InteractionValues` of order 2, the image's players first: "SII", or "BII" for Banzhaf at 1/2.

        Pairs within a side are in it where this holds them. Its baseline is the value of nothing.
        """
        if self.index == "banzhaf" and self.p != 0.5:
            raise ValueError(f"p: expected 0.5, the Banzhaf index that shapiq knows, got {self.p}")
        with needs("shapiq"):
            import numpy as np
            from shapiq import InteractionValues
        m, n = self.pairs.shape
        found: dict[tuple[int, ...], float] = {}
        found |= {(i,): x for i, x in enumerate(torch.cat([self.image_values, self.text_values]).tolist())}
        found |= {(i, m + j): self.pairs[i, j].item() for i in range(m) for j in range(n)}
        for first, inside in ((0, self.image_pairs), (m, self.text_pairs)):
            if inside is not None:
                ends = torch.triu_indices(len(inside), len(inside), 1).T.tolist()
                found |= {(first + i, first + j): inside[i, j].item() for i, j in ends}
        return InteractionValues(
            values=np.array(list(found.values())),
            index="SII" if self.index == "shapley" else "BII",
            max_order=2,
            min_order=1,
            n_players=m + n,
            interaction_lookup={players: at for at, players in enumerate(found)},
            estimated=not self.method.startswith("exact"),
            estimation_budget=self.image_passes + self.text_passes,
            baseline_value=self.baseline,
        )


@dataclass(frozen=True, eq=False)
class LateInteractionExplanation(Explanation):
    """Why a document scores as it does for a query, by a model of late interaction (ColBERT, ColPali).

    The game: v(S) = sum_j max_{i in S} s_ij, over the document's tokens S with the query whole.

    Attributes (floating where no dtype is said, and float64 when loaded):
        document, query: the players of the two, M and N tokens (or groups of the document's).
        scores: [M, N], the similarity of each token of the document to each of the query.
        credit: [M, N], the Shapley (Banzhaf) value of document token i for query token j. For Shapley each
            column adds up to its maximum, so that the whole adds up to the score.
        winners: [M, N], winner-takes-all for comparison: the maximum of each column where it is.
        pair_tokens: int64 [k], the tokens of the document between which `pairs` holds interactions.
        pairs: [k, k], the interaction of two tokens of the document, symmetric with diagonal 0: below 0 where
            one can replace the other.
        score: the score of the document.
        index, p: "shapley", or "banzhaf" with its probability.
        name: of the document.
    """

    kind: ClassVar[str] = "late interaction"
    whole_numbers: ClassVar[tuple[str, ...]] = ("pair_tokens",)

    document: Players
    query: Players
    scores: Tensor
    credit: Tensor
    winners: Tensor
    pair_tokens: Tensor
    pairs: Tensor
    score: float
    index: Index = "shapley"
    p: float = 0.5
    name: str = ""

    def __post_init__(self) -> None:
        self._check_players("document", "query")
        check_tensor("pair_tokens", self.pair_tokens)
        k = self.pair_tokens.numel()
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(
            ("scores", "credit", "winners"), (self.document.n, self.query.n)
        )
        self._check(shapes | {"pair_tokens": (k,), "pairs": (k, k)})
        if k and not 0 <= self.pair_tokens.min() <= self.pair_tokens.max() < self.document.n:
            raise ValueError(
                f"pair_tokens: expected 0 to {self.document.n - 1}, got {shown(self.pair_tokens.tolist())}"
            )
        if not isinstance(self.name, str):
            raise TypeError(f"name: expected a str, got {type(self.name).__name__}")

    def top(self, k: int = 10) -> list[tuple[str, str, float]]:
        """The `k` pairs with most credit in size, as (document's token, query's token, credit). NaN last."""
        k = check_int("k", k, 0, 2**31)
        order = self.credit.flatten().abs().nan_to_num(-1.0).argsort(descending=True, stable=True)[:k].tolist()
        places = [divmod(at, self.query.n) for at in order]
        return [(self.document.names[i], self.query.names[j], self.credit[i, j].item()) for i, j in places]

    def by_special(self) -> Tensor:
        """Credit [2, 2] of the document's content and its marks (rows) for the query's content and its marks."""
        rows, columns = (torch.tensor(side.special).long() for side in (self.document, self.query))
        whole = self.credit.new_zeros(2, len(columns)).index_add_(0, rows, self.credit)
        return whole.new_zeros(2, 2).index_add_(1, columns, whole)

    @property
    def content_score(self) -> float:
        """Credit of the document's content for the query's content, without marks of the model's own on either side."""
        return self.by_special()[0, 0].item()

    def grouped(self, groups: Sequence[int], names: Sequence[str] | None = None) -> "LateInteractionExplanation":
        """The same with the document's tokens put together, `groups` and `names` as `Players.grouped` takes them.

        Credit and winners add up; the score of a group is its best. `pairs` are the interactions of the groups as
        players, all of whose tokens come and go together: in closed form again, by their scores, of those with most
        credit that are not special, as many at most as `pair_tokens` has tokens. (The credit is that of the game of the
        tokens, in which a group with more tokens gets more.)

        Raises:
            TypeError, ValueError: an argument has the wrong type or value.
        """
        document = self.document.grouped(groups, names)
        at = torch.tensor(check_groups("groups", groups, self.document.n)[0])
        empty = self.scores.new_zeros(document.n, self.query.n)
        scores = empty.scatter_reduce(0, at[:, None].expand_as(self.scores), self.scores, "amax", include_self=False)
        credit = empty.index_add(0, at, self.credit)
        content = ~torch.tensor(document.special)
        k = min(len(self.pair_tokens), int(content.sum()))
        tokens = credit.sum(1).masked_fill(~content, -torch.inf).topk(k).indices
        length = torch.tensor([document.n])
        return replace(
            self,
            document=document,
            scores=scores,
            credit=credit,
            winners=empty.index_add(0, at, self.winners),
            pair_tokens=tokens,
            pairs=token_pairs(
                scores[None].detach().double(), tokens[None], index=self.index, p=self.p, document_lengths=length
            )[0],
        )

    def by_words(self) -> "LateInteractionExplanation":
        """`grouped` by the words of the document; see `Players.words`."""
        return self.grouped(*self.document.words())

    def by_sentences(self) -> "LateInteractionExplanation":
        """`grouped` by the sentences of the document; see `Players.sentences`."""
        return self.grouped(*self.document.sentences())

    def by_regions(self, rows: int, columns: int) -> "LateInteractionExplanation":
        """`grouped` by the fields of a grid over the document's picture; see `Players.regions`."""
        return self.grouped(*self.document.regions(rows, columns))
