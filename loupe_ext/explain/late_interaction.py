"""Why a document scores as it does by late interaction (ColBERT, ColPali): exact, in closed form."""

from collections.abc import Sequence
from itertools import compress
from typing import cast, overload

import torch
from torch import Tensor

from loupe_ext._checks import check_device, check_index, check_int
from loupe_ext._indices import Index
from loupe_ext.explain._maxsim import token_pairs
from loupe_ext.explain.encoders import TokenEmbeddings
from loupe_ext.explain.explanations import LateInteractionExplanation
from loupe_ext.explain.players import Players
from loupe_ext.ops.maxsim_credit import maxsim_credit

BATCH = 2**19  # scores at a time


@overload
def explain_late_interaction(
    query: TokenEmbeddings,
    documents: TokenEmbeddings,
    *,
    index: Index = "shapley",
    p: float = 0.5,
    top_pairs: int = 16,
) -> LateInteractionExplanation: ...


@overload
def explain_late_interaction(
    query: TokenEmbeddings,
    documents: Sequence[TokenEmbeddings],
    *,
    index: Index = "shapley",
    p: float = 0.5,
    top_pairs: int = 16,
) -> list[LateInteractionExplanation]: ...


@torch.no_grad()
def explain_late_interaction(
    query: TokenEmbeddings,
    documents: TokenEmbeddings | Sequence[TokenEmbeddings],
    *,
    index: Index = "shapley",
    p: float = 0.5,
    top_pairs: int = 16,
) -> LateInteractionExplanation | list[LateInteractionExplanation]:
    r"""The credit of each token of a document for each token of a query, and which tokens stand in for each other.

    Late interaction scores a document by :math:`\sum_j \max_i s_{ij}`, with s the dot products of its tokens'
    embeddings and the query's (Khattab and Zaharia, SIGIR 2020). A map of winners gives each maximum to one token, even
    where the next best is as good. The credit is the Shapley value in the game
    :math:`v(S) = \sum_j \max_{i \in S} s_{ij}` of the document's tokens, the query whole and the embeddings as they
    are in the whole document. With s_(r) the scores for j in descending order and s_(M+1) = 0 it is

    .. math:: c_{ij} = \sum_{r \ge \mathrm{rank}(i)} (s_{(r)} - s_{(r+1)}) / r.

    Args:
        query: n tokens' embeddings [N, d].
        documents: one, [M, d], or several; of the query's d, on its device.
        index, p: "shapley", or "banzhaf", where each token is present with probability p, strictly between 0 and 1.
        top_pairs: among how many tokens the interactions are computed: those with most credit that are not special.

    Returns:
        `LateInteractionExplanation` of each document, in their order (one for one document): on the CPU, in float64 for
        float64 embeddings, else float32 (half types are taken to it before they are multiplied). Pairs in float64. A
        NaN or infinite score makes the credit and the pairs of its document NaN.

    Raises:
        TypeError, ValueError: an argument has the wrong type, shape or value.
    """
    if not isinstance(query, TokenEmbeddings):
        raise TypeError(f"query: expected TokenEmbeddings, got {type(query).__name__}")
    if query.embeddings.is_meta:
        raise ValueError("query: expected embeddings with values, got a tensor on meta")
    one = isinstance(documents, TokenEmbeddings)
    several = [documents] if isinstance(documents, TokenEmbeddings) else documents
    if not isinstance(several, Sequence) or isinstance(several, str):
        raise TypeError(f"documents: expected TokenEmbeddings or a sequence of them, got {type(documents).__name__}")
    _check_documents(query, several, "documents" if one else None)
    check_index(index, p)
    p = float(p)
    top_pairs = check_int("top_pairs", top_pairs, 0, 2**20)
    found = []
    for part in _batches(several, len(query.embeddings)):
        found += _explain(query, part, index, p, top_pairs)
    return found[0] if one else found


def _check_documents(query: TokenEmbeddings, documents: Sequence[object], name: str | None) -> None:
    d = query.embeddings.shape[1]
    for at, document in enumerate(documents):
        said = name or f"documents[{at}]"
        if not isinstance(document, TokenEmbeddings):
            raise TypeError(f"{said}: expected TokenEmbeddings, got {type(document).__name__}")
        if document.embeddings.shape[1] != d:
            got = tuple(document.embeddings.shape)
            raise ValueError(f"{said}: expected embeddings [M, {d}], of the query's size, got {got}")
        check_device(said, document.embeddings, "query", query.embeddings)


def _batches(documents: Sequence[TokenEmbeddings], N: int) -> list[list[TokenEmbeddings]]:
    """Documents in their order, as many at a time as padded scores of `BATCH` hold, one at least, and those in float64
    apart.
    """
    batches: list[list[TokenEmbeddings]] = []
    longest = 0
    for document in documents:
        longest = max(longest, len(document.embeddings))
        double = document.embeddings.dtype == torch.float64
        if (
            not batches
            or (len(batches[-1]) + 1) * longest * N > BATCH
            or double != (batches[-1][-1].embeddings.dtype == torch.float64)
        ):
            batches.append([])
            longest = len(document.embeddings)
        batches[-1].append(document)
    return batches


def _explain(
    query: TokenEmbeddings, documents: list[TokenEmbeddings], index: Index, p: float, top_pairs: int
) -> list[LateInteractionExplanation]:
    double = torch.float64 in (query.embeddings.dtype, *(document.embeddings.dtype for document in documents))
    dtype = torch.float64 if double else torch.float32
    q = query.embeddings.to(dtype)
    sizes = [len(document.embeddings) for document in documents]
    scores = q.new_empty(len(documents), max(sizes), len(q))
    for out, document, m in zip(scores, documents, sizes, strict=True):
        torch.mm(document.embeddings.to(dtype), q.T, out=out[:m])
        out[m:] = -torch.inf
    lengths = torch.tensor(sizes, device=q.device)
    given = maxsim_credit(scores, index=index, p=p, document_lengths=lengths)
    best, at = scores.max(1)
    winners = torch.zeros_like(scores).scatter_(1, at[:, None], best[:, None])
    content = _content(documents, max(sizes))
    counts = content.sum(1).clamp(max=top_pairs).tolist()
    tokens = given.sum(2).masked_fill(~content.to(q.device), -torch.inf).topk(max(counts), 1).indices
    pairs = token_pairs(scores, tokens, index=index, p=p, document_lengths=lengths).cpu()
    tokens, totals = tokens.cpu(), best.double().sum(1).tolist()
    scores, given, winners = scores.cpu(), given.cpu(), winners.cpu()
    return [
        LateInteractionExplanation(
            document=cast(Players, document.players),
            query=cast(Players, query.players),
            scores=scores[b, :m],
            credit=given[b, :m],
            winners=winners[b, :m],
            pair_tokens=tokens[b, :k],
            pairs=pairs[b, :k, :k],
            score=totals[b],
            index=index,
            p=p,
            name=document.name,
        )
        for b, (document, m, k) in enumerate(zip(documents, sizes, counts, strict=True))
    ]


def _content(documents: list[TokenEmbeddings], longest: int) -> Tensor:
    """[B, M] of the tokens that are no marks of the model's own."""
    content = torch.zeros(len(documents), longest, dtype=torch.bool)
    for row, document in zip(content, documents, strict=True):
        special = cast(Players, document.players).special
        row[: len(special)] = True
        if any(special):
            row[list(compress(range(len(special)), special))] = False
    return content
