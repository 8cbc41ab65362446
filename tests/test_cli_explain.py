"""`loupe explain`: every kind of model found by its files, a table and a page; one line for what is wrong."""

import json
import shutil

import pytest

pytest.importorskip("rich")
pytest.importorskip("sentence_transformers")
pytest.importorskip("transformers")

from PIL import Image

from loupe_ext.cli import main
from loupe_ext.cli_explain import model_kind, read_document, rounded
from loupe_ext.explain import DualEncoderExplanation, LateInteractionExplanation
from tests.explained import NASTY
from tests.test_explain_adapters import CAPTION, clip_like, picture, tokenizer


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each kind a small model of random weights, as its library saves it."""
    import torch
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
    from transformers import BertConfig, BertModel, CLIPProcessor

    root = tmp_path_factory.mktemp("models")
    model, processor = clip_like("clip")
    model.save_pretrained(root / "clip")
    CLIPProcessor(processor.image_processor, processor.tokenizer).save_pretrained(root / "clip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=60, max_position_embeddings=64, **sizes)).save_pretrained(root / "bert")
    tokenizer(model_max_length=64).save_pretrained(root / "bert")
    part = Transformer(str(root / "bert"))
    late = MultiVectorEncoder(
        modules=[part, MultiVectorMask(), Normalize(module_input_name="token_embeddings")], device="cpu"
    )
    late.save_pretrained(str(root / "late"))
    SentenceTransformer(modules=[part, Pooling(16)], device="cpu").save_pretrained(str(root / "sentences"))
    (root / "documents").mkdir()
    (root / "documents" / "one.txt").write_text("Two cats on the sofa, a small dog on the rug.")
    (root / "documents" / "two.txt").write_text(f"A big red dog {NASTY}")
    Image.fromarray(picture().numpy()).save(root / "documents" / "picture.png")
    return root


def documents(folders):
    return [str(folders / "documents" / name) for name in ("one.txt", "two.txt")]


def test_the_kind_is_found_by_the_files(folders):
    kinds = {"clip": "images and captions", "late": "late interaction", "sentences": "sentences"}
    assert {name: model_kind(str(folders / name)) for name in kinds} == kinds
    with pytest.raises(ValueError, match=r"--model: expected CLIP, .* got one of bert"):
        model_kind(str(folders / "bert"))
    with pytest.raises(ValueError, match=r"--model: expected CLIP, .* has no config\.json"):
        model_kind(str(folders / "documents"))


def test_documents_of_late_interaction(folders, tmp_path, capsys):
    page, numbers = tmp_path / "page.html", tmp_path / "numbers.json"
    options = ["--model", str(folders / "late"), "--query", "a small dog", "--out", str(page), "--json", str(numbers)]
    assert main(["explain", *options, *documents(folders), "--top", "3"]) == 0
    printed = capsys.readouterr().out
    found = [LateInteractionExplanation.from_dict(x) for x in json.loads(numbers.read_text())]
    assert found[0].score >= found[1].score
    assert {x.name for x in found} == set(documents(folders))
    assert all(abs(x.credit.sum().item() - x.score) < 1e-5 for x in found)
    assert "winner takes all" in printed
    assert f"{found[0].score:.2f}" in printed
    assert printed.endswith(f"The page: {page}\n")
    assert "<title>a small dog</title>" in page.read_text()


def test_captions_of_a_picture(folders, tmp_path, capsys):
    numbers = tmp_path / "numbers.json"
    image = str(folders / "documents" / "picture.png")
    options = ["--model", str(folders / "clip"), "--image", image, "--out", str(tmp_path / "page.html")]
    captions = ["--caption", CAPTION, "--caption", "a big red dog"]
    assert (
        main(["explain", *options, *captions, "--num-coalitions", "128", "--json", str(numbers), "--index", "shapley"])
        == 0
    )
    found = [DualEncoderExplanation.from_dict(x) for x in json.loads(numbers.read_text())]
    assert {x.text.text for x in found} == {CAPTION, "a big red dog"}
    assert {x.pairs.shape[0] for x in found} == {16}
    assert {x.index for x in found} == {"shapley"}
    assert "±" in capsys.readouterr().out
    assert main(["explain", *options, *captions, "--num-coalitions", "128", "--players", "tokens"]) == 0


def test_a_mark_of_the_byte_order_is_no_content(tmp_path):
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbfa dog")
    assert read_document(tmp_path / "x.txt") == "a dog"


def test_documents_of_an_embedder(folders, tmp_path, capsys):
    options = ["--model", str(folders / "sentences"), "--query", "a small dog", "--out", str(tmp_path / "page.html")]
    assert main(["explain", *options, documents(folders)[0], "--num-coalitions", "128"]) == 0
    assert "one side" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--query", "dog"], "--query with FILEs"),
        (["one.txt"], "--query with FILEs"),
        ([], "either --query"),
        (["--query", "dog", "one.txt", "--caption", "x"], "either --query"),
        (["--image", "picture.png"], "--image with --caption"),
        (["--query", "dog", "one.txt", "--model", "clip"], "--model: expected --image"),
        (["--image", "picture.png", "--caption", "x"], "--model: expected --query"),
        (["--query", "dog", "nowhere.txt"], "nowhere.txt"),
        (["--query", "dog", "bad.txt"], "FILE: expected a text in UTF-8"),
        (["--query", "dog", "bad.png"], "picture: expected"),
        (["--query", "dog", "one.txt", "--model", "a/b/c"], "--model: expected a folder or a name on the hub"),
        (["--query", "dog", "one.txt", "--out", "/dev/null/x"], "--out"),
        (["--query", "dog", "one.txt", "--json", "/dev/null/x"], "--json"),
        (["--query", "dog", "one.txt", "--device", "cuda:77x"], "--device"),
        (["--query", "dog", "one.txt", "--device", "meta"], "--device: expected one that is here"),
        (["--query", "dog", "one.txt", "--device", "cuda:99"], "--device: expected one that is here"),
        (["--query", "dog", "one.txt", "--out", "x", "--json", "./x"], "--json: expected another file than --out"),
        (["--query", "dog", "one.txt", "--p", "1"], "p: expected"),
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(options, said, folders, monkeypatch, capsys):
    monkeypatch.chdir(folders / "documents")
    monkeypatch.setattr("sentence_transformers.MultiVectorEncoder", lambda *_, **__: pytest.fail("a model was loaded"))
    for name in ("bad.txt", "bad.png"):
        (folders / "documents" / name).write_bytes(b"\xff\xfe\xff")
    options = ["--model", "../late", *options]
    options = ["../clip" if option == "clip" else option for option in options]
    assert main(["explain", *options]) == 2
    message = capsys.readouterr().err
    assert said in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("clip/model.safetensors", "x"),
        ("late/modules.json", '[{"idx": 0}]'),
        ("sentences/modules.json", '[{"idx": 0}]'),
        ("clip/config.json", '{"architectures": 3}'),
        ("clip/config.json", "[" * 100_000),
        ("clip/config.json", '{"model_type": "siglip", "text_config": 3}'),
    ],
)
def test_damaged_models_are_refused(file, content, folders, tmp_path, capsys):
    model = shutil.copytree(folders / file.split("/")[0], tmp_path / "model")
    (model / file.split("/")[1]).write_text(content)
    image = ["--image", str(folders / "documents" / "picture.png"), "--caption", "a dog"]
    options = image if "clip" in file else ["--query", "dog", documents(folders)[0]]
    assert main(["explain", "--model", str(model), "--out", str(tmp_path / "x.html"), *options]) == 2
    assert capsys.readouterr().err.startswith("loupe: --model: expected ")


def test_digits_are_those_that_the_error_supports():
    assert rounded(0.123456, 0.0312) == "0.12 ± 0.03"
    assert rounded(0.123456, 0.0012) == "0.1235 ± 0.0012"
    assert rounded(123.4, 31.0) == "123 ± 31"
    assert rounded(0.0123456, 0.0, 1.5) == "0.01"
    assert rounded(0.5, float("nan")) == "0.500 ± ?"
    assert rounded(float("nan")) == "not known"
    assert rounded(0.0) == "0"
