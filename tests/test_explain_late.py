"""The credit of a document's tokens and the interactions within it, against enumeration; and explanations of them."""

import pytest
import torch

from loupe_ext.explain import Players, TokenEmbeddings, explain_late_interaction, late_interaction
from python_ref import brute

SCORES = {
    "random": torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "ties": torch.tensor([[1, 0], [1, -1], [0.5, -1], [1, 2], [0.5, 2]], dtype=torch.float64),
    "all equal": torch.ones(4, 2, dtype=torch.float64),
    "negative": -torch.rand(4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64),
    "one token": torch.tensor([[-2.0, 3.0]], dtype=torch.float64),
    "two tokens": torch.tensor([[-2.0], [3.0]], dtype=torch.float64),
}


def of_scores(scores, **options):
    """The document whose scores these are: the query's embeddings are the unit vectors."""
    query = TokenEmbeddings(torch.eye(scores.shape[1], dtype=scores.dtype))
    return explain_late_interaction(query, TokenEmbeddings(scores), **options)


def best(column):
    """The game of one query token."""
    return lambda T: torch.where(T.any(1), column.masked_fill(~T, -torch.inf).amax(1), 0.0)


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize(("index", "p"), [("shapley", 0.5), ("banzhaf", 0.5), ("banzhaf", 0.15), ("banzhaf", 0.9)])
def test_credit_and_pairs_are_those_of_enumeration(scores, index, p):
    M, N = scores.shape
    found = of_scores(scores, index=index, p=p)
    credit = [[brute.player_value(best(scores[:, j]), M, i, index, p) for j in range(N)] for i in range(M)]
    torch.testing.assert_close(found.credit, torch.tensor(credit, dtype=torch.float64), rtol=0, atol=1e-12)
    order = found.pair_tokens.tolist()
    assert sorted(order) == list(range(M))
    of_all = lambda T: sum(best(scores[:, j])(T) for j in range(N))  # noqa: E731
    pairs = [[brute.interaction(of_all, M, [i, k], index, p) if i != k else 0.0 for k in order] for i in order]
    torch.testing.assert_close(found.pairs, torch.tensor(pairs, dtype=torch.float64), rtol=0, atol=1e-12)
    assert found.score == pytest.approx(scores.amax(0).sum().item(), abs=1e-12)
    if index == "shapley":
        torch.testing.assert_close(found.credit.sum(0), scores.amax(0), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.winners.sum(0), scores.amax(0), rtol=0, atol=0)
    assert ((found.winners == 0) | (found.winners == scores)).all()


def embeddings(n, dtype=torch.float32, seed=0, **more):
    x = torch.randn(n, 16, generator=torch.Generator().manual_seed(100 * seed + n))
    return TokenEmbeddings(torch.nn.functional.normalize(x, dim=1).to(dtype), **more)


def same(a, b, **tolerance):
    for name in ("scores", "credit", "winners", "pairs"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), equal_nan=True, **tolerance)
    assert a.pair_tokens.tolist() == b.pair_tokens.tolist()


@pytest.mark.parametrize("batch", [1, 200, 2**19])
def test_documents_are_explained_each_as_if_alone(batch, monkeypatch):
    query, documents = embeddings(4), [embeddings(m, seed=m, name=f"{m}") for m in (7, 1, 30, 2, 7)]
    alone = [explain_late_interaction(query, document, top_pairs=4) for document in documents]
    monkeypatch.setattr(late_interaction, "BATCH", batch)
    together = explain_late_interaction(query, documents, top_pairs=4)
    assert [x.name for x in together] == ["7", "1", "30", "2", "7"]
    for a, b in zip(alone, together, strict=True):
        same(a, b, rtol=0, atol=0)
        assert a.score == b.score
    assert explain_late_interaction(query, []) == []
    mixed = explain_late_interaction(query, [documents[0], embeddings(5, torch.float64)])
    assert [x.credit.dtype for x in mixed] == [torch.float32, torch.float64]


def test_nan_stays_in_its_document():
    query, document, other = embeddings(3), embeddings(5), embeddings(6)
    alone = explain_late_interaction(query, document)
    for value in (torch.nan, 3e38):  # whose products overflow
        bad = other.embeddings.clone()
        bad[2] = value
        spoilt, clean = explain_late_interaction(query, [TokenEmbeddings(bad), document])
        same(clean, alone, rtol=0, atol=0)
        assert spoilt.credit.isnan().all()
        assert spoilt.pairs[~torch.eye(6, dtype=torch.bool)].isnan().all()
        assert not abs(spoilt.score) < torch.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_half_embeddings_are_multiplied_in_float32_and_doubles_in_float64(dtype):
    query, document = embeddings(3, dtype), embeddings(40, dtype, 1)
    exact = explain_late_interaction(*(TokenEmbeddings(x.embeddings.double()) for x in (query, document)))
    found = explain_late_interaction(query, document)
    assert found.credit.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(found.credit.double(), exact.credit, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.pairs, exact.pairs, rtol=0, atol=1e-6)
    assert found.score == pytest.approx(exact.score, abs=1e-5)


def test_pairs_are_of_the_content_with_most_credit():
    special = tuple(i in (0, 3) for i in range(8))
    document = embeddings(8, players=Players(tuple("abcdefgh"), special=special))
    found = explain_late_interaction(embeddings(3, seed=1), document, top_pairs=4)
    content = [i for i in range(8) if not special[i]]
    by_credit = sorted(content, key=lambda i: -found.credit[i].sum().item())
    assert found.pair_tokens.tolist() == by_credit[:4]
    every = explain_late_interaction(embeddings(3, seed=1), document)
    assert every.pair_tokens.tolist() == by_credit
    torch.testing.assert_close(found.pairs, every.pairs[:4, :4], rtol=0, atol=0)
    none = explain_late_interaction(embeddings(3, seed=1), document, top_pairs=0)
    assert none.pairs.shape == (0, 0)
    marks = TokenEmbeddings(document.embeddings, Players(tuple("abcdefgh"), special=(True,) * 8))
    assert explain_late_interaction(embeddings(3, seed=1), marks).pairs.shape == (0, 0)


def test_wrong_documents_are_named():
    query = embeddings(3)
    with pytest.raises(TypeError, match=r"documents\[1\]: expected TokenEmbeddings, got Tensor"):
        explain_late_interaction(query, [embeddings(2), torch.ones(2, 16)])
    with pytest.raises(ValueError, match=r"documents\[0\]: expected embeddings \[M, 16\], of the query's size"):
        explain_late_interaction(query, [TokenEmbeddings(torch.ones(2, 5))])
    with pytest.raises(ValueError, match=r"documents: expected the device of query \(cpu\), got meta"):
        explain_late_interaction(query, TokenEmbeddings(torch.ones(2, 16, device="meta")))
    with pytest.raises(ValueError, match="query: expected embeddings with values, got a tensor on meta"):
        explain_late_interaction(TokenEmbeddings(torch.ones(2, 16, device="meta")), query)
