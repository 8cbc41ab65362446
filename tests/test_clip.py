"""The parts of CLIP-like models: of random weights and the real architectures."""

import runpy
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

pytest.importorskip("transformers")

import tokenizers
from transformers import (
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from loupe_ext.losses import LoupeLoss
from loupe_ext.model.clip import ClipFeatures, PhraseTokenizer

EXAMPLE = Path(__file__).parent.parent / "examples" / "loop_transformers.py"
LAYERS = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**LAYERS, "vocab_size": 60, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1}
CAPTIONS = ["A small dog chases two cats.", "the red door of a house", "and so on!"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Words of the captions, cut into pieces, between marks of beginning and end."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<u>"))
    model.normalizer = tokenizers.normalizers.Lowercase()
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=60, special_tokens=["<p>", "<b>", "<e>", "<u>"])
    model.train_from_iterator(CAPTIONS, trainer)
    model.post_processor = tokenizers.processors.TemplateProcessing(
        "<b> $A <e>", special_tokens=[("<b>", 1), ("<e>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=model, bos_token="<b>", eos_token="<e>", pad_token="<p>", unk_token="<u>", model_max_length=16
    )


def models() -> dict[str, torch.nn.Module]:
    torch.manual_seed(0)
    pixels = {**LAYERS, "image_size": 32, "patch_size": 8}
    clip = CLIPConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=pixels, projection_dim=24)
    siglip = SiglipConfig(text_config={**TEXT, "eos_token_id": 2}, vision_config=pixels)
    flexible = Siglip2Config(
        text_config={**TEXT, "eos_token_id": 2}, vision_config={**LAYERS, "patch_size": 8, "num_patches": 16}
    )
    made = {"clip": CLIPModel(clip), "siglip": SiglipModel(siglip), "siglip2": Siglip2Model(flexible)}
    for model in made.values():
        for parameter in model.parameters():  # biases and norms away from 0 and 1, and sharp attention
            torch.nn.init.normal_(parameter, std=0.2)
    return {name: model.eval() for name, model in made.items()}


MODELS = models()


def pictures(name: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if name != "siglip2":
        return {"pixel_values": torch.randn(3, 3, 32, 32, generator=generator)}
    mask = torch.tensor([[1] * 12, [1] * 10 + [0] * 2, [1] * 12])
    return {
        "pixel_values": torch.randn(3, 12, 192, generator=generator),
        "pixel_attention_mask": mask,
        "spatial_shapes": torch.tensor([[3, 4], [2, 5], [4, 3]]),
    }


@pytest.mark.parametrize("name", MODELS)
def test_the_whole_is_the_models_own(name):
    model, text = MODELS[name], PhraseTokenizer(tokenizer())(CAPTIONS)
    image_inputs = pictures(name)
    with torch.no_grad():
        image, caption = ClipFeatures(model)(image_inputs, text)
        theirs = model(input_ids=text["input_ids"], attention_mask=text["attention_mask"], **image_inputs)
    torch.testing.assert_close(image.pooled, theirs.image_embeds, rtol=0, atol=1e-5)
    torch.testing.assert_close(caption.pooled, theirs.text_embeds, rtol=0, atol=1e-5)
    assert image.patches.shape == (3, 12 if name == "siglip2" else 16, image.pooled.shape[1])
    assert caption.phrases.shape == (3, 2, image.pooled.shape[1])
    assert caption.lengths.tolist() == [2, 2, 1]
    assert (image.lengths is not None and image.lengths.tolist()) == ([12, 10, 12] if name == "siglip2" else False)


def test_a_patch_takes_the_way_of_the_whole():
    """CLIP's whole is its [CLS] token; SigLIP's, of an image of one patch, is that patch."""
    clip, image = MODELS["clip"], pictures("clip")
    with torch.no_grad():
        hidden = clip.vision_model(**image).last_hidden_state
        expected = normalize(clip.visual_projection(clip.vision_model.post_layernorm(hidden[:, 5])), dim=-1)
        torch.testing.assert_close(ClipFeatures(clip).images(**image).patches[:, 4], expected)
        one = {
            "pixel_values": torch.randn(2, 1, 192),
            "pixel_attention_mask": torch.ones(2, 1, dtype=torch.int64),
            "spatial_shapes": torch.tensor([[1, 1], [1, 1]]),
        }
        for inputs in (one, {"pixel_values": torch.randn(2, 3, 8, 8), "interpolate_pos_encoding": True}):
            found = ClipFeatures(MODELS["siglip2" if inputs is one else "siglip"]).images(**inputs)
            torch.testing.assert_close(found.patches[:, 0], found.pooled)


def test_a_phrase_is_the_mean_of_its_own_tokens():
    tokenize, clip = PhraseTokenizer(tokenizer()), MODELS["clip"]
    text = tokenize(CAPTIONS)
    pieces = [tokenize.tokenizer.convert_ids_to_tokens(ids) for ids in text["input_ids"]]
    words = ["".join(pieces[0][start:end]) for start, end in text["spans"][0].tolist()]
    assert words == ["asmalldog", "twocats"]
    assert "".join(pieces[2][slice(*text["spans"][2, 0].tolist())]) == "andsoon!"  # no noun phrase: the whole caption
    assert text["spans"][2, 1].tolist() == [0, 0]
    with torch.no_grad():
        hidden = clip.text_model(text["input_ids"], text["attention_mask"]).last_hidden_state
        start, end = text["spans"][0, 1].tolist()
        expected = normalize(clip.text_projection(hidden[0, start:end]).mean(0), dim=-1)
        torch.testing.assert_close(ClipFeatures(clip).texts(**text).phrases[0, 1], expected)


def test_phrases_that_are_cut_off_are_left_out():
    text = PhraseTokenizer(tokenizer(), max_length=5)(CAPTIONS[:1])
    assert text["input_ids"].shape == (1, 5)
    assert text["phrase_lengths"].tolist() == [1]
    assert text["spans"][0, 0, 1] <= 4


@pytest.mark.parametrize("name", MODELS)
def test_all_that_the_losses_need_learns(name):
    features, criterion = ClipFeatures(MODELS[name]), LoupeLoss()
    features.zero_grad()
    image, text = features(pictures(name), PhraseTokenizer(tokenizer())(CAPTIONS))
    losses = criterion(
        image.pooled,
        text.pooled,
        image.patches,
        text.phrases,
        logit_scale=features.model.logit_scale.exp(),
        region_lengths=image.lengths,
        phrase_lengths=text.lengths,
    )
    assert set(losses) == {"loss", "cmc", "region_phrase", "fsa", "gate"}
    losses["loss"].backward()
    for part in ("vision_model", "text_model", "logit_scale"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in features.named_parameters() if part in n)


def test_bad_input_is_named():
    with pytest.raises(TypeError, match=r"model: expected a CLIPModel.*got Linear"):
        ClipFeatures(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="tokenizer: expected a fast one"):
        PhraseTokenizer(str)
    tokenize = PhraseTokenizer(tokenizer())
    with pytest.raises(TypeError, match="captions: expected a sequence of str"):
        tokenize("a dog")
    with pytest.raises(ValueError, match=r"captions\[1\]: expected a word or more, got ' '"):
        tokenize(["a dog", " "])


def test_the_example_trains_a_model_of_a_folder_on_pictures_of_a_folder(tmp_path, monkeypatch, capsys):
    image_module = pytest.importorskip("PIL.Image")
    from transformers import CLIPImageProcessor, CLIPProcessor

    crop = {"height": 32, "width": 32}
    words = CLIPProcessor(CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=crop), tokenizer())
    words.save_pretrained(tmp_path / "model")
    CLIPModel(MODELS["clip"].config).save_pretrained(tmp_path / "model")
    for i, colour in enumerate(("red", "green", "blue")):
        image_module.new("RGB", (40, 36), colour).save(tmp_path / f"{i}.png")
    (tmp_path / "pictures.csv").write_text("0.png,a red door\n1.png,the small dog\n2.png,two cats\n")
    command = [str(tmp_path / "model"), str(tmp_path / "pictures.csv"), "--steps", "2", "--batch-size", "2"]
    monkeypatch.setattr("sys.argv", ["", *command, "--device", "cpu", "--out", str(tmp_path / "out")])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" loss")[0] for line in lines] == ["step 1", "step 2"]
    before, after = (CLIPModel.from_pretrained(tmp_path / folder).state_dict() for folder in ("model", "out"))
    assert before.keys() == after.keys()
    assert not all(torch.equal(before[name], after[name]) for name in before)
